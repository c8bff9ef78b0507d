"""The model as a Python function gives the server's bytes and words, from any thread, until it is closed."""

import gc
import inspect
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support import ROOT
from support.recorded_graphs import Streams, open_recorded, recorded_graphs
from support.requests_to_tiny import CAT, FAST, encoded, url
from support.server import Server

import controlnet.model
from controlnet import open_model
from controlnet.api.opened import OpenModel
from controlnet.request.inputs import InputError
from controlnet.temporary import home

SMALL = CAT.resize((226, 150))
NO_FILES = {".claim"}
"""What lies in the folder for temporary files of a process that has none."""


@pytest.fixture(scope="module")
def model() -> Iterator[OpenModel]:
    with open_model("tiny") as opened:
        yield opened


def test_importing_controlnet_imports_nothing_heavy() -> None:
    code = "import sys, controlnet; sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'PIL', 'cog')))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, cwd=ROOT).returncode == 0


ASKS = [
    {"output_format": "png"},
    {"conditioner": "depth", "return_control_map": True, "num_outputs": 2},
    {"conditioner": "openpose", "return_pose_json": True, "output_format": "jpg", "output_quality": 50},
    {"conditioner": "hed", "map_only": True},
]


@pytest.mark.parametrize("asked", ASKS, ids=lambda asked: asked.get("conditioner", "canny"))
def test_files_have_the_bytes_of_the_servers_answer(model: OpenModel, server: Server, asked: dict) -> None:
    answer = server.run(**(FAST | {"image": url(SMALL)} | asked))
    pictures = model.make(FAST | {"image": SMALL} | asked)
    assert list(pictures.files().values()) == answer.files
    assert len(pictures) == (0 if "map_only" in asked else asked.get("num_outputs", 1))
    assert len(pictures.maps) == ("return_control_map" in asked or "map_only" in asked)
    assert (pictures.poses is not None) == ("return_pose_json" in asked)


def test_metrics_and_seed_are_those_of_the_server(model: OpenModel, server: Server) -> None:
    answer = server.run(**(FAST | {"image": url(SMALL), "low_threshold": 50, "conditioner": "depth"}))
    pictures = model(image=SMALL, low_threshold=50, conditioner="depth", **FAST)
    of_server = {name: value for name, value in answer.metrics.items() if name != "predict_time"}
    timing, of_server["timing"] = pictures.metrics["timing"], pictures.metrics["timing"]
    assert pictures.metrics == of_server
    assert timing.keys() == answer.metrics["timing"].keys() - {"output"}
    assert pictures.seed == FAST["seed"] and pictures.metrics["ignored"] == ["low_threshold"]


def test_errors_have_the_words_of_the_server(model: OpenModel, server: Server) -> None:
    for asked in ({"image": SMALL.resize((100, 10))}, {"image": SMALL, "control_start": 0.8, "control_end": 0.2}):
        answer = server.run(**(FAST | asked | {"image": url(asked["image"])}))
        with pytest.raises(ValueError) as refused:
            model.make(FAST | asked)
        assert str(refused.value) == answer.error


def test_every_way_to_send_a_picture_gives_the_same(model: OpenModel, tmp_path: Path) -> None:
    file = tmp_path / "photo.png"
    SMALL.save(file)
    ways = [SMALL, np.asarray(SMALL), file, str(file), file.read_bytes(), url(SMALL)]
    first, *others = [model.make(FAST | {"image": way}).files() for way in ways]
    assert all(other == first for other in others)


