"""Graphs that a GPU captures: the results of the operations, in any order of requests."""

import gc

import pytest
import torch
from support.cancelling import Cancelled
from torch import nn

from controlnet.speedups.cuda.graphs import AGAIN_AFTER, Graphs

CUDA = torch.device("cuda", 0)


class Network(nn.Module):
    """Like a ControlNet: a list of results and another one, times a scale."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(4, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, 4, 3, padding=1))
        self.cuda().half()

    def forward(self, x: torch.Tensor, conditioning_scale: float = 1.0):
        made = self.layers(x)
        return [made * conditioning_scale, made.mean((2, 3)) * conditioning_scale], made.sin() * conditioning_scale


def flat(result) -> list[torch.Tensor]:
    down, middle = result
    return [*down, middle]


def test_results_are_those_of_the_operations_in_any_order() -> None:
    """All graphs share one pool of memory."""
    graphs, networks = Graphs(CUDA), [Network(64), Network(256)]
    calls = [
        (i % 2, torch.randn(1, 4, 16 * side, 16, device=CUDA).half(), 0.5 + i / 8) for i in range(8) for side in (1, 3)
    ]
    kept = []
    for order in (calls, calls[::-1]):
        for i, x, scale in order:
            kept.append((flat(graphs.of(networks[i])(x, conditioning_scale=scale)), flat(networks[i](x, scale))))
    for made, expected in kept:
        assert all(map(torch.equal, made, expected))
    assert sum(len(own) for own in graphs._captured.values()) == 4


def test_graphs_that_were_freed_are_captured_again() -> None:
    graphs, network = Graphs(CUDA, most_bytes=1), Network(64)
    for side in (1, 2, 1, 2):
        x = torch.randn(1, 4, 16 * side, 16, device=CUDA).half()
        assert all(map(torch.equal, flat(graphs.of(network)(x, conditioning_scale=0.3)), flat(network(x, 0.3))))
        assert sum(len(own) for own in graphs._captured.values()) == 1


def test_a_cancelled_capture_leaves_a_gpu_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs, network = Graphs(CUDA), Network(64)
    x = torch.randn(1, 4, 16, 16, device=CUDA).half()
    expected = flat(network(x, 0.3))
    forward = Network.forward

    def cancelled(self, *args, **named):
        forward(self, *args, **named)
        if torch.cuda.is_current_stream_capturing():
            raise Cancelled

    with monkeypatch.context() as patch:
        patch.setattr(Network, "forward", cancelled)
        with pytest.raises(Cancelled):
            graphs.of(network)(x, conditioning_scale=0.3)
    assert not torch.cuda.is_current_stream_capturing()
    assert all(map(torch.equal, flat(graphs.of(network)(x, conditioning_scale=0.3)), expected))


def test_garbage_is_not_collected_during_a_capture(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """The collector frees graphs in circles of references, which ends a capture (PyTorch's pull request 161037)."""
    graphs, network = Graphs(CUDA), Network(64)
    x = torch.randn(1, 4, 16, 16, device=CUDA).half()
    expected = flat(network(x, 0.3))
    forward, stale = Network.forward, Graphs(CUDA)
    stale.of(network)(x, conditioning_scale=0.3)
    (circle,) = stale._captured[network].values()
    circle.itself = circle  # type: ignore[attr-defined]

    def untidy(self, *args, **named):
        for _ in range(2000):  # more than the collector waits for
            more: list = []
            more.append(more)
        return forward(self, *args, **named)

    monkeypatch.setattr(Network, "forward", untidy)
    thresholds = gc.get_threshold()
    gc.set_threshold(500, 1, 1)
    try:
        stale._captured.clear()
        del circle
        assert all(map(torch.equal, flat(graphs.of(network)(x, conditioning_scale=0.3)), expected))
        assert gc.isenabled()
    finally:
        gc.set_threshold(*thresholds)
    assert len(graphs._captured[network]) == 1 and "CUDA graphs" not in capsys.readouterr().out


def test_tensors_in_a_dict_are_read_again() -> None:
    class Conditioned(nn.Module):
        def forward(self, x: torch.Tensor, added: dict) -> tuple[torch.Tensor]:
            return (x + added["text"],)

    graphs, network, x = Graphs(CUDA), Conditioned(), torch.randn(1, 4, 16, 16, device=CUDA).half()
    for seed in range(3):
        text = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(seed)).half().to(CUDA)
        assert torch.equal(graphs.of(network)(x, added={"text": text})[0], x + text)
    assert len(graphs._captured[network]) == 1


def test_an_operation_that_cannot_be_captured_runs_without_a_graph(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    graphs, network = Graphs(CUDA), Network(64)
    x = torch.randn(1, 4, 16, 16, device=CUDA).half()
    expected = flat(network(x, 0.3))
    forward = Network.forward

    def waits(self, given, conditioning_scale=1.0):
        given.sum().item()  # the CPU cannot wait for a GPU that only records
        return forward(self, given, conditioning_scale)

    with monkeypatch.context() as patch:
        patch.setattr(Network, "forward", waits)
        for _ in range(2):
            made = flat(graphs.of(network)(x, conditioning_scale=0.3))
            assert all(map(torch.equal, made, expected))
    assert capsys.readouterr().out.count("cannot be captured") == 1
    for _ in range(AGAIN_AFTER):
        graphs.begin()
    assert all(map(torch.equal, flat(graphs.of(network)(x, conditioning_scale=0.3)), expected))
    assert not any(isinstance(graph, int) for graph in graphs._captured[network].values()), "it is not captured later"
