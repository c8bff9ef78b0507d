"""No request starts a thread: a cancellation in that moment blocks the server (controlnet/serving/input_files.py)."""

from pathlib import Path

import pytest
from support.requests_to_tiny import HALF, OTHER, PHOTO, made
from support.server import Server

REPORT = """
import sys, threading
start = threading.Thread.start
def reported(thread):
    print("started by", threading.current_thread().name, thread, file=sys.stderr, flush=True)
    start(thread)
threading.Thread.start = reported
"""
"""A sitecustomize.py that makes every process print the threads that it starts."""


@pytest.mark.parametrize("low_memory", ["0", "1"])
def test_requests_start_no_thread(tmp_path: Path, low_memory: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(REPORT)
    with Server({"PYTHONPATH": str(tmp_path), "CONTROLNET_LOW_MEMORY": low_memory}) as server:
        assert "started by" in server.logs, "setup() starts some, so this test sees them"
        before = len(server.lines)
        made(server, mask=HALF, conditioner_2="depth", image_2=OTHER, num_outputs=2)
        made(server, conditioner="openpose", init_image=PHOTO, return_control_map=True, return_pose_json=True)
        made(server, reference_image=OTHER, reference_mask=HALF, upscale=1.5)
        made(server, conditioner="depth", map_only=True, image=OTHER)
        assert [text for _, text in server.lines[before:] if "started by" in text] == []
