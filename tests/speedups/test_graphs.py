"""CUDA graphs of networks, recorded without a GPU (tests/support/recorded_graphs.py)."""

import gc
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from support.cancelling import Cancelled, TooFew, cancelled_at
from support.recorded_graphs import RecordedGraph, Streams, recorded_graphs
from torch import nn

from controlnet.speedups import kept as kept_module
from controlnet.speedups.cuda import graphs as graphs_module
from controlnet.speedups.cuda import recorder as recorder_module
from controlnet.speedups.cuda.graphs import AGAIN_AFTER, Captured, Graphs, open_graphs
from controlnet.speedups.kept import kept

CPU = torch.device("cpu")


class Layer(nn.Module):
    """Counts how often it runs."""

    runs = 0

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        self.runs += 1
        return words * 2


class Network(nn.Module):
    """Returns what a ControlNet returns, and counts what Python runs."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0), requires_grad=False)
        self.layer = Layer()
        self.calls = 0

    def forward(self, x: torch.Tensor, words: torch.Tensor, conditioning_scale: float = 1.0, flag: bool = False):
        self.calls += 1
        made = x * self.weight + kept(words, self.layer, self.layer.forward)
        return [made * conditioning_scale, made.sum() * conditioning_scale], (made + flag) * conditioning_scale


@pytest.fixture(autouse=True)
def recorded() -> Iterator[list[RecordedGraph]]:
    """All graphs but the first of each Graphs, which keeps the pool."""
    with recorded_graphs() as made, torch.no_grad():
        yield made


@pytest.fixture
def network() -> Network:
    return Network()


def numbers(*values: float) -> torch.Tensor:
    return torch.tensor(values)


def expected(x: torch.Tensor, words: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    return (x * 2 + words * 2) * scale


def test_a_cpu_has_no_graphs() -> None:
    assert open_graphs(CPU) is None


def test_a_second_call_runs_no_python_and_reads_new_numbers(network: Network, recorded: list[RecordedGraph]) -> None:
    graphed = Graphs(CPU).of(network)
    words = numbers(5, 6)
    for x in (numbers(1, 2), numbers(3, 4)):
        (first, total), last = graphed(x, words, conditioning_scale=1.0)
        assert torch.equal(first, expected(x, words)) and total == first.sum() and torch.equal(last, first)
    assert len(recorded) == 1 and network.calls == 3, "two calls before the capture, and that of the capture"


def test_results_are_copies(network: Network) -> None:
    graphed = Graphs(CPU).of(network)
    words = numbers(5, 6)
    _, first = graphed(numbers(1, 2), words, conditioning_scale=1.0)
    _, second = graphed(numbers(3, 4), words, conditioning_scale=1.0)
    assert torch.equal(first, numbers(12, 16)) and torch.equal(second, numbers(16, 20))


def test_two_scales_give_two_results_from_one_graph(network: Network, recorded: list[RecordedGraph]) -> None:
    graphed = Graphs(CPU).of(network)
    x, words = numbers(1, 2), numbers(5, 6)
    for scale in (0.5, 2.0, 0.25):
        (first, _), last = graphed(x, words, conditioning_scale=scale)
        assert torch.equal(first, expected(x, words, scale)) and torch.equal(last, first)
    assert len(recorded) == 1


def test_what_is_kept_with_an_input_is_renewed_with_it_only(network: Network) -> None:
    graphed = Graphs(CPU).of(network)
    words, others = numbers(5, 6), numbers(7, 8)
    counts = []
    for given in (words, words, others, others, words):
        _, last = graphed(x := numbers(1, 2), given, conditioning_scale=1.0)
        assert torch.equal(last, expected(x, given))
        counts.append(network.layer.runs)
    # Once before the capture, once when the first words are read, then for each change.
    assert counts == [2, 2, 3, 3, 4]


def test_an_input_that_was_changed_in_place_is_read_again(network: Network) -> None:
    graphed = Graphs(CPU).of(network)
    x, words = numbers(1, 2), numbers(5, 6)
    graphed(x, words, conditioning_scale=1.0)
    words += 1
    x *= 3
    _, last = graphed(x, words, conditioning_scale=1.0)
    assert torch.equal(last, expected(numbers(3, 6), numbers(6, 7)))


def test_another_tensor_in_the_place_of_a_freed_one_is_read(network: Network) -> None:
    graphed = Graphs(CPU).of(network)
    for value in range(20):
        _, last = graphed(numbers(value, 1), numbers(5, 6), conditioning_scale=1.0)
        assert last[0] == 2 * value + 10


@pytest.mark.parametrize(
    "other",
    [
        lambda x, words: ((x.repeat(2), words.repeat(2)), {}),
        lambda x, words: ((x.double(), words), {}),
        lambda x, words: ((x, words), {"flag": True}),
    ],
    ids=["shape", "dtype", "argument"],
)
def test_another_kind_of_call_has_a_graph_of_its_own(network: Network, recorded: list[RecordedGraph], other) -> None:
    graphed = Graphs(CPU).of(network)
    x, words = numbers(1, 2), numbers(5, 6)
    graphed(x, words, conditioning_scale=1.0)
    args, named = other(x, words)
    _, last = graphed(*args, conditioning_scale=1.0, **named)
    assert torch.equal(last, network(*args, **named)[1]) and len(recorded) == 2


class Conditioned(nn.Module):
    """Takes tensors in dicts, as SDXL's networks do, and a setting among them."""

    def forward(self, x: torch.Tensor, added: dict) -> tuple[torch.Tensor]:
        return (x + added["text"][..., 500:501] + added["more"]["time"] * added["factor"],)


