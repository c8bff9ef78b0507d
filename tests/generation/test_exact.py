"""Whole requests with repeated work removed: latents as without, for any request; and how often each part runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.jobs import hint, job, pixels
from support.latents import latents
from support.small_models import SmallBundle, parts

from controlnet.families import sd15
from controlnet.families.prompts import RecentEmbeddings
from controlnet.families.recent import RECENT
from controlnet.generation import painting
from controlnet.generation.generator import Generator
from controlnet.generation.job import Job
from controlnet.maps.controls import Control
from controlnet.models.schedulers import SCHEDULERS
from controlnet.pictures.canvas import InitialPicture
from controlnet.request.modes import CONTROL_MODES
from controlnet.settings import Settings
from controlnet.speedups.replaced import OWN_CLASS


@pytest.fixture(scope="module")
def exact() -> Generator:
    return Generator(SmallBundle())


@pytest.fixture(scope="module")
def plain() -> Generator:
    return Generator(SmallBundle(Settings(speedups=False)))


def assert_equal(exact: Generator, plain: Generator, asked: Job) -> None:
    """Latents up to 1e-5 of their largest value: rounding (controlnet/speedups/replaced.py), over all steps."""
    for ours, other in zip(latents(exact, asked), latents(plain, asked), strict=True):
        assert (ours - other).abs().max() <= 1e-5 * other.abs().max()


def region() -> Image.Image:
    return Image.fromarray(np.tile(np.linspace(0, 255, 64).round().astype(np.uint8), (64, 1)))


CONTROLS = {
    "canny": (Control("canny", hint(1)),),
    "a pooled net": (Control("shuffle", hint(1)),),
    "a net twice": (Control("canny", hint(1)), Control("canny", hint(2), scale=0.5)),
    "three nets with windows and a region": (
        Control("shuffle", hint(1), scale=0.7, end=0.5),
        Control("canny", hint(2), region=region()),
        Control("scribble", hint(3), start=0.5),
    ),
    "scale 0": (Control("canny", hint(1), scale=0.0),),
}
BEGINNINGS = {
    "an initial picture": InitialPicture(hint(9), 0.6),
    "a mask": InitialPicture(hint(9), 1.0, region().point(lambda grey: 255 * (grey > 100))),
    "a mask at strength 0.5": InitialPicture(hint(9), 0.5, region()),
}
CHANGES: dict[str, dict[str, Any]] = {
    "no guidance": {"guidance_scale": 1.0},
    "several chunks": {"prompt": "a red ball " * 40, "negative_prompt": "a (blue:1.4) box"},
    "four outputs": {"num_outputs": 4},
    "clip_skip": {"clip_skip": 2},
    **{name: {"initial": initial} for name, initial in BEGINNINGS.items()},
}


@pytest.mark.parametrize("controls", CONTROLS)
@pytest.mark.parametrize("mode", CONTROL_MODES)
def test_latents_with_every_control_mode_are_those_without_exact_speedups(exact, plain, mode, controls) -> None:
    asked = replace(job(control_mode=mode, num_inference_steps=4), controls=CONTROLS[controls])
    assert_equal(exact, plain, asked)


@pytest.mark.parametrize("change", CHANGES)
def test_latents_of_other_requests_are_those_without_exact_speedups(exact, plain, change) -> None:
    controls = CONTROLS["three nets with windows and a region"]
    assert_equal(exact, plain, replace(job(num_inference_steps=4, **CHANGES[change]), controls=controls))


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_latents_of_every_scheduler_are_those_without_exact_speedups(exact, plain, scheduler) -> None:
    assert_equal(exact, plain, job(scheduler=scheduler, num_inference_steps=4))


@contextmanager
def counted(**layers: torch.nn.Module) -> Iterator[dict[str, list[int]]]:
    """The batch of each call of some layers, by name."""
    calls: dict[str, list[int]] = {name: [] for name in layers}

    def hook(name: str) -> Callable[..., None]:
        return lambda _, given, __: calls[name].append(len(given[0]))

    handles = [layer.register_forward_hook(hook(name)) for name, layer in layers.items()]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def test_repeated_work_is_done_once(exact, plain) -> None:
    """For two outputs of three steps: the first layers for one half of a guided batch."""
    net, unet = parts()["canny"], parts()["unet"]
    attention = unet.up_blocks[1].attentions[0].transformer_blocks[0].attn2
    layers = {
        "map": net.controlnet_cond_embedding.conv_in,
        "keys": attention.to_k,
        "unet's first layer": unet.conv_in,
        "unet's last layer": unet.conv_out,
        "net's first layer": net.conv_in,
    }
    with counted(**layers) as calls:
        exact.generate(job(num_outputs=2))
    assert calls == {
        "map": [1],
        "keys": [2] * 2,  # once per picture: the pipeline makes a tensor of the prompts for each
        "unet's first layer": [1] * 6,
        "unet's last layer": [2] * 6,
        "net's first layer": [1] * 6,
    }
    with counted(**layers) as calls:
        plain.generate(job(num_outputs=2))
    assert calls == dict.fromkeys(layers, [2] * 6)


def test_models_are_diffusers_own_after_a_request(exact, monkeypatch) -> None:
    exact.generate(job())
    monkeypatch.setattr(painting, "decode", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        exact.generate(job())
    used = {type(layer) for name in ("unet", "vae", "canny") for layer in parts()[name].modules()}
    assert not used & set(OWN_CLASS)


def test_a_request_leaves_nothing_for_the_next(exact) -> None:
    before = pixels(exact.generate(job()))
    for change in CHANGES.values():
        exact.generate(job(**change, seed=9))
    assert pixels(exact.generate(job())) == before


def test_both_prompts_are_encoded_in_one_pass_and_recent_pairs_are_kept() -> None:
    small = parts()
    recent = RecentEmbeddings(partial(sd15.encode, small))
    with counted(encoder=small["text_encoder"].embeddings.token_embedding) as calls:
        first = recent.of("a red ball", "grass")
        assert recent.of("a red ball", "grass") is first and calls["encoder"] == [2]
        for other in [("a red ball", ""), ("", "grass")]:
            recent.of(*other)
        recent.of("a red ball", "grass", 2)
        assert len(calls["encoder"]) == 4
        for i in range(RECENT):
            recent.of(f"{i} balls", "")
        again = recent.of("a red ball", "grass")
    assert len(calls["encoder"]) == 4 + RECENT + 1 and len(recent._pairs) == RECENT
    assert all(torch.equal(x, y) for x, y in zip(again.values(), first.values(), strict=True))
