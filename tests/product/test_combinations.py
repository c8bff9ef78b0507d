"""What combines with what, and that no request leaves a trace: all features, through the real server."""

import itertools
import random
import time

from PIL import Image
from support import ROOT
from support.requests_to_tiny import FAST, HALF, OTHER, PHOTO, SQUARE, answer, differ, made, sent, url
from support.server import Server

FEATURES: dict[str, dict] = {
    "second control": {"conditioner_2": "depth", "conditioning_scale_2": 0.5},
    "third control": {"conditioner_3": "scribble", "image_3": OTHER, "control_end_3": 0.5},
    "control window": {"control_start": 0.25, "control_end": 0.75},
    "control mode": {"control_mode": "control"},
    "control mask": {"control_mask": HALF},
    "ready-made map": {"preprocess": False},
    "init_image": {"init_image": SQUARE, "prompt_strength": 0.75},
    "mask": {"mask": HALF},
    "inpaint": {"conditioner": "inpaint", "mask": HALF},
    "outpaint": {"outpaint_right": 16},
    "width and height": {"resolution": None, "width": 72, "height": 96},
    "resize_mode": {"resolution": None, "width": 72, "height": 64, "resize_mode": "fill"},
    "no guidance": {"guidance_scale": 1},
    "several outputs": {"num_outputs": 2},
    "another scheduler": {"scheduler": "HeunDiscrete"},
    "the map returned": {"return_control_map": True},
    "detect_resolution": {"detect_resolution": 256},
    "thresholds": {"low_threshold": 20, "high_threshold": 60},
    "clip_skip": {"clip_skip": 2},
    "jpg": {"output_format": "jpg"},
}
TABLE = ROOT / "docs" / "combinations.md"
HEAD = """# What combines with what

Made by `tests/product/test_combinations.py`, which sends every pair to a server and looks at what comes back. ✓: both
act on the picture. •: both are values of one input, so only one can be sent. A number: refused, with the words below.
"""


def test_every_pair_acts_together_or_is_refused_with_one_sentence(server: Server, update_table: bool) -> None:
    alone = {name: answer(server, **inputs) for name, inputs in FEATURES.items()}
    assert all(one.status == "succeeded" for one in alone.values()), {k: v.error for k, v in alone.items()}
    refusals: list[str] = []
    cells: dict[tuple[str, str], str] = {}
    for first, second in itertools.combinations(FEATURES, 2):
        if FEATURES[first].keys() & FEATURES[second].keys():
            cells[first, second] = "•"
            continue
        both = answer(server, **FEATURES[first], **FEATURES[second])
        if both.status != "succeeded":
            told = both.error
            assert told.endswith(".") and "Traceback" not in told and "failed to make" not in told, (
                first,
                second,
                told,
            )
            refusals += [told] if told not in refusals else []
            cells[first, second] = str(refusals.index(told) + 1)
            continue
        assert differ(both.files, alone[first].files), f"{second} is ignored beside {first}"
        assert differ(both.files, alone[second].files), f"{first} is ignored beside {second}"
        cells[first, second] = "✓"
    table = _table(cells, refusals)
    if update_table:
        TABLE.parent.mkdir(exist_ok=True)
        TABLE.write_text(table, encoding="utf-8")
    assert TABLE.read_text(encoding="utf-8") == table, "run the tests with --update-table, and look at what changed"


def _table(cells: dict[tuple[str, str], str], refusals: list[str]) -> str:
    names = list(FEATURES)
    rows = [["", *names[1:]], ["---"] * len(names)]
    for i, first in enumerate(names[:-1]):
        rows.append([first, *[""] * i, *(cells[first, second] for second in names[i + 1 :])])
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([HEAD, *lines, "", *(f"{number}. {told}" for number, told in enumerate(refusals, 1)), ""])


# ---- no trace, over all features


def test_a_walk_over_all_features_leaves_no_trace(server: Server) -> None:
    """A-B-A byte for byte: 40 requests, single features and pairs, with failures and cancellations among them."""
    choose = random.Random(7)
    before = made(server)
    black = url(Image.new("L", (32, 32)))
    faults: list[dict] = [{"image_2": PHOTO}, {"control_end": 0.01}, {"mask": black}]
    faults.append({"image": "data:image/png;base64,AAAA"})
    for step in range(40):
        kind = choose.choice(["one", "pair", "fault", "cancel"])
        if kind == "fault":
            assert answer(server, **choose.choice(faults)).status == "failed"
        elif kind == "cancel":
            long = FEATURES[choose.choice(["mask", "second control", "init_image"])] | {"num_inference_steps": 100}
            running = server.start(**sent(**(FAST | {"image": PHOTO, "num_outputs": 4} | long)))
            time.sleep(choose.uniform(0, 0.4))
            running.stop()
            assert running.result().status == "canceled"
        else:
            drawn = choose.sample(sorted(FEATURES), 1 if kind == "one" else 2)
            answer(server, **dict(item for name in drawn for item in FEATURES[name].items()))
        if step % 2:
            assert made(server) == before, (step, kind)
