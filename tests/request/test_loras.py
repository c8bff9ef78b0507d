"""The inputs of LoRAs and of go_fast, as a request is read."""

import pytest
from support.requests import FakeBundle, asked

from controlnet.request.combinations import RequestError
from controlnet.request.loras import RequestedLora
from controlnet.weights.lora_files import LoraError
from controlnet.weights.lora_sources import HubRepo
from controlnet.weights.tables import Fast


class FastBundle(FakeBundle):
    fast = Fast("lora/fast", 4, 1.5, "LCM", (2, 8), (1, 2))


def ignored(**sent) -> list[str]:
    return [str(each) for each in asked(**sent).ignored]


def test_each_lora_has_its_own_scale() -> None:
    request = asked(lora_weights="a/b", lora_weights_2="c/d", lora_scale_2=-0.5)
    assert request.loras == (
        RequestedLora(HubRepo("a/b"), 1.0, "lora_weights", "lora_scale"),
        RequestedLora(HubRepo("c/d"), -0.5, "lora_weights_2", "lora_scale_2"),
    )
    assert asked(lora_weights_2="c/d").loras[0].name == "lora_weights_2"


def test_an_empty_field_is_no_lora() -> None:
    assert asked(lora_weights=" ", lora_weights_2="").loras == ()


def test_what_has_no_effect_is_ignored() -> None:
    assert ignored(lora_scale=0.5) == ["lora_scale (no lora_weights)"]
    assert ignored(lora_weights="a/b", lora_scale=0) == ["lora_weights, lora_scale (a LoRA of scale 0 changes nothing)"]
    only = ignored(lora_weights="not/a/form/..", map_only=True, go_fast=True)
    assert only == ["go_fast, lora_weights (map_only makes no pictures)"]


def test_a_refusal_names_the_input() -> None:
    with pytest.raises(LoraError, match=r"^lora_weights_2: expected a URL"):
        asked(lora_weights_2="night")


def test_go_fast_has_the_bundles_values() -> None:
    request = asked(FastBundle(), go_fast=True)
    assert (request.num_inference_steps, request.guidance_scale, request.scheduler) == (4, 1.5, "LCM")
    request = asked(FastBundle(), go_fast=True, num_inference_steps=8, guidance_scale=1, scheduler="LCM")
    assert (request.num_inference_steps, request.guidance_scale) == (8, 1)
    assert asked(FastBundle()).num_inference_steps == FakeBundle.defaults.num_inference_steps


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        ({"num_inference_steps": 20}, "go_fast takes 2 to 8 steps: got 20. Leave num_inference_steps out for 4,"),
        ({"num_inference_steps": 100}, "go_fast takes 2 to 8 steps: got 100."),
        ({"guidance_scale": 7.5}, "go_fast takes a guidance_scale of 1 to 2: got 7.5. Leave it out for 1.5,"),
        ({"scheduler": "DDIM"}, "go_fast works with the scheduler LCM alone: got DDIM."),
    ],
)
def test_go_fast_refuses_what_does_not_work(sent: dict, words: str) -> None:
    with pytest.raises(RequestError) as error:
        asked(FastBundle(), go_fast=True, **sent)
    assert words in str(error.value)


def test_a_bundle_without_go_fast_says_so() -> None:
    with pytest.raises(RequestError, match="has no go_fast"):
        asked(go_fast=True)


def test_control_modes_that_need_guidance_are_refused_without_it() -> None:
    with pytest.raises(RequestError, match="works through guidance"):
        asked(FastBundle(), go_fast=True, guidance_scale=1, control_mode="control")
    assert asked(FastBundle(), go_fast=True, control_mode="control").go_fast


def test_samplers_for_few_steps_refuse_many() -> None:
    for name in ("LCM", "TCD"):
        assert asked(scheduler=name, num_inference_steps=50).scheduler == name
        with pytest.raises(RequestError, match=f"^The scheduler {name} takes at most 50 steps: got 51[^.]*[.]"):
            asked(scheduler=name, num_inference_steps=51)


def test_eta_left_out_is_what_the_sampler_is_used_with() -> None:
    assert asked(scheduler="TCD").eta == 0.3
    assert asked(scheduler="TCD", eta=0).eta == 0
    assert asked(scheduler="DDIM").eta == asked(scheduler="KLMS").eta == 0