def test_a_name_that_is_no_input_is_refused(model: OpenModel) -> None:
    with pytest.raises(InputError, match=r"There is no input 'promt'; did you mean prompt\?"):
        model.make({"promt": "a house", "image": SMALL})
    with pytest.raises(InputError, match=r"There is no input 'steps'"):
        model("a house", SMALL, steps=3)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("values", "named", "words"),
    [
        ((), {"promt": "a house"}, r"^There is no input 'promt'; did you mean prompt\?$"),
        (("a house",), {}, r"^image: expected an uploaded file, an http\(s\) URL or a data URL; got nothing\.$"),
        ((), {"image": SMALL}, r"^prompt: expected text; got nothing\.$"),
        (
            ("a house", SMALL, "canny", 3),
            {},
            r"^Only prompt, image, conditioner may be given without names; got 4 values",
        ),
        (("a house", SMALL), {"prompt": "a cat"}, r"^prompt is given twice: by its place and by its name\.$"),
    ],
)
def test_a_wrong_call_is_refused_like_a_wrong_request(model: OpenModel, values: tuple, named: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        model(*values, **named)


def test_a_bundle_that_is_not_there_is_refused_before_torch_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom controlnet import open_model\n"
        "for name in ('smal', 'weights/tiny', 'sd15'):\n"
        "    try:\n        open_model(name)\n    except (ValueError, RuntimeError) as error:\n        print(error)\n"
        "sys.exit('torch' in sys.modules)"
    )
    environ = {name: value for name, value in os.environ.items() if not name.startswith("CONTROLNET_")}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    unknown, path, *absent = done.stdout.splitlines()
    assert unknown.startswith("There is no bundle named 'smal'. Bundles with a manifest: sd15, sdxl, tiny")
    assert path == "CONTROLNET_BUNDLE: expected the name of a bundle, such as sd15, got 'weights/tiny'."
    assert absent[0].startswith("The weights of sd15 cannot be used") or (ROOT / "weights/sd15").exists()


def test_a_call_within_a_call_is_refused(model: OpenModel) -> None:
    class Nested:
        """A path that is asked for while the request is made."""

        def __fspath__(self) -> str:
            model(image=SMALL, **FAST)
            return "never"

    with pytest.raises(RuntimeError, match=r"called within a call of its own"):
        model(image=Nested(), **FAST)
    with pytest.raises(RuntimeError, match=r"called within a call of its own"), model._turns.turn():
        model.close()
    assert len(model(image=SMALL, **FAST)) == 1


def test_in_a_fork_in_the_middle_of_a_call_the_model_is_refused(model: OpenModel) -> None:
    """The thread that would release the model is only in the first process."""
    inside, leave = threading.Event(), threading.Event()

    def paint() -> None:
        with model._turns.turn():
            inside.set()
            leave.wait(60)

    thread = threading.Thread(target=paint)
    thread.start()
    inside.wait(60)
    child = os.fork()
    if child == 0:
        try:
            model(image=SMALL, **FAST)
        except RuntimeError as error:
            os._exit(3 if "when this process was forked" in str(error) else 4)
        finally:
            os._exit(5)
    leave.set()
    thread.join(60)
    deadline = time.monotonic() + 60
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < deadline:
        time.sleep(0.05)
    if ended[0] == 0:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        pytest.fail("the call waits for ever")
    assert os.waitstatus_to_exitcode(ended[1]) == 3
    assert len(model(image=SMALL, **FAST)) == 1, "the first process goes on"


def test_save_writes_the_files(model: OpenModel, tmp_path: Path) -> None:
    pictures = model(image=SMALL, return_control_map=True, **FAST)
    saved = pictures.save(tmp_path / "new" / "folder")
    assert [path.name for path in saved] == ["control_map.webp", "picture_0.webp"]
    assert [path.read_bytes() for path in saved] == list(pictures.files().values())


def test_a_call_prints_nothing_and_leaves_no_file(model: OpenModel, capfd: pytest.CaptureFixture[str]) -> None:
    before = {path.name for path in home().iterdir()} | NO_FILES  # other tests of this process have files too
    model(image=SMALL, **FAST)
    with pytest.raises(ValueError):
        model(image=SMALL.resize((9, 9)), **FAST)
    assert capfd.readouterr() == ("", "")
    assert {path.name for path in home().iterdir()} <= before


