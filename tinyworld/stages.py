"""Runs a stage of the training: its plan, its checkpoints, its averaged weights."""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tinyworld.feed import Draw, batches, on_device

EMA = 0.998
DECAY = 0.3
"""Share of a stage's steps in which the rate falls to zero."""


@dataclass(frozen=True)
class Plan:
    """How long a stage trains."""

    steps: int
    batch: int
    rate: float
    seconds: float | None = None
    """After how many it ends, if its steps are not done before."""


def begin_as(module: nn.Module, part: Path | None) -> nn.Module:
    """`module` with the weights of a bundle's part, from which its training continues.

    Tensors that only one of the two has are skipped, and a line says how many. A tensor that has got more rows, such as
    one with a row for each class, keeps its new ones. If a tensor of both has another shape otherwise, no tensor is
    taken and the module is trained from scratch, as if there were no such part.
    """
    if part is None or not (part / "config.json").exists():
        return module
    found = type(module).from_pretrained(part, variant="fp16", torch_dtype=torch.float32).state_dict()
    own = module.state_dict()
    shared = found.keys() & own.keys()
    for name in shared:
        if found[name].shape[1:] == own[name].shape[1:] and len(found[name]) < len(own[name]):
            found[name] = torch.cat([found[name], own[name][len(found[name]) :]])
    if any(found[name].shape != own[name].shape for name in shared):
        print(f"{part.name}: trained from scratch: the part of --start has another shape")
        return module
    print(
        f"{part.name}: continues from --start, {len(own) - len(shared)} tensors new, "
        f"{len(found) - len(shared)} of its left out"
    )
    module.load_state_dict({name: found[name] for name in shared}, strict=False)
    return module


def train_stage(
    name: str,
    plan: Plan,
    modules: dict[str, nn.Module],
    draw: Draw,
    loss_of: Callable[[Any], torch.Tensor],
    device: torch.device,
    folder: Path,
    until: int | None = None,
) -> dict[str, nn.Module]:
    """Train `modules` until the plan's steps are done, or its time is over, and return their averaged (EMA) copies in
    eval mode.

    `draw(generator, batch)` draws what a step needs, in main memory; `loss_of` gets it on the device. AdamW. The rate
    rises for 2% of the steps and falls to zero in the last 30%, so that a plan can be made longer or shorter while it
    runs. `until` stops earlier, at a step that saves a checkpoint (every 50), as if it were interrupted there.
    """
    averaged = {key: copy.deepcopy(module).eval().requires_grad_(False) for key, module in modules.items()}
    parameters = [parameter for module in modules.values() for parameter in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=plan.rate, weight_decay=1e-3, fused=device.type == "cuda")
    file, done, losses = folder / f"{name}.pt", 0, []
    if file.exists():
        state = torch.load(file, map_location=device, weights_only=True)
        done, losses = state["step"], [torch.tensor(loss) for loss in state["losses"]]
        optimizer.load_state_dict(state["optimizer"])
        for key, module in modules.items():
            module.load_state_dict(state["modules"][key])
            averaged[key].load_state_dict(state["averaged"][key])
    began = started = time.monotonic()
    steps = range(done, min(until or plan.steps, plan.steps))
    for step, drawn in zip(steps, batches(name, draw, steps, plan.batch, device), strict=False):
        share = max(step / plan.steps, (time.monotonic() - began) / plan.seconds if plan.seconds else 0)
        for group in optimizer.param_groups:
            group["lr"] = plan.rate * _schedule(step, plan.steps, min(share, 1))
        loss = loss_of(on_device(drawn, device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses.append(loss.detach())  # not its number, for which the processor would wait at each step
        _average(averaged, modules, min(EMA, (step + 1) / (step + 10)))
        over = share >= 1 or step + 1 == plan.steps
        if (step + 1) % 50 == 0 or over:
            recent = [float(each) for each in losses[-50:]]
            pace = (time.monotonic() - started) / len(recent)
            print(f"{name} {step + 1}/{plan.steps} loss {sum(recent) / len(recent):.4f} {pace:.2f} s/step", flush=True)
            started = time.monotonic()
            _save(file, step + 1, [float(each) for each in losses], optimizer, modules, averaged)
        if over:
            break
    return averaged


def _schedule(step: int, steps: int, share: float) -> float:
    """Of the rate. `share` is that of the stage which is over."""
    warm = max(1, steps // 50)
    return min(1.0, (step + 1) / warm, (1 - share) / DECAY)


@torch.no_grad()
def _average(averaged: dict[str, nn.Module], modules: dict[str, nn.Module], keep: float) -> None:
    for key, module in modules.items():
        for old, new in zip(averaged[key].parameters(), module.parameters(), strict=True):
            old.lerp_(new, 1 - keep)


def _save(file: Path, step: int, losses: list, optimizer, modules: dict[str, nn.Module], averaged: dict) -> None:
    state = {"step": step, "losses": losses, "optimizer": optimizer.state_dict()}
    state["modules"] = {key: module.state_dict() for key, module in modules.items()}
    state["averaged"] = {key: module.state_dict() for key, module in averaged.items()}
    partial = file.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(file)


def half(device: torch.device) -> torch.autocast:
    """Multiplications in bfloat16, weights in fp32, where the processor has them: half of the time or less. Elsewhere
    they would be imitated, which takes ten times as long."""
    fast = device.type != "cpu" or torch.cpu._is_avx512_bf16_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=fast)
