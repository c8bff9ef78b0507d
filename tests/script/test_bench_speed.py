"""script/bench/speed: both sides make the same request, and the page gets the table."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from diffusers import LCMScheduler
from PIL import Image
from speed_clock import ProcessorClock, Times, take_turns
from speed_page import chart, markdown, write
from speed_sides import Case, Plain, Sampling, Setting, denoising_of, latents_of, ours, silent
from speed_table import CASES, ROWS, Bench

from controlnet.bundle import open_bundle
from controlnet.model import Model
from controlnet.settings import Settings

FEW = CASES["fast"]


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(open_bundle(Settings(bundle="tiny")))


@pytest.fixture
def setting(tmp_path: Path) -> Iterator[Setting]:
    with silent():
        yield Setting.prepare(64, 2, ("canny", "hed", "depth"), tmp_path)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_both_sides_make_the_same_request(model: Model, setting: Setting, case: Case) -> None:
    files: list[list[Path]] = []
    plain = Plain(model)
    runs = (lambda: files.append(ours(model, case, setting))), (lambda: files.append(plain(case, setting)))
    made = [latents_of(model, run) for run in runs]
    assert made[0].shape == made[1].shape and len(made[0]) == case.outputs
    assert (made[0] - made[1]).abs().max() <= 1e-4
    assert [Image.open(file).size for file in (*files[0], *files[1])] == [(64, 64)] * 2 * case.outputs


def test_few_steps_are_those_of_the_bundle_with_its_lora_on_both_sides(model: Model, setting: Setting) -> None:
    steps: list[int] = []
    plain, without = Plain(model), Plain(model)
    without.fast_networks = {}
    with patch.object(LCMScheduler, "step", autospec=True, side_effect=LCMScheduler.step) as step:
        made = []
        for run in (
            lambda: ours(model, FEW, setting),
            lambda: plain(FEW, setting),
            lambda: without(FEW, setting),
        ):
            made.append(latents_of(model, run))
            steps.append(step.call_count)
    assert model.bundle.fast and steps == [model.bundle.fast.num_inference_steps * i for i in (1, 2, 3)]
    assert (made[1] - made[2]).abs().max() > 0.1
    assert (made[0] - made[1]).abs().max() <= 1e-4, "diffusers' LoRA is on none of the shared networks"
    assert torch.equal(latents_of(model, lambda: ours(model, FEW, setting)), made[0])


def test_sides_take_turns() -> None:
    order: list[str] = []
    times = take_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2, ProcessorClock())
    assert order == ["a", "b", "b", "a"]
    assert [len(each.runs) for each in times.values()] == [2, 2]
    assert (Times((3, 1, 2)).median, Times((3, 1, 2)).spread) == (2, (1, 3))


def test_denoising_is_timed_from_the_first_step_to_the_decoder(model: Model, setting: Setting) -> None:
    class Count:
        name = "marks"

        def mark(self) -> int:
            return 0

        def seconds(self, *marks: int) -> float:
            return len(marks)

    for run in (lambda: ours(model, CASES["one"], setting), lambda: Plain(model)(CASES["one"], setting)):
        assert denoising_of(model, run, Count()) == 2


def row(name: str, ratio: float, **more: Any) -> dict[str, Any]:
    side = {"median": 2.0 * ratio, "min": 1.0, "max": 3.0}
    return {"name": name, "ours": side, "plain": side | {"median": 2.0}, "ratio": ratio} | more


def test_the_tables_have_ratios_and_differences(model: Model) -> None:
    assert markdown([row("a step", 0.5, latents=2e-6)]).splitlines() == [
        "|  | ours, s | plain diffusers, s | ratio | largest difference of latents |",
        "| --- | --- | --- | --- | --- |",
        "| a step | 1.00 (1.00–3.00) | 2.00 (1.00–3.00) | **0.50** | 2e-06 |",
    ]
    gpu = markdown([row("a step", 0.5, compiled={"median": 1234.5, "min": 0.01234, "max": 3})])
    assert gpu.splitlines()[2].endswith("|  | 1234 (0.0123–3.00) |")
    assert markdown([row("a step", 0.5, latents=0.0)]).endswith("| 0 |")


def test_the_chart_has_a_bar_for_each_row() -> None:
    drawn = chart([row("a < b", 0.5), row("c", 1.3)], "title")
    assert "a &lt; b" in drawn
    widths = [float(width) for width in re.findall(r'width="([\d.]+)" height="18"', drawn)]
    assert len(widths) == 2 and widths[1] / widths[0] == pytest.approx(2.6, abs=0.01)


def test_the_page_gets_the_tables_between_its_marks(model: Model, setting: Setting, tmp_path: Path) -> None:
    result = {"key": "x-cpu", "rows": [row("a", 0.5)]}
    result |= dict.fromkeys(("bundle", "device", "dtype", "side", "steps", "rounds", "clock"), "x")
    result |= dict.fromkeys(("torch", "diffusers", "date"), "x")
    page = tmp_path / "speed.md"
    page.write_text("before\n<!-- x-cpu:begin -->\nold\n<!-- x-cpu:end -->\nafter\n")
    for _ in range(2):
        write(result, tmp_path)
    text = page.read_text()
    assert text.startswith("before\n<!-- x-cpu:begin -->\n`x`") and text.endswith("|\n<!-- x-cpu:end -->\nafter\n")
    assert "old" not in text and text.count("| a |") == 1 and (tmp_path / "speed-x-cpu.svg").exists()
    with pytest.raises(ValueError, match="expected the marks <!-- y-cuda:begin"):
        write(result | {"key": "y-cuda"}, tmp_path)


def test_the_rows_of_the_bench_have_both_sides(model: Model, setting: Setting, monkeypatch) -> None:
    """Also with the exact speedups off, which a row must not switch on for those after it."""
    steps: list[int] = []
    plain = Plain.__call__
    monkeypatch.setattr(
        Plain, "__call__", lambda *given: (steps.append(Sampling.of(model, *given[1:]).steps), plain(*given))[1]
    )
    said: list[str] = []
    state = dict(vars(model.generator))
    bench = Bench(model, setting, 1, said.append)
    made = {name: bench.row(name) for name in ("step", "one", "fast-many")}
    assert steps == [2, 2, 2, 2, 20, 20] and len(said) == 3
    for name, row in made.items():
        assert row["ratio"] == row["ours"]["median"] / row["plain"]["median"] > 0
        assert ("latents" in row) == (name == "one")
    assert made["one"]["latents"] <= 1e-4 and {*made} < {*ROWS}
    assert vars(model.generator).keys() == state.keys() and all(
        vars(model.generator)[key] is state[key] for key in state
    )
    assert torch.is_grad_enabled(), "a run changes no setting of the process"
