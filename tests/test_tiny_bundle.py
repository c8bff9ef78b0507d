"""Each ControlNet of the embedded bundle was trained on the control maps of its own conditioner.

Two swapped files, a negated map or a map given to the wrong net all show here: of all nets, the one trained on a map
predicts the noise in a held-out scene best from it.
"""

from functools import cache
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from controlnet.bundle import open_bundle
from controlnet.maps.annotators.tiny_network import TinyVisionModel
from controlnet.models.loading import load_pretrained
from controlnet.settings import Settings
from controlnet.weights.manifest import WEIGHTS, Manifest
from tinyworld.cases import held_out, shows_lines, shows_people
from tinyworld.dataset import PICTURE, Sample, sample_of
from tinyworld.export import EVALUATOR
from tinyworld.hints import HINTS, Masked
from tinyworld.judge import READINGS
from tinyworld.models import make_scheduler
from tinyworld.scene import Scene

NAMES = list(Manifest.read(WEIGHTS / "tiny.toml").conditioners)
COUNT = 8
"""Number of scenes."""


def test_every_conditioner_of_tiny_has_a_hint() -> None:
    assert set(NAMES) == set(HINTS), "tinyworld/hints.py: HINTS and weights/tiny.toml must have the same conditioners"


def test_every_conditioner_with_a_reading_is_measured() -> None:
    measured = Manifest.read(WEIGHTS / "tiny.toml").made["quality"]
    assert set(measured) - {"prompt_colour"} == set(READINGS), (
        "script/evaluate --conditioner NAME prints [made.quality.NAME] for tiny.toml"
    )


def shows_people_and_lines(scene: Scene, sample: Sample) -> bool:
    return shows_people(scene, sample) and shows_lines(scene, sample)


@cache
def world() -> SimpleNamespace:
    """The bundle, and noisy latents of held-out scenes with the correct prediction for them."""
    bundle = open_bundle(Settings(bundle="tiny"))
    base, cases = bundle.base(), list(islice(held_out(PICTURE, shows_people_and_lines), COUNT))
    generator = torch.Generator().manual_seed(0)
    pixels = torch.from_numpy(np.stack([np.asarray(case.picture) for case in cases])).permute(0, 3, 1, 2) / 127.5 - 1
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
        samples=[sample_of(case.scene, PICTURE) for case in cases],
        times=times,
        words=words,
        noisy=scheduler.add_noise(latents, noise, times),
        target=scheduler.get_velocity(latents, noise, times),
    )


@cache
def maps(conditioner: str) -> torch.Tensor:
    """(COUNT, 3, 256, 256), 0 to 1: the scenes' true control maps; -1 in the holes of inpaint's."""
    made = [HINTS[conditioner].from_truth(one, np.random.default_rng(i)) for i, one in enumerate(world().samples)]
    drawn = [one.control_map if isinstance(one, Masked) else one for one in made]
    colours = np.stack([one if one.ndim == 3 else np.repeat(one[..., None], 3, axis=2) for one in drawn])
    return torch.from_numpy(colours).permute(0, 3, 1, 2) / 255


def predict_error(net: str | None = None, control: torch.Tensor | None = None) -> float:
    """Mean squared error of the prediction with that net and those maps; without a net, of the one without control."""
    w, residuals = world(), {}
    with torch.inference_mode():
        if net is not None:
            down, middle = w.nets[net](w.noisy, w.times, w.words, controlnet_cond=control, return_dict=False)
            residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        predicted = w.unet(w.noisy, w.times, w.words, **residuals).sample
    return float((predicted - w.target).square().mean())


free_error = cache(predict_error)


@cache
def own_error(conditioner: str) -> float:
    return predict_error(conditioner, maps(conditioner))


@pytest.mark.parametrize("conditioner", NAMES)
def test_each_net_knows_its_own_maps_best(conditioner: str) -> None:
    own, free = own_error(conditioner), free_error()
    others = {net: predict_error(net, maps(conditioner)) for net in NAMES if net != conditioner}
    print(conditioner, round(own, 4), {net: round(value, 4) for net, value in others.items()}, "free", round(free, 4))
    assert own <= 1.01 * min(others.values())  # the nets of hed and scribble read edges in a similar way
    assert own < 0.97 * free, "the map hardly helps the net"


@pytest.mark.parametrize("conditioner", NAMES)
def test_negated_maps_and_maps_of_other_scenes_mislead(conditioner: str) -> None:
    negated, exchanged = 1 - maps(conditioner), maps(conditioner).roll(1, 0)
    worse = [predict_error(conditioner, wrong) / own_error(conditioner) for wrong in (negated, exchanged)]
    print(conditioner, [round(ratio, 3) for ratio in worse])
    assert min(worse) > 1.5


def test_the_evaluation_network_is_not_the_one_that_annotates() -> None:
    drawing, scoring = (
        load_pretrained(TinyVisionModel, folder, torch.device("cpu")).state_dict()
        for folder in (WEIGHTS / "tiny/annotator/tiny", EVALUATOR)
    )
    assert all(not torch.equal(drawing[name], scoring[name]) for name in drawing if name.endswith("0.weight"))


@pytest.mark.parametrize("conditioner", [name for name in NAMES if name in HINTS and HINTS[name].from_picture])
def test_annotators_draw_nearly_the_true_maps(conditioner: str) -> None:
    """By mean absolute difference, a drawn map is far nearer to the true map of its scene than to another scene's."""
    draw = HINTS[conditioner].from_picture
    assert draw is not None
    network = load_pretrained(TinyVisionModel, WEIGHTS / "tiny/annotator/tiny", torch.device("cpu"))
    truth = maps(conditioner)
    seen = [np.asarray(draw(network, case.picture)) for case in world().cases]
    drawn = torch.from_numpy(np.stack(seen)).permute(0, 3, 1, 2) / 255
    own, other = ((drawn - wanted).abs().mean().item() for wanted in (truth, truth.roll(1, 0)))
    print(conditioner, round(own, 4), round(other, 4))
    assert own < 0.75 * other  # a skeleton's limbs are thin: two that are a pixel apart hardly overlap


def test_the_embedded_bundle_is_at_most_40_megabytes() -> None:
    assert sum(file.stat().st_size for file in (WEIGHTS / "tiny").rglob("*") if file.is_file()) <= 40e6
