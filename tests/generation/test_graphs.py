"""Whole requests with CUDA graphs, recorded without a GPU: the latents of requests without, in any order."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from diffusers.models.controlnets.controlnet import ControlNetConditioningEmbedding
from PIL import Image
from support.jobs import hint, job
from support.latents import latents
from support.recorded_graphs import RecordedGraph, open_recorded, recorded_graphs
from support.small_models import SmallBundle, parts

from controlnet import speedups
from controlnet.generation.generator import Generator
from controlnet.generation.job import Job
from controlnet.maps.controls import Control
from controlnet.models.schedulers import SCHEDULERS, keep_times_in_main_memory, make_scheduler
from controlnet.pictures.canvas import InitialPicture
from controlnet.request.modes import CONTROL_MODES
from controlnet.settings import Settings


@pytest.fixture(scope="module")
def plain() -> Generator:
    return Generator(SmallBundle())


@pytest.fixture
def recorded() -> Iterator[list[RecordedGraph]]:
    with recorded_graphs() as made:
        yield made


@pytest.fixture
def graphed(recorded: list[RecordedGraph], monkeypatch: pytest.MonkeyPatch) -> Generator:
    monkeypatch.setattr(speedups, "open_graphs", open_recorded)
    return Generator(SmallBundle())


def assert_equal(graphed: Generator, plain: Generator, asked: Job, most: float = 0.0) -> None:
    """`most` is a share of the largest latent."""
    for ours, other in zip(latents(graphed, asked), latents(plain, asked), strict=True):
        assert (ours - other).abs().max() <= most * other.abs().max()


REGION = Image.fromarray(np.tile(np.linspace(0, 255, 64).round().astype(np.uint8), (64, 1)))
THREE = (
    Control("shuffle", hint(1), scale=0.7, end=0.5),
    Control("canny", hint(2), region=REGION),
    Control("scribble", hint(3), start=0.5),
)
CHANGES: dict[str, dict[str, Any]] = {
    "no guidance": {"guidance_scale": 1.0},
    "several chunks": {"prompt": "a red ball " * 40, "negative_prompt": "a (blue:1.4) box"},
    "four outputs": {"num_outputs": 4},
    "an initial picture": {"initial": InitialPicture(hint(9), 0.6)},
    "a mask": {"initial": InitialPicture(hint(9), 1.0, REGION)},
    "a mask at strength 0.5": {"initial": InitialPicture(hint(9), 0.5, REGION)},
    "upscale": {"upscale": 2.0, "upscale_strength": 0.5},
    **{f"sampler {name}": {"scheduler": name} for name in SCHEDULERS},
    **{f"mode {mode}": {"control_mode": mode} for mode in CONTROL_MODES},
}


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES.keys())
def test_latents_are_those_without_graphs(graphed, plain, recorded, changes: dict[str, Any]) -> None:
    assert_equal(graphed, plain, job(num_inference_steps=5, **changes))
    # Each is replayed once when it is compared with the operations, and then for a step.
    assert len(recorded) >= 2 and sum(graph.replays for graph in recorded) > 2 * len(recorded)


@pytest.mark.parametrize("mode", CONTROL_MODES)
def test_three_nets_in_every_mode(graphed, plain, mode: str) -> None:
    """A pooled net's scale acts before the mean without graphs, and after it with them."""
    asked = job(control_mode=mode, num_inference_steps=4)
    assert_equal(graphed, plain, Job(**vars(asked) | {"controls": THREE}), most=1e-5)


def test_requests_in_any_order_use_the_same_graphs(graphed, plain, recorded: list[RecordedGraph]) -> None:
    asked = [
        job(),
        job(prompt="a blue box", control={"scale": 0.3}),
        job(control={"conditioner": "scribble", "control_map": hint(2)}),
        job(seed=9, scheduler="K_EULER"),
        job(control={"conditioner": "shuffle"}),
    ]
    for each in (*asked, *reversed(asked), asked[2], asked[0]):
        assert_equal(graphed, plain, each)
    # The UNet with residuals of canny and scribble and with those of shuffle, whose sizes differ, and three nets.
    assert len(recorded) == 5


def test_a_net_that_is_named_twice_embeds_each_map_once(graphed, plain, monkeypatch) -> None:
    embedded: list[int] = []
    forward = ControlNetConditioningEmbedding.forward
    monkeypatch.setattr(
        ControlNetConditioningEmbedding, "forward", lambda self, given: embedded.append(1) or forward(self, given)
    )
    twice = (Control("canny", hint(1)), Control("canny", hint(2), scale=0.5))
    counts = []
    for steps in (3, 6, 9):
        embedded.clear()
        graphed.generate(Job(**vars(job(num_inference_steps=steps)) | {"controls": twice}))
        counts.append(len(embedded))
    assert counts[1:] == [2, 2], "with the first request, also before each capture"
    assert_equal(graphed, plain, Job(**vars(job()) | {"controls": twice}))


def test_without_the_exact_speedups_requests_have_graphs_too(recorded, monkeypatch) -> None:
    unchanged = Generator(SmallBundle(Settings(speedups=False)))
    monkeypatch.setattr(speedups, "open_graphs", open_recorded)
    assert_equal(Generator(SmallBundle(Settings(speedups=False))), unchanged, job())
    assert len(recorded) == 2


@pytest.mark.parametrize("name", SCHEDULERS)
def test_time_steps_stay_in_main_memory(name: str) -> None:
    """On a GPU, a sampler would wait for everything that was started there, at each step."""
    scheduler = make_scheduler(name, parts()["scheduler"].config)
    keep_times_in_main_memory(scheduler)
    scheduler.set_timesteps(4, device="meta")
    assert scheduler.timesteps.device.type == "cpu" and len(scheduler.timesteps) >= 4