def added(text: float, time: float, factor: float = 1.0) -> dict:
    """Tensors whose representation leaves out most of the numbers, this one too."""
    middle = torch.zeros(1, 2000)
    middle[:, 500] = text
    return {"text": middle, "more": {"time": numbers(time)}, "factor": factor}


def test_tensors_in_dicts_are_read_again(recorded: list[RecordedGraph]) -> None:
    graphs, network, x = Graphs(CPU), Conditioned(), torch.ones(1, 1)
    for text, time in ((1, 10), (2, 10), (2, 20)):
        given = added(text, time)
        assert graphs.of(network)(x, given)[0] == 1 + text + time
        other_order = {"more": given["more"], "factor": 1.0, "text": given["text"]}
        assert graphs.of(network)(x, added=other_order)[0] == 1 + text + time
        assert graphs.of(network)(x, other_order)[0] == 1 + text + time
    given["text"].fill_(7)
    assert graphs.of(network)(x, given)[0] == 1 + 7 + 20
    assert len(recorded) == 2, "one for the dict in its place, one for its name, in any order of their items"
    assert graphs.of(network)(x, added(1, 10, factor=3.0))[0] == 1 + 1 + 30
    assert len(recorded) == 3, "a number in a dict is part of the graph"


def test_a_call_that_the_text_of_its_arguments_does_not_tell_has_no_graph(recorded: list[RecordedGraph]) -> None:
    network = nn.Identity()
    network.forward = lambda x, table: x + float(table[500])
    graphed = Graphs(CPU).of(network)
    for value in (1, 2):
        table = np.zeros(2000)
        table[500] = value
        assert "..." in repr(table) and graphed(numbers(1.0), table) == 1 + value
    assert not recorded


@pytest.mark.parametrize(
    ("result", "values"),
    [
        (lambda x: {"down": [x, x + 1], "middle": None}, lambda made: [*made["down"], made["middle"]]),
        (lambda x: UNet2DConditionOutput(sample=x), lambda made: [made.sample, made["sample"]]),
        (lambda x: (None, [x], {"one": x}), lambda made: [made[0], *made[1], made[2]["one"]]),
    ],
    ids=["dict", "diffusers' own", "nested"],
)
def test_results_have_the_form_of_the_networks(recorded: list[RecordedGraph], result, values) -> None:
    network = nn.Identity()
    network.forward = result
    graphed = Graphs(CPU).of(network)
    for value in (1.0, 2.0):
        made, expected = graphed(numbers(value)), result(numbers(value))
        assert type(made) is type(expected) and str(values(made)) == str(values(expected))
    assert len(recorded) == 1


