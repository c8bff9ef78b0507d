"""Ray, as a batch uses it: on this machine, or on a cluster that is there."""

import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from controlnet.batch.jobs import BatchError

SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # sends nothing to Ray's makers
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # otherwise it prints on stderr what its log has anyway
    # Otherwise it ends workers while the machine's memory is nearly full, whoever uses it. Theirs does not grow.
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S": str(24 * 3600),  # one job of a large model may take an hour on a CPU
}
OBJECT_STORE = 500_000_000
"""Bytes of shared memory, for what Ray moves between processes of this machine: jobs, not pictures."""
ROOT = Path(__file__).resolve().parents[2]

os.environ |= {name: value for name, value in SETTINGS.items() if name not in os.environ}  # read by `import ray`

import ray  # noqa: E402
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: E402


@contextmanager
def connected(address: str | None, environ: Mapping[str, str]) -> Iterator[None]:
    """Ray for the time of the block: a cluster at an address, or processes of this machine that end with it.

    A program that is connected to Ray stays so. Raises BatchError if Ray cannot be reached or started.
    """
    if ray.is_initialized():
        yield
        return
    with warnings.catch_warnings(), tempfile.TemporaryDirectory(prefix="batch-", ignore_cleanup_errors=True) as logs:
        warnings.simplefilter("ignore")
        if address:
            ours = {name: value for name, value in environ.items() if name.startswith(("CONTROLNET_", "OMP_"))}
            settings = {"address": address, "runtime_env": {"env_vars": ours | {"PYTHONPATH": str(ROOT)}}}
        else:
            settings = {"include_dashboard": False, "object_store_memory": OBJECT_STORE, "_temp_dir": logs}
        try:
            ray.init(logging_level=logging.ERROR, log_to_driver=False, **settings)
        except Exception as error:  # of many kinds, and Exception itself if this machine is too busy
            what = f"Ray at {address} could not be reached" if address else "Ray could not be started"
            raise BatchError(f"{what}: {str(error).splitlines()[0]}") from None
        try:
            yield
        finally:
            ray.shutdown()


def places_for_actors(threads: int | None) -> tuple[int, dict[str, Any]]:
    """How many models the cluster can hold, and what one takes: a GPU, or `threads` cores (a whole machine if None)."""
    resources = ray.cluster_resources()
    if gpus := int(resources.get("GPU", 0)):
        return gpus, {"num_gpus": 1}
    machines = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    cores = min(threads or max(machines), max(machines))
    return max(1, sum(machine // cores for machine in machines)), {"num_cpus": cores}


@ray.remote(num_cpus=0)
class _Switch:
    """Tells the workers on all machines whether the batch is being stopped."""

    def __init__(self) -> None:
        self.on = False

    def turn_on(self) -> None:
        self.on = True

    def is_on(self) -> bool:
        return self.on


def open_switch() -> Any:
    """A _Switch on this machine, which no other one takes along when it is lost."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return _Switch.options(scheduling_strategy=here).remote()
