"""Maps that annotators draw from their network's output, some of them compared with controlnet_aux."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from annotator_weights import make_part
from PIL import Image
from skimage import data

from controlnet.maps.annotators import (
    ANNOTATORS,
    hed,
    hed_scribble,
    lineart,
    lineart_anime,
    mlsd,
    network,
    normal_bae,
    upernet,
)
from controlnet.maps.annotators.depth_anything import depth_map, draw_depth
from controlnet.models.loading import WeightsMismatch

with network.quiet_controlnet_aux():
    from controlnet_aux import HEDdetector, LineartAnimeDetector, LineartDetector, MLSDdetector, NormalBaeDetector
    from controlnet_aux.util import ade_palette

CPU = torch.device("cpu")
AT_OWN_SIZE: Any = {"detect_resolution": 128, "image_resolution": 128}


@cache
def photo() -> Image.Image:
    """Its sides are multiples of 64, to which controlnet_aux rounds. So nothing is resized, and maps can be equal."""
    return Image.fromarray(data.astronaut()[:256, :384]).resize((192, 128))


@pytest.fixture
def network_of(loaded: Callable[[str], Any]) -> Callable[[str], torch.nn.Module]:
    return lambda kind: loaded(kind).args[0]


def same(ours: Image.Image, theirs: Any) -> bool:
    return len(np.unique(np.array(theirs))) > 1 and np.array_equal(np.array(ours), np.array(theirs))


def test_hed_equals_controlnet_aux(network_of: Callable) -> None:
    net = network_of("hed")
    theirs = HEDdetector(net)
    assert same(hed.draw_hed(net, photo(), 128), theirs(photo(), safe=True, **AT_OWN_SIZE))
    assert same(hed.draw_hed(net, photo(), 128, hed_safe=False), theirs(photo(), safe=False, **AT_OWN_SIZE))
    scribble = hed_scribble.draw_hed_scribble(net, photo(), 128)
    assert same(scribble, theirs(photo(), scribble=True, **AT_OWN_SIZE))


@pytest.mark.parametrize("size", [(192, 128), (300, 170), (64, 80)])
def test_hed_has_three_levels_at_any_size(size: tuple[int, int], network_of: Callable) -> None:
    control_map = np.array(hed.draw_hed(network_of("hed"), photo().resize(size), 64))
    assert set(np.unique(control_map)) == {0, 127, 255}


def test_mlsd_equals_controlnet_aux(network_of: Callable) -> None:
    net = network_of("mlsd")
    assert same(mlsd.draw_mlsd(net, photo(), 128), MLSDdetector(net)(photo(), **AT_OWN_SIZE))


def test_normal_bae_equals_controlnet_aux(network_of: Callable) -> None:
    net = network_of("normal_bae")
    small = photo().resize((64, 64))
    theirs = NormalBaeDetector(net)(small, detect_resolution=64, image_resolution=64)
    assert same(normal_bae.draw_normal_bae(net, small, 64), theirs)


def test_line_art_equals_controlnet_aux(network_of: Callable) -> None:
    net = network_of("lineart")
    theirs = LineartDetector(net, coarse_model=None)
    assert same(lineart.draw_lineart(net, photo(), 128), theirs(photo(), **AT_OWN_SIZE))


def test_anime_line_art_equals_controlnet_aux(network_of: Callable) -> None:
    net = network_of("lineart_anime")
    assert same(lineart_anime.draw_lineart_anime(net, photo(), 128), LineartAnimeDetector(net)(photo(), **AT_OWN_SIZE))


def test_line_art_is_white_on_black() -> None:
    paper = np.full((8, 12), 260.0, np.float32)
    paper[:, 5] = -3
    drawn = np.array(lineart.white_lines(paper))
    assert drawn.shape == (8, 12, 3) and drawn[:, 5].min() == 255
    assert not np.delete(drawn, 5, axis=1).any()


@pytest.mark.parametrize("size", [(2048, 64), (64, 2048), (2048, 1024)])
def test_line_art_covers_the_largest_and_longest_pictures(size: tuple[int, int], network_of: Callable) -> None:
    image = photo().resize(size)
    for drawn in (
        lineart.draw_lineart(network_of("lineart"), image, 64),
        lineart_anime.draw_lineart_anime(network_of("lineart_anime"), image, 64),
    ):
        assert drawn.size == size
        rows, columns = np.array(drawn), np.array(drawn).swapaxes(0, 1)
        assert all(border.std() > 0 for border in (rows[:8], rows[-8:], columns[:8], columns[-8:]))


class Recorder(torch.nn.Module):
    """Replaces HED's network and records the size of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.one = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[int, int]] = []

    def forward(self, batch: torch.Tensor) -> list[torch.Tensor]:
        self.seen.append((batch.shape[3], batch.shape[2]))
        return [batch[:, :1] * 0]