def test_with_log_it_prints_what_the_server_logs(model: OpenModel, capfd: pytest.CaptureFixture[str]) -> None:
    model._log = True
    try:
        model(image=SMALL, **FAST)
    finally:
        model._log = False
    out, err = capfd.readouterr()
    assert "seed: 1" in out and "100%" in err


def test_threads_are_answered_one_at_a_time(model: OpenModel) -> None:
    """Each thread gets its own picture, and no two requests are in the model at once."""
    seeds, inside, most = range(4), [], []
    made: dict[int, dict[str, bytes]] = {}
    answer = model._model.answer

    def watched(*arguments):
        inside.append(1)
        most.append(len(inside))
        try:
            return answer(*arguments)
        finally:
            inside.pop()

    def work(seed: int) -> None:
        made[seed] = model(image=SMALL, **(FAST | {"seed": seed})).files()

    model._model.answer = watched
    try:
        threads = [threading.Thread(target=work, args=(seed,)) for seed in seeds]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    finally:
        del model._model.answer
    assert most == [1] * len(seeds)
    assert all(made[seed] == model(image=SMALL, **(FAST | {"seed": seed})).files() for seed in seeds)


def test_a_capture_that_two_cancellations_interrupted_is_ended_before_a_map_is_drawn(
    model: OpenModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cancelled() -> None:
        raise KeyboardInterrupt

    drawn_on, draw = [], controlnet.model.draw_controls

    def watched(*given: Any) -> Any:
        drawn_on.append(Streams.current)
        return draw(*given)

    monkeypatch.setattr(controlnet.model, "draw_controls", watched)
    with recorded_graphs():
        graphs = open_recorded()
        monkeypatch.setattr(model._model.generator.speedups, "_graphs", graphs)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(graphs._recorder, "recover", cancelled)
            graphs._recorder.capture(lambda: torch.ones(1).add(1))
        assert Streams.current is not Streams.usual and not gc.isenabled()
        assert model.make(FAST | {"image": SMALL, "map_only": True}).maps
        assert drawn_on == [Streams.usual] and gc.isenabled()


def test_a_closed_model_frees_its_memory_and_says_so() -> None:
    with open_model("tiny") as opened:
        unet = weakref.ref(opened._model.generator.base["unet"])
    gc.collect()
    assert unet() is None
    with pytest.raises(RuntimeError, match=r"The model is closed: open it again with open_model\(\)"):
        opened("a house", SMALL)
    assert "closed" in repr(opened)


def test_help_names_every_input() -> None:
    parameters = inspect.signature(OpenModel.__call__).parameters
    said = inspect.getdoc(OpenModel.__call__) or ""
    assert [name for name in parameters if name != "self" and f"\n{name}: " not in said] == []


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "I;16", "RGB", "RGBA", "CMYK", "F", "YCbCr"])
def test_a_picture_of_any_mode_is_sent_as_it_would_be_in_a_file(model: OpenModel, mode: str, tmp_path: Path) -> None:
    source = SMALL.convert("L") if mode in ("I;16", "F") else SMALL.convert("RGB")
    picture = Image.fromarray(np.asarray(source).astype(np.uint16) * 257) if mode == "I;16" else source.convert(mode)
    file = tmp_path / "picture.tif"
    (picture.convert("RGBA") if mode == "P" else picture).save(file)
    assert len({str(model.make(FAST | {"image": way}).files()) for way in (picture, file)}) == 1


def test_a_photo_opened_with_pillow_is_turned_upright(model: OpenModel, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = tmp_path / "photo.png"
    file.write_bytes(encoded(SMALL, exif=exif))
    assert model.make(FAST | {"image": file}).files() == model.make(FAST | {"image": Image.open(file)}).files()
    assert model.make(FAST | {"image": file})[0].size == (64, 96)
