"""The second pass, which enlarges a picture: against diffusers' pipelines, with and without exact speed-ups."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, MultiControlNetModel, StableDiffusionControlNetImg2ImgPipeline
from PIL import Image
from support.jobs import hint, job, pixels
from support.latents import latents as latents_of_passes
from support.small_models import SmallBundle, parts

from controlnet.generation.generator import Generator
from controlnet.generation.job import Job
from controlnet.generation.upscale import Upscale
from controlnet.maps.controls import Control
from controlnet.models.controlnets import ControlNets, cast
from controlnet.models.schedulers import SCHEDULERS
from controlnet.pictures.canvas import InitialPicture, ReferencePicture
from controlnet.pictures.geometry import fit
from controlnet.request.modes import CONTROL_MODES
from controlnet.settings import Settings
from controlnet.stopwatch import Stopwatch


@pytest.fixture(scope="module", params=["exact", "plain"])
def generator(request: pytest.FixtureRequest) -> Generator:
    return Generator(SmallBundle(Settings(speedups=request.param == "exact")))


@pytest.fixture(scope="module")
def exact() -> Generator:
    return Generator(SmallBundle())


@pytest.fixture(scope="module")
def plain() -> Generator:
    return Generator(SmallBundle(Settings(speedups=False)))


FIRST = hint(9)
"""What the first pass has made, for all generators: rounded to 8 bits, its own pictures could differ."""


def latents(generator: Generator, asked: Job) -> torch.Tensor:
    """The final latents of the second pass, which enlarges FIRST."""
    return latents_of_passes(generator, asked, FIRST)[1]


def assert_equal(exact: Generator, plain: Generator, asked: Job) -> None:
    ours, other = latents(exact, asked), latents(plain, asked)
    assert (ours - other).abs().max() <= 1e-5 * other.abs().max()


def enlarging(**changes) -> Job:
    return job(**{"num_inference_steps": 4, "upscale": 1.5, "upscale_strength": 0.5} | changes)


def diffusers_own(controls: dict[str, Image.Image], picture: Image.Image) -> torch.Tensor:
    """What diffusers' img2img pipeline makes of the enlarged picture, as latents."""
    nets = [parts()[name] for name in controls]
    pipeline: Any = StableDiffusionControlNetImg2ImgPipeline(
        **SmallBundle().base() | {"scheduler": DDIMScheduler.from_config(parts()["scheduler"].config)},
        controlnet=nets[0] if len(nets) == 1 else MultiControlNetModel(nets),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    maps = list(controls.values())
    return pipeline(
        "a red ball",
        image=picture,
        control_image=maps[0] if len(nets) == 1 else maps,
        strength=0.5,
        num_inference_steps=4,
        guidance_scale=4.0,
        controlnet_conditioning_scale=1.0 if len(nets) == 1 else [1.0] * len(nets),
        generator=torch.Generator().manual_seed(5),
        output_type="latent",
    ).images


def test_in_one_window_the_second_pass_is_diffusers_own_under_the_tile_net(generator: Generator) -> None:
    enlarged = fit(FIRST, (96, 96), Image.Resampling.LANCZOS)
    ours = latents(generator, enlarging(control={"scale": 0.0}))
    own = diffusers_own({"tile": enlarged}, enlarged)
    assert ours.shape == (1, 4, 12, 12) and (ours - own).abs().max() <= 1e-5 * own.abs().max()
    other = diffusers_own({"canny": enlarged}, enlarged)
    assert (own - other).abs().max() > 1e-2 * own.abs().max(), "the comparison is empty: the net changes nothing"


def test_controls_of_the_first_pass_act_in_the_second_with_larger_maps(generator: Generator) -> None:
    asked = enlarging(control={"conditioner": "scribble", "control_map": hint(1)})
    enlarged = fit(FIRST, (96, 96), Image.Resampling.LANCZOS)
    (shown, _) = Upscale(asked).of(0, FIRST).controls
    own = diffusers_own({"scribble": shown.control_map, "tile": enlarged}, enlarged)
    ours = latents(generator, asked)
    assert shown.control_map.size == (96, 96)
    assert (ours - own).abs().max() <= 1e-5 * own.abs().max()


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_exact_speedups_change_no_second_pass_of_several_windows(exact: Generator, plain: Generator, scheduler) -> None:
    assert_equal(exact, plain, enlarging(upscale=2.0, scheduler=scheduler))


@pytest.mark.parametrize("mode", CONTROL_MODES)
def test_exact_speedups_change_no_mode_region_or_prompt(exact: Generator, plain: Generator, mode: str) -> None:
    region = Image.fromarray(np.tile(np.linspace(0, 255, 64).astype(np.uint8), (64, 1)))
    controls = Control("canny", hint(1), region=region), Control("scribble", hint(2), end=0.8)
    asked = replace(enlarging(upscale=2.0, control_mode=mode, prompt="a red ball " * 40), controls=controls)
    assert_equal(exact, plain, asked)
    assert_equal(exact, plain, replace(asked, guidance_scale=1.0))


def test_picture_i_is_the_one_of_its_seed_alone_and_says_how_it_was_made(exact: Generator) -> None:
    made = exact.generate(enlarging(upscale=2.0, num_outputs=2))
    (alone,) = exact.generate(enlarging(upscale=2.0, seed=6))
    assert [picture.size for picture in made] == [(128, 128)] * 2
    assert pixels(made[1:]) == pixels([alone]) != pixels(made[:1])
    said = made[1].info["parameters"]
    assert said == alone.info["parameters"]
    assert (said["upscale"], said["upscale_strength"], said["seed"]) == (2.0, 0.5, 6)
    assert [control["conditioner"] for control in said["controls"]] == ["canny"]
    assert "upscale" not in exact.generate(job())[0].info["parameters"]


def test_which_controls_act_in_the_second_pass() -> None:
    """It takes the last half of the steps here. shuffle's map says nothing about a part of a picture."""
    kept = {
        "whole": (Control("canny", hint(1)), (0.0, 1.0)),
        "early": (Control("canny", hint(1), end=0.5), None),
        "late": (Control("canny", hint(1), start=0.75), (0.5, 1.0)),
        "to 3/4": (Control("canny", hint(1), end=0.75), (0.0, 0.5)),
        "scale 0": (Control("canny", hint(1), scale=0.0), None),
        **{name: (Control(name, hint(1)), None) for name in ("shuffle", "tile", "ip2p", "inpaint")},
    }
    for name, (control, window) in kept.items():
        *others, tile = Upscale(replace(enlarging(), controls=(control,))).of(0, hint(2)).controls
        assert (tile.conditioner, tile.scale, tile.start, tile.end) == ("tile", 1.0, 0.0, 1.0)
        assert [(other.start, other.end) for other in others] == ([] if window is None else [window]), name


def test_a_reference_picture_acts_in_the_second_pass_with_a_larger_mask() -> None:
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    reference = ReferencePicture(hint(3), 0.7, "style", mask)
    second = Upscale(replace(enlarging(), reference=reference)).of(0, FIRST).reference
    assert second and second.mask and second == replace(reference, mask=second.mask)
    assert second.mask.size == (96, 96) and [second.mask.getpixel((x, 9)) for x in (40, 56)] == [255, 0]
    everywhere = replace(reference, mask=None)
    assert Upscale(replace(enlarging(), reference=everywhere)).of(0, FIRST).reference == everywhere
    assert Upscale(enlarging()).of(0, FIRST).reference is None


def test_the_nets_of_both_passes_are_made_ready_once_for_all_pictures(monkeypatch) -> None:
    """Without room for all nets (low-memory mode, or on a CPU), nets of another set would be freed in between."""
    small, names = SmallBundle(), ("canny", "scribble", "tile")
    stored = {name: cast(parts()[name], torch.float16) for name in names}  # type: ignore[arg-type]
    monkeypatch.setattr(small, "controlnets", lambda: ControlNets(stored, torch.float32))
    generator, copied = Generator(small), []
    copy = ControlNets._copy
    monkeypatch.setattr(ControlNets, "_copy", lambda self, net: copied.append(net) or copy(self, net))
    generator.generate(enlarging(num_outputs=2))
    assert copied == [stored["canny"], stored["tile"]]


def test_outside_the_mask_the_second_pass_keeps_the_original(exact: Generator) -> None:
    """Bit for bit. Its first picture is not enlarged there, so what it shows may be finer than the canvas."""
    mask = Image.new("L", (128, 128))
    mask.paste(255, (0, 0, 64, 128))
    fine = Image.fromarray(np.random.default_rng(1).integers(0, 256, (128, 128, 3), dtype=np.uint8))
    small = InitialPicture(fit(fine, (64, 64), Image.Resampling.LANCZOS), 1.0, mask.resize((64, 64)))
    for strength in (0.5, 1.0):
        asked = enlarging(
            initial=small, upscale=2.0, upscale_strength=strength, original=replace(small, picture=fine, mask=mask)
        )
        made = np.asarray(exact.generate(asked)[0])
        assert np.array_equal(made[:, 64:], np.asarray(fine)[:, 64:])
        assert np.abs(made[:, :64].astype(int) - np.asarray(fine)[:, :64]).mean() > 10


def test_the_bar_counts_both_passes(exact: Generator, capsys: pytest.CaptureFixture) -> None:
    """Two steps of four, in 2 × 2 windows."""
    exact.generate(enlarging(upscale=2.0))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].lstrip().startswith("0%") and "0/12" in lines[0]
    assert lines[-1].startswith("100%") and "12/12" in lines[-1] and "picture 1/1" in lines[-1]


def test_the_second_pass_is_a_phase_of_its_own(exact: Generator) -> None:
    phases: dict[str, float] = {}
    exact.generate(enlarging(), Stopwatch(phases.__setitem__))
    assert [name for name in phases if name != "timing.swap"] == [
        "timing.encode", "timing.denoise", "timing.decode", "timing.upscale",
    ]  # fmt: skip


def test_an_interrupted_second_pass_leaves_nothing_behind(exact: Generator, monkeypatch) -> None:
    before = pixels(exact.generate(enlarging(upscale=2.0)))
    calls = []

    def interrupted(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 12:
            raise KeyboardInterrupt

    handle = parts()["unet"].register_forward_pre_hook(interrupted)
    try:
        with pytest.raises(KeyboardInterrupt):
            exact.generate(enlarging(upscale=2.0))
    finally:
        handle.remove()
    assert len(calls) == 12, "it was interrupted in the first pass"
    assert pixels(exact.generate(enlarging(upscale=2.0))) == before
