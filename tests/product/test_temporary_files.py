"""What Cog's real server downloads and leaves on disk, with a predictor that only writes its input back."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from support.picture_files import picture
from support.requests_to_tiny import url
from support.server import Server

PREDICTOR = """
from cog import BasePredictor, Input, Path

from controlnet.pictures.images import open_image
from controlnet.serving import input_files
from controlnet.serving.files import sweep, write_pictures

input_files.MOST_BYTES = 1_000_000


class Predictor(BasePredictor):
    def setup(self):
        input_files.use_home()

    def predict(self, image: Path = Input(description="A picture.")) -> list[Path]:
        sweep(keep=[image])
        return write_pictures([], [open_image(image)], "png", 80)
"""


class Downloads(BaseHTTPRequestHandler):
    """/cut ends early, /endless never ends."""

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.send_response(200)
        if self.path.startswith("/cut"):
            self.send_header("Content-Length", "10000")
        self.end_headers()
        try:
            self.wfile.write(bytes(1000))
            while self.path.startswith("/endless"):
                self.wfile.write(bytes(100_000))
        except OSError:
            pass  # the client has had enough
        self.close_connection = True


@pytest.fixture(name="address")
def address_fixture() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Downloads)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.name != ".claim")


def test_downloads_are_bounded_and_swept_and_the_end_leaves_nothing(tmp_path: Path, address: str) -> None:
    root, temporary = tmp_path / "root", tmp_path / "temporary"
    root.mkdir()
    temporary.mkdir()
    (root / "predict.py").write_text(PREDICTOR)
    sent = url(picture())
    with Server({"CONTROLNET_BUNDLE": "toy", "TMPDIR": str(temporary)}, root) as server:
        assert server.run(image=sent).status == "succeeded"
        assert server.run(image=f"{address}/cut.png").status == "failed"
        assert "File too large" in server.run(image=f"{address}/endless.png").error
        assert len(left(temporary)) == 3  # the picture, and what was downloaded of the others
        assert server.run(image=sent).status == "succeeded"
        assert left(temporary) == ["picture_0.png"]
        os.kill(server.process.pid, signal.SIGTERM)
        server.process.wait(20)
        deadline = time.monotonic() + 10
        while list(temporary.iterdir()) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert list(temporary.iterdir()) == []