def test_networks_see_a_short_side_of_512_by_default() -> None:
    recorder = Recorder()
    for size in ((512, 680), (64, 64), (97, 131), (1024, 2048), (64, 2048)):
        assert hed.draw_hed(recorder, Image.new("RGB", size)).size == size
    assert recorder.seen == [(512, 672), (512, 512), (512, 688), (512, 1024), (64, 2048)]


class AnimeRecorder(Recorder):
    def forward(self, batch: torch.Tensor) -> Any:
        return super().forward(batch)[0]


def test_anime_line_art_is_stretched_up_to_multiples_of_256() -> None:
    recorder = AnimeRecorder()
    for size in ((512, 620), (64, 64), (1024, 2048), (64, 2048)):
        lineart_anime.draw_lineart_anime(recorder, Image.new("RGB", size))
    assert recorder.seen == [(512, 768), (512, 512), (512, 1024), (256, 2048)]


def test_a_pickle_without_counters_of_batch_norm_loads(tmp_path: Path) -> None:
    folder = make_part("annotator/mlsd", tmp_path)
    tensors = torch.load(folder / mlsd.FILE, weights_only=True)
    torch.save({k: v for k, v in tensors.items() if not k.endswith("num_batches_tracked")}, folder / mlsd.FILE)
    loaded = ANNOTATORS["mlsd"].load(lambda part: folder, CPU).args[0].state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


def mlsd_output(*lines: tuple[int, int, float, float, float, float]) -> torch.Tensor:
    """A network's output with a certain centre at (column, row) of each line, and its ends relative to the centre."""
    output = torch.full((1, 9, 64, 64), -20.0)
    for column, row, *ends in lines:
        output[0, 0, row, column] = 5.0
        output[0, 1:5, row, column] = torch.tensor(ends)
    return output


def test_mlsd_turns_centres_and_displacements_into_segments() -> None:
    output = mlsd_output((20, 30, -10.0, 0.0, 10.0, 4.0))
    assert mlsd.line_segments(output).tolist() == [[20.0, 60.0, 60.0, 68.0]]
    assert mlsd.line_segments(mlsd_output((20, 30, 1.0, 1.0, 1.04, 1.04))).shape == (0, 4), "too short"
    assert mlsd.line_segments(mlsd_output()).shape == (0, 4), "no lines"
    assert not np.array(mlsd.draw_segments(np.zeros((0, 4), np.float32), (70, 64))).any()


