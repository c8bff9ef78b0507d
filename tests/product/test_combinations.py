"""Which features combine, and that no request leaves a trace on the next one: all features, through the real server."""

import itertools
import random
import time
from functools import cache
from typing import Any

from PIL import Image
from support import ROOT
from support.requests_to_tiny import FAST, HALF, NIGHT, OTHER, PHOTO, SQUARE, answer, data_url, differ, png, sent, url
from support.server import Answer, Server

Inputs = dict[str, Any]
Pair = tuple[str, str]
FEATURES: dict[str, Inputs] = {
    "second control": {"conditioner_2": "depth", "conditioning_scale_2": 0.5},
    "third control": {"conditioner_3": "scribble", "image_3": OTHER, "control_end_3": 0.5},
    "control window": {"control_start": 0.5},
    "control mode": {"control_mode": "control"},
    "control mask": {"control_mask": HALF},
    "ready-made map": {"preprocess": False},
    "init_image": {"init_image": SQUARE, "prompt_strength": 0.75},
    "mask": {"mask": HALF},
    "inpaint": {"conditioner": "inpaint", "mask": HALF},
    "outpaint": {"outpaint_right": 16},
    "upscale": {"upscale": 1.5},
    "reference picture": {"reference_image": OTHER},
    "width and height": {"resolution": None, "width": 72, "height": 96},
    "resize_mode": {"resolution": None, "width": 72, "height": 64, "resize_mode": "fill"},
    "LoRA": {"lora_weights": NIGHT},
    "go_fast": {"go_fast": True, "guidance_scale": 1.5},
    "no guidance": {"guidance_scale": 1},
    "several outputs": {"num_outputs": 2},
    "another scheduler": {"scheduler": "HeunDiscrete"},
    "eta": {"scheduler": "DDIM", "eta": 1.0},
    "the map returned": {"return_control_map": True},
    "detect_resolution": {"detect_resolution": 256},
    "thresholds": {"low_threshold": 20, "high_threshold": 60},
    "clip_skip": {"clip_skip": 2},
    "jpg": {"output_format": "jpg"},
}
RETURNED = ("several outputs", "the map returned", "jpg")
"""Features that only say what comes back. One answer shows that each of them acts, so they are sent together."""
TABLE = ROOT / "docs" / "combinations.md"
HEAD = """# What combines with what

`tests/product/test_combinations.py` sends every pair of these features to a server and looks at what comes back:

{features}.

Both act on the picture, but for these pairs:

"""


def test_every_pair_of_features_acts_or_is_ignored_or_refused(server: Server, update_table: bool) -> None:
    @cache
    def send(*names: str) -> Answer:
        return answer(server, **{"num_inference_steps": 3} | _inputs_of(*names))

    refusals, ignored, alike = dict[str, list[Pair]](), dict[str, list[Pair]](), list[Pair]()
    for first, second in itertools.combinations(FEATURES, 2):
        drawn = [name for name in (first, second) if name not in RETURNED]
        if FEATURES[first].keys() & FEATURES[second].keys():
            alike.append((first, second))
        elif len(drawn) < 2 and (together := send(*drawn, *RETURNED)).status == "succeeded":
            _check_returned(together, *drawn)
            assert not drawn or differ(together.files[-2:], send(*RETURNED).files[-2:]), f"{drawn} is ignored"
        elif reasons := _ignored(both := send(first, second)):
            kept = {k: v for k, v in _inputs_of(first, second).items() if k not in both.metrics["ignored"]}
            assert not differ(both.files, answer(server, **{"num_inference_steps": 3} | kept).files)
            ignored.setdefault(reasons, []).append((first, second))
        elif both.status == "succeeded":
            assert differ(both.files, send(first).files), f"{second} is ignored next to {first}"
            assert differ(both.files, send(second).files), f"{first} is ignored next to {second}"
        else:
            refusals.setdefault(both.error, []).append((first, second))
    alone = {name: send(name) for name in FEATURES}
    assert all(one.status == "succeeded" for one in alone.values()), {name: one.error for name, one in alone.items()}
    assert not any(map(_ignored, alone.values()))
    for refusal in refusals:
        assert refusal.endswith(".") and "Traceback" not in refusal and "failed to make" not in refusal, refusal
    table = _table(refusals, ignored, alike)
    if update_table:
        TABLE.parent.mkdir(exist_ok=True)
        TABLE.write_text(table, encoding="utf-8")
    assert TABLE.read_text(encoding="utf-8") == table, "run the tests with --update-table, and look at what changed"


