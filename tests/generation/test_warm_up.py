"""The warm-up makes a picture as a request would, and leaves nothing behind."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from support.jobs import job, pixels

from controlnet.bundle import open_bundle
from controlnet.generation import painting
from controlnet.generation.generator import Generator
from controlnet.settings import Settings


@pytest.fixture(scope="module")
def generator(tiny_root: Path) -> Generator:
    return Generator(open_bundle(Settings(bundle="tiny"), tiny_root))


def test_the_warm_up_changes_no_picture_and_no_random_state(generator: Generator, capsys) -> None:
    before = pixels(generator.generate(job()))
    state = torch.get_rng_state()
    capsys.readouterr()
    generator.warm_up()
    assert capsys.readouterr() == ("", ""), "the warm-up shows a progress bar"
    assert torch.equal(torch.get_rng_state(), state)
    assert pixels(generator.generate(job())) == before


def test_the_warm_up_makes_one_small_picture(generator: Generator, monkeypatch) -> None:
    made: list[Image.Image] = []
    decode = painting.decode

    def watched(*arguments):
        made.append(decode(*arguments))
        return made[-1]

    monkeypatch.setattr(painting, "decode", watched)
    generator.warm_up()
    assert [picture.size for picture in made] == [(64, 64)]