def test_mlsd_keeps_lines_at_any_size() -> None:
    for size, thickness in (((64, 80), 1), ((512, 600), 1), ((1024, 1024), 2), ((2048, 2048), 4)):
        segments = np.array([[10, 20, size[0] - 10, 20]], np.float32)
        control_map = np.array(mlsd.draw_segments(segments, size))
        assert set(np.unique(control_map)) == {0, 255}
        middle = control_map[:, size[0] // 2, 0] > 0
        assert thickness <= middle.sum() <= thickness + 1
        assert middle[20]


def test_mlsd_thresholds_equal_controlnet_aux(network_of: Callable) -> None:
    net = network_of("mlsd")
    plain = mlsd.draw_mlsd(net, photo(), 128)
    for score, distance in ((0.55, 0.1), (0.1, 3.0)):
        ours = mlsd.draw_mlsd(net, photo(), 128, score, distance)
        theirs = MLSDdetector(net)(photo(), thr_v=score, thr_d=distance, **AT_OWN_SIZE)
        assert np.array_equal(np.array(ours), np.array(theirs))
        assert np.array(ours).sum() < np.array(plain).sum()


def test_depth_uses_the_short_side_or_the_size_of_the_processor() -> None:
    class Sees:
        """Replaces the processor and records its arguments."""

        ensure_multiple_of = 14
        asked: dict

        def __call__(self, images: Image.Image, **asked: Any) -> Any:
            Sees.asked = asked
            raise InterruptedError

    for given, size in ((None, None), (518, {"height": 518, "width": 784}), (100, {"height": 98, "width": 154})):
        with pytest.raises(InterruptedError):
            draw_depth(None, Sees(), photo(), given)
        assert Sees.asked.get("size") == size


def test_near_is_white_in_a_depth_map() -> None:
    nearness = np.tile(np.linspace(2.0, 6.0, 40, dtype=np.float32), (30, 1))  # nearer to the right
    control_map = np.array(depth_map(nearness, (40, 30)))
    assert control_map[:, 0].max() == 0
    assert control_map[:, -1].min() == 255
    assert (np.diff(control_map[7, :, 1].astype(int)) > 0).all()
    assert np.array(depth_map(nearness, (97, 131)))[60, [0, 96], 0].tolist() == [0, 255]


def test_a_flat_depth_map_is_black(recwarn: pytest.WarningsRecorder) -> None:
    control_map = np.array(depth_map(np.full((30, 40), 3.0, np.float32), (80, 60)))
    assert control_map.shape == (60, 80, 3)
    assert not control_map.any()
    assert len(recwarn) == 0


def test_a_metric_depth_model_is_refused(tmp_path: Path) -> None:
    folder = make_part("annotator/depth_anything", tmp_path)
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"relative"', '"metric"'))
    with pytest.raises(WeightsMismatch, match="metric"):
        ANNOTATORS["depth_anything"].load(lambda part: folder, CPU)


def test_segmentation_has_the_colours_of_ade20k() -> None:
    labels = np.arange(150).reshape(10, 15)
    assert np.array(upernet.segmentation_map(labels)).reshape(150, 3).tolist() == ade_palette()
    # Wall, building, sky and person, as in ADE20K's own colour table.
    assert upernet.ade20k_palette()[[0, 1, 2, 12]].tolist() == [[120] * 3, [180, 120, 120], [6, 230, 230], [150, 5, 61]]


def test_labels_are_the_most_likely_class_after_resizing() -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, 150, 9, 7)
    whole = torch.nn.functional.interpolate(logits, (40, 33), mode="bilinear").argmax(dim=1)[0]
    assert np.array_equal(upernet.label_map(logits, (33, 40)), whole.numpy())
    halves = torch.zeros(1, 150, 4, 8)
    halves[:, 149, :, :4], halves[:, 3, :, 4:] = 1, 1
    colours = np.unique(np.array(upernet.segmentation_map(upernet.label_map(halves, (131, 97)))).reshape(-1, 3), axis=0)
    assert colours.tolist() == sorted([ade_palette()[149], ade_palette()[3]])


def test_normals_have_the_colours_of_bae() -> None:
    axes = np.array([[[0, 0, 1], [1, 0, 0], [0, 1, 0]]], np.float32)
    control_map = np.array(normal_bae.normal_map(axes, (3, 1)))
    assert control_map.tolist() == [[[127, 127, 255], [255, 127, 127], [127, 255, 127]]]
    assert np.array(normal_bae.normal_map(np.tile(axes[:, :1], (4, 4, 1)), (97, 131)))[..., 2].min() == 255