def test_another_layout_has_a_graph_of_its_own(network: Network, recorded: list[RecordedGraph]) -> None:
    """PyTorch chooses kernels by the layout, so a picture's bytes would depend on which layout came first."""
    graphed, x = Graphs(CPU).of(network), torch.ones(1, 8, 4, 4)
    for layout, graphs in ((torch.contiguous_format, 1), (torch.channels_last, 2), (torch.contiguous_format, 2)):
        graphed(x.to(memory_format=layout), torch.ones(1), conditioning_scale=1.0)
        assert len(recorded) == graphs


def test_large_pictures_have_no_graph(network: Network, recorded: list[RecordedGraph]) -> None:
    graphed = Graphs(CPU).of(network)
    for batch, side, graphs in ((2, 129, 0), (9, 64, 0), (2, 128, 1), (8, 64, 2)):
        words = torch.ones(batch, 1, 1, 1)
        _, last = graphed(torch.ones(1, 4, side, side), words, conditioning_scale=0.5)
        assert last[0, 0, 0, 0] == 2 and len(recorded) == graphs


def test_a_graph_goes_with_its_network() -> None:
    graphs, network = Graphs(CPU), Network()
    graphs.of(network)(numbers(1, 2), numbers(5, 6), conditioning_scale=1.0)
    assert len(graphs._captured) == 1
    del network
    assert len(graphs._captured) == 0, "a graph would read the weights of a network that is freed"


def test_the_least_recently_used_graphs_are_freed(network: Network, recorded: list[RecordedGraph]) -> None:
    graphs = Graphs(CPU, most_bytes=130)  # those of 32, 52 and 72 bytes do not fit
    graphed = graphs.of(network)
    calls = [(torch.ones(1, 2), torch.ones(length, 1)) for length in (1, 2, 3)]
    for x, words in (calls[0], calls[1], calls[0], calls[2]):
        graphed(x, words, conditioning_scale=1.0)
    sizes = [graph.nbytes for own in graphs._captured.values() for graph in own.values() if graph]
    assert len(recorded) == 3 and len(sizes) == 2 and sum(sizes) <= 130
    graphed(*calls[0], conditioning_scale=1.0)
    assert len(recorded) == 3, "the first was used after the second, so the second was freed"
    graphed(*calls[1], conditioning_scale=1.0)
    assert len(recorded) == 4


def test_a_network_whose_graph_differs_runs_without(network: Network, monkeypatch, capsys) -> None:
    replay = RecordedGraph.replay

    def wrong(graph: RecordedGraph) -> None:
        replay(graph)
        graph._operations[-1][3][0].add_(1)

    monkeypatch.setattr(RecordedGraph, "replay", wrong)
    graphed = Graphs(CPU).of(network)
    for x in (numbers(1, 2), numbers(3, 4)):
        _, last = graphed(x, words := numbers(5, 6), conditioning_scale=0.5)
        assert torch.equal(last, expected(x, words, 0.5))
    assert capsys.readouterr().out.count("the results of a Network differ, so it runs without") == 1


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (torch.OutOfMemoryError(), "no memory for that of a Network"),
        (RuntimeError("odd"), "Network cannot be captured.*odd"),
        (None, "the results of a Network differ"),
    ],
    ids=["memory", "other", "results"],
)
def test_a_failed_capture_is_tried_again_some_requests_later(
    network: Network, recorded: list[RecordedGraph], monkeypatch, capsys, error: Exception | None, line: str
) -> None:
    begin, replay, failed = RecordedGraph.capture_begin, RecordedGraph.replay, []

    def fails(graph: RecordedGraph, **named: object) -> None:
        failed.append(graph)
        if error is not None:
            raise error
        begin(graph, **named)

    def wrong(graph: RecordedGraph) -> None:
        replay(graph)
        if graph in failed:
            graph._operations[-1][3][0].add_(1)

    graphs, words = Graphs(CPU), numbers(5, 6)
    monkeypatch.setattr(RecordedGraph, "replay", wrong)
    monkeypatch.setattr(RecordedGraph, "capture_begin", fails)
    for request in range(3 * AGAIN_AFTER):
        graphs.begin()
        if request == 2 * AGAIN_AFTER:
            monkeypatch.setattr(RecordedGraph, "capture_begin", begin)
            assert failed
        for step in range(2):
            _, last = graphs.of(network)(x := numbers(request, step), words, conditioning_scale=0.5)
            assert torch.equal(last, expected(x, words, 0.5))
    assert len(failed) == 2, "it is tried in the first request, 20 later, and then it succeeds"
    (graph,) = graphs._captured[network].values()
    assert isinstance(graph, Captured) and graph._graph.replays > 2 * AGAIN_AFTER
    printed = capsys.readouterr().out
    assert len(re.findall(f"CUDA graphs: {line}", printed)) == printed.count("\n") == 2
    assert f"without for {AGAIN_AFTER} requests" in printed


