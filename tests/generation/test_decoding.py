"""A picture of numbers that are infinite, or none, is an error and never black."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from random_loras import ATTENTION, random_layers
from support.jobs import hint, job, pixels
from support.loras import save_diffusers
from support.small_models import SmallBundle, parts

from controlnet.generation.decoding import NotFinite, decode
from controlnet.generation.generator import Generator
from controlnet.generation.windowed import WindowedVae
from controlnet.pictures.canvas import InitialPicture
from controlnet.settings import Settings
from controlnet.weights.lora_files import Lora, LoraError

NONE, ENDLESS = float("nan"), float("inf")


def decoded(latents: torch.Tensor, pixels: torch.Tensor) -> Image.Image:
    """Of a VAE that makes `pixels` of everything."""
    vae = SimpleNamespace(config=SimpleNamespace(scaling_factor=0.5), decode=lambda latents, return_dict: (pixels,))
    return decode(latents, vae, VaeImageProcessor())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("number", [NONE, ENDLESS, -ENDLESS])
@pytest.mark.parametrize("where", ["latents", "pixels"])
def test_one_number_is_enough(dtype: torch.dtype, number: float, where: str) -> None:
    numbers = {"latents": torch.zeros(1, 4, 8, 8, dtype=dtype), "pixels": torch.zeros(1, 3, 64, 64, dtype=dtype)}
    assert decoded(**numbers).size == (64, 64)
    numbers[where][0, -1, -1, -1] = number
    with pytest.raises(NotFinite) as error:
        decoded(**numbers)
    assert ("CONTROLNET_DTYPE" in str(error.value)) is (dtype == torch.float16)


def test_the_largest_finite_numbers_are_a_picture() -> None:
    most = torch.finfo(torch.float16).max
    assert decoded(torch.zeros(1, 4, 8, 8), torch.full((1, 3, 64, 64), most, dtype=torch.float16)).size == (64, 64)


@pytest.fixture(scope="module")
def generator() -> Generator:
    return Generator(SmallBundle())


@pytest.fixture(scope="module")
def enormous(tmp_path_factory: pytest.TempPathFactory) -> Lora:
    """A LoRA of finite numbers whose sums are not."""
    layers = random_layers(parts()["unet"], ATTENTION)
    grown = {name: (down, up * 1e30) for name, (down, up) in layers.items()}
    file = save_diffusers(tmp_path_factory.mktemp("loras") / "a.safetensors", {"unet": grown})
    return Lora(file, "enormous", 1.0, "lora_weights_2")


JOBS: dict[str, dict[str, Any]] = {
    "one": {},
    "several": {"num_outputs": 2},
    "changed": {"initial": InitialPicture(hint(2), 0.7, None)},
    "repainted": {"initial": InitialPicture(hint(2), 1.0, Image.new("L", (64, 64), 255))},
    "enlarged": {"upscale": 1.5, "upscale_strength": 0.5, "num_inference_steps": 4},
}


@pytest.mark.parametrize("sent", JOBS.values(), ids=JOBS)
def test_a_lora_of_enormous_numbers_is_refused_by_name(generator: Generator, enormous: Lora, sent: dict) -> None:
    before = pixels(generator.generate(job()))
    with pytest.raises(LoraError, match=r"^lora_weights_2: with it, .* Lower its scale, or send another LoRA[.]$"):
        generator.generate(job(**sent, loras=(enormous,)))
    assert pixels(generator.generate(job())) == before


def test_so_it_is_in_a_batch(enormous: Lora) -> None:
    with pytest.raises(LoraError, match=r"^lora_weights_2: with it"):
        Generator(SmallBundle(Settings(batch_outputs=True))).generate(job(num_outputs=3, loras=(enormous,)))


def test_without_a_lora_it_is_the_servers_fault(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts()["vae"], "decode", lambda latents, return_dict: (latents[:, :3] * NONE,))
    with pytest.raises(NotFinite):
        generator.generate(job())


def test_a_second_pass_in_windows_is_looked_at_too(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    own = WindowedVae.decode
    monkeypatch.setattr(WindowedVae, "decode", lambda *given, **named: (own(*given, **named)[0] * NONE,))
    with pytest.raises(NotFinite):
        generator.generate(job(**JOBS["enlarged"]))


def test_warming_up_says_so_and_goes_on(
    generator: Generator, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    defaults = SimpleNamespace(resolution=64, guidance_scale=3.0, scheduler="DDIM")
    monkeypatch.setattr(generator.bundle, "manifest", SimpleNamespace(defaults=defaults), raising=False)
    monkeypatch.setattr(parts()["vae"], "decode", lambda latents, return_dict: (latents[:, :3] * NONE,))
    generator.warm_up()
    assert "warning: The server's networks gave numbers of which no picture" in capsys.readouterr().out
