"""script/bench/speed: both sides make the same request, one idea at a time is at work, and the page gets the tables."""

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
from speed_ideas import IDEAS, only
from speed_page import chart, markdown, write
from speed_sides import Case, Plain, Sampling, Setting, latents_of, ours, phases_of, silent
from speed_swaps import PlainSwaps, Swaps
from speed_table import CASES, FEW, Bench, step_row

from controlnet.bundle import open_bundle
from controlnet.model import Model
from controlnet.models.controlnets import ControlNets
from controlnet.settings import Settings
from controlnet.speedups.replaced import OWN_CLASS


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(open_bundle(Settings(bundle="tiny")))


@pytest.fixture
def setting(tmp_path: Path) -> Iterator[Setting]:
    with silent():
        yield Setting.prepare(64, 2, ("canny", "hed", "depth"), tmp_path)


@pytest.mark.parametrize("case", [*CASES, FEW], ids=lambda case: case.name)
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
        for run in (lambda: ours(model, FEW, setting), lambda: plain(FEW, setting), lambda: without(FEW, setting)):
            made.append(latents_of(model, run))
            steps.append(step.call_count)
    assert model.bundle.fast and steps == [model.bundle.fast.num_inference_steps * i for i in (1, 2, 3)]
    assert (made[1] - made[2]).abs().max() > 0.1
    assert (made[0] - made[1]).abs().max() <= 1e-4, "diffusers' LoRA is on none of the shared networks"
    assert torch.equal(latents_of(model, lambda: ours(model, FEW, setting)), made[0])


def test_both_sides_change_the_net_in_each_request(model: Model, setting: Setting, monkeypatch) -> None:
    changes: list[str] = []
    made_ready, copied = PlainSwaps._made_ready, ControlNets._copy

    def kept(side: str, change: Any) -> Any:
        return lambda *given: (changes.append(side), change(*given))[1]

    monkeypatch.setattr(PlainSwaps, "_made_ready", kept("plain", made_ready))
    monkeypatch.setattr(ControlNets, "_copy", kept("ours", copied))
    swaps = Swaps(model, setting)
    for sides in (swaps.requests(), swaps.alone()):
        for side, run in sides.items():
            run()
            changes.clear()
            run()
            assert changes == [side] * 2


def test_both_sides_make_the_same_pictures_with_nets_that_change(model: Model, setting: Setting) -> None:
    made = {side: latents_of(model, run) for side, run in Swaps(model, setting).requests().items()}
    assert len(made["ours"]) == 2 and (made["ours"] - made["plain"]).abs().max() <= 1e-4
    assert (made["ours"][0] - made["ours"][1]).abs().max() > 0.01, "the second picture is another net's"


def test_on_a_gpu_plain_diffusers_moves_the_last_net_away_first(model: Model, monkeypatch) -> None:
    moves: list[str] = []

    class Net:
        def __init__(self, name: str) -> None:
            self.name = name

        def to(self, device: object) -> "Net":
            moves.append(f"{self.name} to {device}")
            return self

    monkeypatch.setattr(PlainSwaps, "_loaded", lambda _, name: Net(name))
    monkeypatch.setattr(model.bundle, "device", torch.device("cuda"))
    plain = PlainSwaps(model)
    for names in (["canny"], ["canny"], ["hed"], ["canny"]):
        assert [net.name for net in plain.nets(names)] == names  # type: ignore[attr-defined]
    moved = ["canny to cuda", "canny to cpu", "hed to cuda", "hed to cpu", "canny to cuda"]
    assert moves == moved


def test_sides_take_turns() -> None:
    order: list[str] = []
    times = take_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2, ProcessorClock())
    assert order == ["a", "b", "b", "a"]
    assert [len(each.runs) for each in times.values()] == [2, 2]
    assert (Times((3, 1, 2)).median, Times((3, 1, 2)).spread) == (2, (1, 3))


def test_phases_add_up_to_the_run(model: Model, setting: Setting) -> None:
    class Count:
        name = "marks"
        marks = 0

        def mark(self) -> int:
            self.marks += 1
            return self.marks

        def seconds(self, start: int, end: int) -> float:
            return end - start

    phases = phases_of(model, lambda: ours(model, CASES[0], setting), Count())
    assert vars(phases) == {"before": 1, "denoising": 1, "decoding": 1, "after": 1}


def used(model: Model) -> set[type]:
    return {type(layer) for name in ("unet", "vae") for layer in model.generator.base[name].modules()} & set(OWN_CLASS)