def test_without_memory_for_a_graph_the_request_tries_no_other(network: Network, monkeypatch, recorded) -> None:
    def fails(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError

    graphs, words, other = Graphs(CPU), numbers(5, 6), Network()
    with monkeypatch.context() as patch:
        patch.setattr(RecordedGraph, "capture_begin", fails)
        graphs.of(network)(numbers(1, 2), words, conditioning_scale=1.0)
    graphs.of(other)(numbers(1, 2), words, conditioning_scale=1.0)
    assert not recorded and other.calls == 1
    graphs.begin()
    graphs.of(other)(numbers(1, 2), words, conditioning_scale=1.0)
    assert len(recorded) == 1, "the next request may have the memory"


@pytest.mark.parametrize("was_on", [True, False])
def test_the_garbage_collector_rests_during_a_capture(network: Network, monkeypatch, was_on: bool) -> None:
    """It could free a graph, which ends the capture: github.com/pytorch/pytorch/pull/161037."""
    forward, collected = Network.forward, []

    def untidy(self, *args, **named):
        for _ in range(100):
            circle: list = []
            circle.append(circle)
        return forward(self, *args, **named)

    def note(phase: str, _: object) -> None:
        collected.append(Streams.current.captures is not None)

    monkeypatch.setattr(Network, "forward", untidy)
    thresholds = gc.get_threshold()
    gc.callbacks.append(note)
    gc.set_threshold(10)
    try:
        if not was_on:
            gc.disable()
        Graphs(CPU).of(network)(numbers(1, 2), numbers(5, 6), conditioning_scale=1.0)
        assert gc.isenabled() == was_on
    finally:
        gc.enable()
        gc.set_threshold(*thresholds)
        gc.callbacks.remove(note)
    assert not any(collected) and bool(collected) == was_on


@pytest.mark.parametrize("call", [1, 2, 3], ids=["before", "before again", "in the capture"])
def test_a_cancelled_capture_leaves_nothing(network, recorded, monkeypatch, call: int) -> None:
    forward = Network.forward

    def cancelled(self, *args, **named):
        result = forward(self, *args, **named)
        if self.calls == call:
            raise Cancelled
        return result

    monkeypatch.setattr(Network, "forward", cancelled)
    graphs = Graphs(CPU)
    x, words = numbers(1, 2), numbers(5, 6)
    with pytest.raises(Cancelled):
        graphs.of(network)(x, words, conditioning_scale=1.0)
    assert Streams.current is Streams.usual and not any(graphs._captured.values())
    _, last = graphs.of(network)(x, words, conditioning_scale=1.0)
    assert torch.equal(last, expected(x, words))


def test_a_request_cancelled_between_an_input_and_what_is_kept_with_it(network: Network, monkeypatch) -> None:
    graphs = Graphs(CPU)
    words, others = numbers(5, 6), numbers(7, 8)
    graphs.of(network)(x := numbers(1, 2), words, conditioning_scale=1.0)
    with monkeypatch.context() as patch:
        patch.setattr("controlnet.speedups.cuda.graphs.renew", lambda _: (_ for _ in ()).throw(Cancelled))
        with pytest.raises(Cancelled):
            graphs.of(network)(x, others, conditioning_scale=1.0)
    for given in (words, others):
        _, last = graphs.of(network)(x, given, conditioning_scale=1.0)
        assert torch.equal(last, expected(x, given))


@pytest.mark.parametrize("is_first", [True, False], ids=["capture", "replay"])
def test_cancelling_at_any_point_changes_no_later_request(is_first: bool) -> None:
    words, others = numbers(5, 6), numbers(7, 8)
    for instruction in range(1, 9_999):
        graphs, network = Graphs(CPU), Network()
        if not is_first:
            graphs.of(network)(numbers(1, 2), words, conditioning_scale=1.0)
        try:
            with cancelled_at(instruction, graphs_module, recorder_module, kept_module):
                graphs.of(network)(x := numbers(3, 4), others, conditioning_scale=0.5)
        except TooFew:
            break
        assert gc.isenabled() and Streams.current is Streams.usual, instruction
        graphs.begin()
        for given in (words, others):
            _, last = graphs.of(network)(x := numbers(1, 2), given, conditioning_scale=1.0)
            assert torch.equal(last, expected(x, given)), instruction
        (own,) = graphs._captured.values()
        assert all(isinstance(graph, Captured) for graph in own.values()), f"{instruction}: the network has no graph"
    assert 100 < instruction < 9_999


def test_cancelling_a_failing_capture_at_any_point_brings_back_the_garbage_collector(monkeypatch) -> None:
    def fails(*_: object, **__: object) -> None:
        assert not gc.isenabled()
        raise RuntimeError("odd")

    graphs, network, x = Graphs(CPU), Network(), numbers(3, 4)
    monkeypatch.setattr(RecordedGraph, "capture_end", fails)
    monkeypatch.setattr(RecordedGraph, "capture_begin", lambda *_, **__: None)

    def cancelled() -> int:
        for instruction in range(1, 9_999):
            has_failed = False
            try:
                with torch.no_grad(), cancelled_at(instruction, recorder_module):
                    graphs._recorder.capture(lambda: network(x, x))
            except RuntimeError:
                has_failed = True  # before the instruction
            assert gc.isenabled() and Streams.current is Streams.usual, instruction
            if has_failed:
                return instruction
        return 9_999

    # In a thread that ends: if a cancellation comes while an error is handled, Python makes that error the context of
    # all later ones of the thread.
    with ThreadPoolExecutor(1) as thread:
        assert 50 < thread.submit(cancelled).result() < 9_999


def test_a_network_in_two_places_keeps_what_belongs_to_each(network: Network, recorded: list[RecordedGraph]) -> None:
    graphs, words, others = Graphs(CPU), numbers(5, 6), numbers(7, 8)
    places = [graphs.of(network), graphs.of(network, 1)]
    for step in range(4):
        for graphed, given in zip(places, (words, others), strict=True):
            _, last = graphed(x := numbers(step, 2), given, conditioning_scale=1.0)
            assert torch.equal(last, expected(x, given))
    assert len(recorded) == 2 and network.layer.runs == 4, "once before each capture and once for its first inputs"


def test_parts_of_pictures_of_any_size_have_one_graph(network: Network, recorded: list[RecordedGraph]) -> None:
    graphed = Graphs(CPU).of(network)
    for side in (5, 6, 7):
        whole = torch.arange(4.0 * side * side).view(1, 4, side, side)
        part = whole[..., 1:4, 1:4]
        _, last = graphed(part, torch.ones(1), conditioning_scale=1.0)
        assert torch.equal(last, part * 2 + 2)
    assert len(recorded) == 1
