"""Inputs drawn at random, as a form with left-over fields or a fuzzer sends them: nearly all of them are served."""

import inspect
import random
import re
import typing
from collections import Counter
from dataclasses import replace
from typing import Any

import cog
from support import ROOT
from support.requests import FILE, FakeBundle, asked

import predict
from controlnet.request.combinations import RequestError
from controlnet.request.request import SUFFIXES
from controlnet.weights.manifest import Manifest

PARAMETERS = {k: v for k, v in inspect.signature(predict.Predictor.predict).parameters.items() if k != "self"}
NOBODY = '{"people": []}'
SHARE_SENT = 0.8
"""Of the inputs that a draw sends, apart from those that are always sent."""


class FullBundle(FakeBundle):
    """sd15 without files."""

    def __init__(self) -> None:
        manifest = Manifest.read(ROOT / "weights/sd15.toml", {}, reference=True)
        self.annotator_of = {name: manifest.annotator(name) for name in manifest.conditioners}
        self.defaults = manifest.defaults
        self.fast, self.reference = manifest.fast, manifest.reference

    def prompt_fault(self, prompts: Any, clip_skip: int) -> None:
        return None


def draw(choose: random.Random) -> dict[str, Any]:
    """Values that the schema allows, for most of the inputs."""
    sent = {name: value(choose, name) for name in PARAMETERS if choose.random() < SHARE_SENT}
    return {"prompt": "a red ball", "image": FILE} | sent


def value(choose: random.Random, name: str) -> Any:
    parameter = PARAMETERS[name]
    field, hint = parameter.default, parameter.annotation
    (form,) = {*(typing.get_args(hint) or (hint,))} - {type(None)}
    if field.choices:
        return choose.choice(field.choices)
    if form is cog.Path:
        return FILE
    if name.startswith("lora_weights"):
        return "owner/model"
    if form is str:
        return NOBODY if name == "pose_json" else choose.choice(["a red ball", "a house in the snow"])
    if form is bool:
        return choose.random() < 0.5
    drawn = choose.uniform(field.ge, field.le)
    return drawn if form is float else round(drawn)


REFUSALS = {
    "window reversed": r"control_start\w* must be below control_end.*? Lower \S+ or raise \w+\.",
    "window without a step": r"Control from .*? covers none of the .*? num_inference_steps\.",
    "no step to take": r"A prompt_strength of .*? leaves none of the .*? num_inference_steps\.",
    "no step to take in the second pass": r"An upscale_strength of .*? or leave upscale out\.",
    "thresholds": r"canny cannot work with low_threshold .*? the low one below the high one .*?\)\.",
    "inpaint without a part to repaint": r"The inpaint conditioner needs to know what to repaint: .*?\.",
    "inpaint with two pictures": r"The inpaint conditioner (repaints image itself|takes its map from the picture).*?\.",
    "a map to repaint": r"With preprocess off, image is a control map: send the picture to repaint as init_image\.",
    "pose_json and another map": r"(pose_json takes the place of|With \w+ off, image is a control map, and).*?\.",
    "go_fast with another sampler": r"go_fast (takes|works with) .*? Leave \S+ out( for \S+, or leave go_fast out)?\.",
    "many steps of a sampler for few": r"The scheduler (LCM|TCD) takes at most 50 steps: .*? made for it\.",
    "control_mode without guidance": r"control_mode (control|unbalanced) works through guidance.*?\.",
    "hands or faces that are not found": r"The annotator in use finds people's bodies and no .*?\.",
}
"""Every reason to refuse a request that the schema and the bundle allow, as a pattern of the whole refusal."""


def refusals(draws: list[dict[str, Any]]) -> tuple[int, Counter[str]]:
    """How many are refused, and how often each of REFUSALS is the reason. Fails for any other reason."""
    refused, reasons = 0, Counter[str]()
    for sent in draws:
        try:
            asked(FullBundle(), **sent)
        except RequestError as error:
            refused += 1
            left = str(error)
            for reason, pattern in REFUSALS.items():
                left, times = re.subn(pattern, "", left)
                reasons[reason] += bool(times)
            assert not left.strip(), f"{sent}: {left}"
    return refused, reasons


