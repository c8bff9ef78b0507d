"""The files of a request are bounded, saved where they are swept, and taken in without starting a thread, which a
cancellation could block for ever."""

import concurrent.futures
import os
import resource
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from cog.types import URLPath
from support import ROOT

from controlnet.serving import input_files
from controlnet.serving.input_files import InputExecutor, take_in_without_threads, use_home


class Input(URLPath):
    """An input whose content is the thread that takes it in."""

    def convert(self) -> threading.Thread:
        if self.source != "good":
            raise {"bad": OSError, "cancelled": KeyboardInterrupt}[self.source]
        return threading.current_thread()


def given(source: str) -> Input:
    return Input(source=source, filename="input", fileobj=None)


def test_an_input_is_taken_in_by_the_thread_that_asks() -> None:
    threads = threading.active_count()
    with InputExecutor(8) as executor:
        taken = executor.submit(given("good").convert)
        assert taken.done() and taken.result() is threading.current_thread()
        assert threading.active_count() == threads
        assert executor.submit(threading.current_thread).result() is not threading.current_thread(), "all else: threads"


def test_a_failed_download_is_the_futures_error() -> None:
    with InputExecutor(8) as executor, pytest.raises(OSError):
        executor.submit(given("bad").convert).result()


def test_a_cancellation_ends_the_request_at_once() -> None:
    with InputExecutor(8) as executor, pytest.raises(KeyboardInterrupt):
        executor.submit(given("cancelled").convert)


def test_only_cogs_server_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = concurrent.futures.ThreadPoolExecutor
    monkeypatch.setattr(concurrent.futures, "ThreadPoolExecutor", usual)  # so that it is put back
    take_in_without_threads()
    assert concurrent.futures.ThreadPoolExecutor is usual
    monkeypatch.setattr(input_files, "server", type("Active", (), {"active": True}))
    take_in_without_threads()
    assert concurrent.futures.ThreadPoolExecutor is InputExecutor


def test_use_home_does_nothing_outside_the_server() -> None:
    before = tempfile.tempdir, resource.getrlimit(resource.RLIMIT_FSIZE)
    use_home()
    assert (tempfile.tempdir, resource.getrlimit(resource.RLIMIT_FSIZE)) == before


def test_use_home_bounds_downloads_and_puts_them_into_the_home(tmp_path: Path) -> None:
    code = """
import os, tempfile
from controlnet import temporary
from controlnet.serving import input_files
input_files.server, input_files.MOST_BYTES = type("server", (), {"active": True}), 1000
input_files.use_home()
file = tempfile.NamedTemporaryFile(delete=False)
assert os.path.dirname(file.name) == str(temporary.home()) and temporary._shared() == temporary.home().parent
try:
    file.write(bytes(2000))
    file.flush()
except OSError as error:
    os._exit(error.errno)
"""
    environ = os.environ | {"TMPDIR": str(tmp_path)}
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environ, timeout=60)
    assert ended.returncode == 27  # EFBIG
