"""The embedded bundle's ControlNets are what they are said to be, each trained on its own control maps.

Two swapped files, a negated map or a map handed to the wrong net all show here: a net predicts the noise in a held-out
scene best from its own kind of map.
"""

from functools import cache
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from controlnet.bundle import open_bundle
from controlnet.maps.annotators.tiny_network import TinyVisionModel
from controlnet.models.loading import load_pretrained
from controlnet.weights.manifest import BUNDLE, WEIGHTS, Manifest
from tinyworld.cases import held_out, shows_people
from tinyworld.export import EVALUATOR
from tinyworld.hints import HINTS
from tinyworld.models import make_scheduler

NAMES = list(Manifest.read(WEIGHTS / "tiny.toml").conditioners)
COUNT = 16


@cache
def world() -> SimpleNamespace:
    """The bundle, and noisy latents of held-out scenes with what should be predicted from them."""
    bundle = open_bundle({BUNDLE: "tiny"})
    base, cases = bundle.base(), list(islice(held_out(128, shows_people), COUNT))
    generator = torch.Generator().manual_seed(0)
    pixels = torch.from_numpy(np.stack([case.sample.picture for case in cases])).permute(0, 3, 1, 2) / 127.5 - 1
    tokenizer = base["tokenizer"]
    captions = [case.scene.caption for case in cases]
    ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
    times, scheduler = torch.linspace(400, 950, COUNT).long(), make_scheduler()
    with torch.inference_mode():
        latents = base["vae"].encode(pixels).latents * base["vae"].config.scaling_factor
        words = base["text_encoder"](ids).last_hidden_state
    noise = torch.randn(latents.shape, generator=generator)
    return SimpleNamespace(
        unet=base["unet"],
        nets=bundle.controlnets(),
        cases=cases,
        times=times,
        words=words,
        noisy=scheduler.add_noise(latents, noise, times),
        target=scheduler.get_velocity(latents, noise, times),
    )


@cache
def maps(conditioner: str) -> torch.Tensor:
    """(COUNT, 3, 128, 128), 0 to 1: the scenes' true control maps; -1 in the holes of inpaint's."""
    drawn = [
        HINTS[conditioner].from_truth(case.sample, np.random.default_rng(i)) for i, case in enumerate(world().cases)
    ]
    colours = np.stack([one if one.ndim == 3 else np.repeat(one[..., None], 3, axis=2) for one in drawn])
    return torch.from_numpy(colours).permute(0, 3, 1, 2) / 255


def error(net: str | None, control: torch.Tensor | None = None) -> float:
    """Mean squared error of the prediction with that net and those maps, or without control."""
    w, residuals = world(), {}
    with torch.inference_mode():
        if net is not None:
            down, middle = w.nets[net](w.noisy, w.times, w.words, controlnet_cond=control, return_dict=False)
            residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        predicted = w.unet(w.noisy, w.times, w.words, **residuals).sample
    return float((predicted - w.target).square().mean())


@pytest.mark.parametrize("conditioner", NAMES)
def test_each_net_knows_its_own_maps_best(conditioner: str) -> None:
    errors = {net: error(net, maps(conditioner)) for net in NAMES}
    print({net: round(value, 4) for net, value in errors.items()}, "free", round(error(None), 4))
    assert errors[conditioner] <= 1.01 * min(errors.values())  # hed's and scribble's nets read edges much alike
    assert errors[conditioner] < 0.97 * error(None), "the map tells the net next to nothing"


@pytest.mark.parametrize("conditioner", NAMES)
def test_a_negated_map_or_another_scenes_map_misleads(conditioner: str) -> None:
    own = error(conditioner, maps(conditioner))
    assert error(conditioner, 1 - maps(conditioner)) > 1.03 * own
    assert error(conditioner, maps(conditioner).roll(1, 0)) > 1.03 * own


def test_the_network_that_scores_is_not_the_one_that_draws() -> None:
    drawing, scoring = (
        load_pretrained(TinyVisionModel, folder, torch.device("cpu")).state_dict()
        for folder in (WEIGHTS / "tiny/annotator/tiny", EVALUATOR)
    )
    assert all(not torch.equal(drawing[name], scoring[name]) for name in drawing if name.endswith("0.weight"))


@pytest.mark.parametrize("conditioner", [name for name in NAMES if HINTS[name].from_picture])
def test_the_annotators_draw_about_what_is_true(conditioner: str) -> None:
    """Nearer to the truth of the scene than to that of another one, by far: as mean absolute difference of the maps."""
    draw = HINTS[conditioner].from_picture
    assert draw is not None
    network = load_pretrained(TinyVisionModel, WEIGHTS / "tiny/annotator/tiny", torch.device("cpu"))
    truth = maps(conditioner)
    seen = [np.asarray(draw(network, Image.fromarray(case.sample.picture))) for case in world().cases]
    drawn = torch.from_numpy(np.stack(seen)).permute(0, 3, 1, 2) / 255
    own, other = ((drawn - wanted).abs().mean().item() for wanted in (truth, truth.roll(1, 0)))
    print(conditioner, round(own, 4), round(other, 4))
    assert own < 0.75 * other  # a skeleton's limbs are thin: two that are a pixel apart hardly overlap


def test_forty_megabytes_at_most() -> None:
    assert sum(file.stat().st_size for file in (WEIGHTS / "tiny").rglob("*") if file.is_file()) <= 40e6