def obey(sent: dict[str, Any]) -> dict[str, Any]:
    """The inputs, changed to keep the rules that cog-safe-push.yaml gives to the fuzzer."""
    disabled = ("pose_json", "pose_parts", "go_fast", "lora_weights", "lora_weights_2", "reference_image")
    sent = {name: value for name, value in sent.items() if name not in disabled}
    for suffix in SUFFIXES:
        # At least 0.4 apart, and anywhere.
        start = 0.6 * sent.pop(f"control_start{suffix}", 0.0)
        end = start + 0.4 + (0.6 - start) * sent.pop(f"control_end{suffix}", 1.0)
        sent |= {f"control_start{suffix}": start, f"control_end{suffix}": min(end, 1.0)}
        if suffix and sent.get(f"conditioner{suffix}") == "inpaint":
            sent[f"conditioner{suffix}"] = "tile"
    least_of = {"num_inference_steps": 10, "prompt_strength": 0.5, "guidance_scale": 1.1, "upscale_strength": 0.2}
    for name, least in least_of.items():
        if name in sent:
            sent[name] = max(sent[name], least)
    if "num_inference_steps" in sent:
        sent["num_inference_steps"] = min(sent["num_inference_steps"], 50)
    if {"low_threshold", "high_threshold"} <= {*sent}:
        low, high = sorted((sent["low_threshold"], sent["high_threshold"]))
        sent |= {"low_threshold": min(low, 254), "high_threshold": max(high, low + 1)}
    else:
        sent = {name: value for name, value in sent.items() if name not in ("low_threshold", "high_threshold")}
    if sent.get("conditioner") == "inpaint":
        sent = {name: value for name, value in sent.items() if name != "init_image"} | {"outpaint_left": 8}
    elif not sent.get("preprocess", True) and "init_image" not in sent:
        sent["preprocess"] = True
    return sent


DRAWS = 500


def drawn(obedient: bool) -> list[dict[str, Any]]:
    choose = random.Random(14)
    draws = [draw(choose) for _ in range(DRAWS)]
    return [obey(sent) for sent in draws] if obedient else draws


def test_inputs_that_keep_the_fuzzers_rules_are_never_refused() -> None:
    assert refusals(drawn(obedient=True)) == (0, Counter())


def test_any_inputs_are_refused_for_few_reasons() -> None:
    """Uniform values contradict each other often: half of all windows are reversed. Without those, few are refused."""
    refused, reasons = refusals(drawn(obedient=False))
    assert refused <= 0.7 * DRAWS
    assert {reason for reason, times in reasons.items() if times} >= {*REFUSALS} - {"inpaint without a part to repaint"}


def test_a_request_equals_one_without_its_ignored_inputs() -> None:
    """So an ignored input changes no byte of the answer, and no picture file of it is opened."""
    ignored = Counter[str]()
    for sent in drawn(obedient=True):
        request = asked(FullBundle(), **sent | {"seed": 1})
        names = [name for each in request.ignored for name in each.names]
        assert len(names) == len({*names}) and {*names} <= {*sent} | {"seed"} and not {*names} & {*request.sent}
        kept = {name: value for name, value in (sent | {"seed": 1}).items() if name not in names}
        assert replace(request, ignored=(), seed=0) == replace(asked(FullBundle(), **kept), seed=0)
        ignored.update(names)
    of_rules = {"image_2", "resolution", "reference_mask", "scheduler", "prompt_strength", "mask_feather", "hed_safe"}
    of_rules |= {"output_quality", "return_pose_json", "detect_resolution", "preprocess"}
    assert of_rules <= {*ignored}