def _inputs_of(*names: str) -> Inputs:
    return dict(item for name in names for item in FEATURES[name].items())


def _ignored(got: Answer) -> str:
    """What the log says of the inputs that had no effect. Empty if all have one, or if the request was refused."""
    return next((line.removeprefix("ignored: ") for line in got.logs.splitlines() if line.startswith("ignored: ")), "")


def _check_returned(got: Answer, *names: str) -> None:
    """`got` has the map of each control, then two different pictures, all as JPEG."""
    maps = 1 + sum(name.startswith("conditioner_") for name in _inputs_of(*names))
    assert not _ignored(got)
    assert got.endings == [".jpg"] * (maps + 2), (names, got.endings)
    assert differ(got.files[-1:], got.files[-2:-1]), f"{names}: both pictures are the same"
    assert differ(got.files[:1], got.files[-2:-1]), f"{names}: the control map is the picture"


def _table(refusals: dict[str, list[Pair]], ignored: dict[str, list[Pair]], alike: list[Pair]) -> str:
    rows = [["features", "what happens"], ["---", "---"]]
    rows += [[_named(pairs), f"refused: {refusal}"] for refusal, pairs in refusals.items()]
    rows += [[_named(pairs), f"served without {reasons}"] for reasons, pairs in ignored.items()]
    rows += [[_named(alike), "not tried: both set one input"]]
    lines = [f"| {' | '.join(row)} |\n" for row in rows]
    return HEAD.format(features=", ".join(FEATURES)) + "".join(lines)


def _named(pairs: list[Pair]) -> str:
    return "; ".join(f"{first} with {second}" for first, second in pairs)


# ---- no trace, over all features

OTHERS: list[Inputs] = [
    {"conditioner": "scribble", "seed": 9},
    {"scheduler": "K_EULER_ANCESTRAL"},
    {"scheduler": "KLMS", "num_outputs": 2},
    {"disable_safety_checker": True},
    {"guidance_scale": 0, "conditioning_scale": 0},
    {"map_only": True, "conditioner": "scribble"},
    {"prompt": "word " * 100},
    {"image_2": PHOTO, "pose_parts": "all", "prompt_strength": 0.5},
]
REFUSED: list[Inputs] = [
    {"conditioner": "inpaint"},
    {"control_end": 0.01},
    {"mask": url(Image.new("L", (32, 32)))},
    {"image": data_url(b"not a picture")},
    {"image": "data:image/png;base64,AAAA"},
]
CANCELED: list[Inputs] = [{}, FEATURES["mask"], FEATURES["second control"], FEATURES["init_image"]] * 2
CANCELED += [FEATURES["LoRA"] | {"lora_scale": scale} for scale in (0.5, 0.7)]
CANCELED += [FEATURES["go_fast"] | {"num_inference_steps": 8}] * 2
CANCELED += [
    {"upscale": 4, "upscale_strength": 1.0, "num_inference_steps": 2}
] * 2  # most of the time in the second pass


def test_a_walk_over_all_features_leaves_no_trace(server: Server) -> None:
    """The same bytes after each of 30 requests: every feature in pairs, other inputs, refused and cancelled ones.

    Other projects kept a disabled safety checker, a scheduler or a LoRA of one request for the next.
    """
    choose = random.Random(7)
    before = {name: png(server, conditioner=name) for name in ("canny", "scribble")}
    names = choose.sample(sorted(FEATURES), len(FEATURES))
    pairs = [_inputs_of(*names[i : i + 2]) for i in range(0, len(names), 2)]
    steps = [("succeeded", one) for one in OTHERS] + [("failed", one) for one in REFUSED]
    steps += [("canceled", one) for one in CANCELED] + [("succeeded or failed", one) for one in pairs]
    for status, inputs in choose.sample(steps, len(steps)):
        if status == "canceled":
            long = {"image": PHOTO, "num_inference_steps": 100, "num_outputs": 4}
            running = server.start(**sent(**FAST | long | inputs))
            time.sleep(choose.uniform(0, 0.4))
            running.stop()
            got = running.result()
        else:
            got = answer(server, **inputs)
        assert got.status and got.status in status, (inputs, got.error)
        name = choose.choice(sorted(before))
        assert png(server, conditioner=name) == before[name], inputs
