"""script/bench/command: what is timed, and the table."""

import importlib.util
import os
import sys
from types import ModuleType

import pytest

from controlnet.serving.server import ROOT


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("command_times", ROOT / "script/bench/command_times.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["command_times"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_a_command_is_timed_until_its_first_line_and_its_end(bench: ModuleType) -> None:
    code = "import time; time.sleep(0.2); print('a', flush=True); print('b'); time.sleep(0.4)"
    times = bench.timed([sys.executable, "-c", code], os.environ)
    assert 0.2 <= times.done < 0.6 <= times.ended
    assert 0 < times.processor < times.ended - 0.5


def test_a_command_that_fails_is_not_timed(bench: ModuleType) -> None:
    with pytest.raises(RuntimeError, match="failed with status 3"):
        bench.timed([sys.executable, "-c", "raise SystemExit(3)"], os.environ)


def test_the_table_has_medians_and_differences(bench: ModuleType) -> None:
    runs = {"import": [(3, 4, 5), (1, 2, 3), (2, 9, 4)], "predict": [(4, 5, 6), (3, 4, 5), (9, 9, 9)]}
    measured = {name: bench.medians([bench.Times(*one) for one in each]) for name, each in runs.items()}
    assert bench.table(measured).splitlines() == [
        "| command | seconds | to the end | processor | above the import |",
        "| --- | --- | --- | --- | --- |",
        "| import | 2.00 | 4.00 | 4.00 |  |",
        "| predict | 4.00 | 5.00 | 6.00 | +2.00 |",
    ]