@pytest.mark.parametrize("idea", IDEAS, ids=lambda idea: idea.name)
def test_each_idea_alone_makes_the_same_latents(model: Model, setting: Setting, idea: Any) -> None:
    at_work: list[set[type]] = []
    inputs: list[int] = []
    hook = model.generator.base["unet"].register_forward_pre_hook(
        lambda _, given: (at_work.append(used(model)), inputs.append(len(given[0])))[2:] or None
    )
    try:
        without = latents_of(model, lambda: Plain(model)(CASES[0], setting))
        with only(model.generator, idea):
            alone = latents_of(model, lambda: ours(model, CASES[0], setting))
    finally:
        hook.remove()
    assert (alone - without).abs().max() <= 1e-4
    assert {OWN_CLASS[form] for form in at_work[-1]} <= set(idea.classes)
    assert inputs[-1] == (1 if "both halves" in idea.name or idea.name == "all" else 2)
    assert not used(model)


def row(name: str, ratio: float, **more: Any) -> dict[str, Any]:
    side = {"median": 2.0 * ratio, "min": 1.0, "max": 3.0}
    return {"name": name, "ours": side, "plain": side | {"median": 2.0}, "ratio": ratio} | more


def test_the_tables_have_ratios_and_differences(model: Model) -> None:
    assert markdown([row("a step", 0.5, latents=2e-6)]).splitlines() == [
        "|  | ours, s | plain diffusers, s | ratio | largest difference of latents |",
        "| --- | --- | --- | --- | --- |",
        "| a step | 1.00 (1.00 to 3.00) | 2.00 (1.00 to 3.00) | **0.50** | 2e-06 |",
    ]
    gpu = markdown([row("a step", 0.5, compiled={"median": 1234.5, "min": 0.01234, "max": 3}, floor=0.25)])
    assert gpu.splitlines()[2].endswith("|  | 1234 (0.0123 to 3.00) | 25% |")
    assert markdown([row("a step", 0.5, latents=0.0)]).endswith("| 0 |")
    phases = {side: {"denoising": [4.0, 8.0, 6.0]} for side in ("ours", "plain")}
    assert step_row(phases, 2)["ours"] == {"median": 3.0, "min": 2.0, "max": 4.0}


def test_the_chart_has_a_bar_for_each_row() -> None:
    drawn = chart([row("a < b", 0.5), row("c", 1.3)], "title")
    assert "a &lt; b" in drawn
    widths = [float(width) for width in re.findall(r'width="([\d.]+)" height="18"', drawn)]
    assert len(widths) == 2 and widths[1] / widths[0] == pytest.approx(2.6, abs=0.01)


def test_the_page_gets_the_tables_between_its_marks(model: Model, setting: Setting, tmp_path: Path) -> None:
    result = {"key": "x-cpu", "rows": [row("a", 0.5)], "ideas": [{"name": "none"} | row("", 1)["ours"]]}
    result |= dict.fromkeys(("bundle", "device", "dtype", "side", "steps", "rounds", "clock"), "x")
    result |= dict.fromkeys(("torch", "diffusers", "date"), "x")
    page = tmp_path / "speed.md"
    page.write_text("before\n<!-- x-cpu:begin -->\nold\n<!-- x-cpu:end -->\nafter\n")
    for _ in range(2):
        write(result, tmp_path)
    text = page.read_text()
    assert text.startswith("before\n<!-- x-cpu:begin -->\n`x`") and text.endswith("|\n<!-- x-cpu:end -->\nafter\n")
    assert "old" not in text and text.count("| a |") == 1 and (tmp_path / "speed-x-cpu.svg").exists()
    assert "| b |" in markdown({**result, "rows": [], "start": [row("b", 1.0)]})
    with pytest.raises(ValueError, match="expected the marks <!-- y-cuda:begin"):
        write(result | {"key": "y-cuda"}, tmp_path)


def test_a_row_of_the_bench_has_both_sides(model: Model, setting: Setting) -> None:
    made = Bench(model, setting, 1, lambda line: None)._row(CASES[0])
    assert made["name"] == CASES[0].name and made["latents"] <= 1e-4
    assert made["ratio"] == made["ours"]["median"] / made["plain"]["median"] > 0
    assert torch.is_grad_enabled(), "a run changes no setting of the process"


def test_the_rows_of_few_steps_and_low_memory(model: Model, setting: Setting, monkeypatch) -> None:
    bench, steps = Bench(model, setting, 1, lambda line: None), []
    plain = Plain.__call__
    monkeypatch.setattr(
        Plain, "__call__", lambda *given: (steps.append(Sampling.of(model, *given[1:]).steps), plain(*given))[1]
    )
    few = bench.few_steps()
    assert [row["name"] for row in few] == ["go_fast, diffusers with the same LoRA", "go_fast, diffusers with 20 steps"]
    assert ["latents" in row for row in few] == [True, False] and steps == [4, 4, 20]
    low = bench.low_memory()
    assert [row["name"].split(",")[0] for row in low] == ["low memory"] * 2
    assert ["latents" in row for row in low] == [True, False]
