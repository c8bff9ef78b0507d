"""Replicate's HTTP API in front of a real server of Cog with a toy predictor, without the page."""

import base64
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from support import browser, toy_predictor
from support.server import Server

from playground.pictures import File
from playground.replicate_api.shelf import Posted, Prediction, Shelf

SMALL = {"version": "abc", "input": {"prompt": "hello"}}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root = toy_predictor.write(tmp_path_factory.mktemp("toy"))
    with Server(toy_predictor.ENVIRON, root) as server, browser.playground(server.url, "--no-page") as url:
        yield url


def call(url: str, method: str = "GET", body: Any = None, **headers: str) -> tuple[int, Any]:
    content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(url, content, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            read, status = response.read(), response.status
            is_json = response.headers.get_content_type() == "application/json"
    except urllib.error.HTTPError as error:
        read, status, is_json = error.read(), error.code, True
    return status, json.loads(read) if is_json and read else read


def create(api: str, wait: bool = True, **inputs: Any) -> Any:
    headers = {"Prefer": "wait"} if wait else {}
    status, prediction = call(f"{api}/v1/predictions", "POST", SMALL | {"input": {"prompt": "x"} | inputs}, **headers)
    assert status == 201, prediction
    return prediction


def ended(api: str, prediction: Any) -> Any:
    deadline = time.monotonic() + 60
    while prediction["status"] in ("starting", "processing"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
        prediction = call(prediction["urls"]["get"])[1]
    return prediction


def test_a_prediction_that_is_waited_for(api: str) -> None:
    made = create(api, prompt="hello", count=2)
    assert made["status"] == "succeeded" and made["version"] == "abc" and made["error"] is None
    assert made["input"] == {"prompt": "hello", "count": 2}
    assert [call(url) for url in made["output"]] == [(200, b"hello")] * 2
    assert made["output"][0].startswith(f"{api}/delivery/{made['id']}/") and made["metrics"]["predict_time"] >= 0
    assert all(made[f"{event}_at"] for event in ("created", "started", "completed"))
    listed = call(f"{api}/v1/predictions")[1]
    assert listed["results"][0]["id"] == made["id"] and listed["next"] is None
    assert call(f"{api}/v1/predictions/{made['id']}")[1] == made


def test_one_that_is_polled_has_logs_and_progress(api: str) -> None:
    made = ended(api, create(api, wait=False, mode="bar", seconds=0.5))
    assert made["status"] == "succeeded" and "100%|###| 2/2" in made["logs"]


def test_many_at_once_wait_for_the_one_slot(api: str) -> None:
    """Cog's server answers 409 to all but one of them."""
    begun = [create(api, wait=False, prompt=str(n), seconds=0.05) for n in range(6)]
    done = [ended(api, prediction) for prediction in begun]
    assert [call(prediction["output"][0])[1] for prediction in done] == [str(n).encode() for n in range(6)]
    assert sorted(done, key=lambda prediction: prediction["started_at"]) == done, "in their order"


def test_one_is_cancelled_while_it_runs_and_one_while_it_waits(api: str) -> None:
    running, waiting = create(api, wait=False, seconds=60), create(api, wait=False)
    for prediction in (waiting, running):
        begun = time.monotonic()
        status, answer = call(prediction["urls"]["cancel"], "POST")
        assert (status, answer["status"]) == (200, "canceled") and time.monotonic() - begun < 15
    assert create(api)["status"] == "succeeded", "the slot is free again"
    assert call(running["urls"]["cancel"], "POST")[1]["status"] == "canceled"


def test_after_the_time_to_wait_it_is_called_starting(api: str) -> None:
    """The clients' run() takes any other word for the end."""
    body = SMALL | {"input": {"prompt": "x", "seconds": 3}}
    status, prediction = call(f"{api}/v1/predictions", "POST", body, Prefer="wait=1")
    assert (status, prediction["status"]) == (202, "starting")
    assert ended(api, prediction)["status"] == "succeeded"


def test_wrong_inputs_are_refused_and_a_failure_keeps_its_sentence(api: str) -> None:
    status, problem = call(f"{api}/v1/predictions", "POST", {"version": "abc", "input": {"count": 9}})
    assert status == 422 and "- input.prompt: " in problem["detail"] and "- input.count: " in problem["detail"]
    failed = create(api, mode="fail")
    assert failed["status"] == "failed" and failed["error"].endswith("send one of at least 16 pixels.")
    for body in (b"{", [], {"input": {}}, {"version": "abc", "input": []}):
        assert call(f"{api}/v1/predictions", "POST", body)[0] == 422


def test_posted_files_go_on_as_data_urls(api: str) -> None:
    head = 'Content-Disposition: form-data; name="content"; filename="a.txt"\r\nContent-Type: text/plain'
    form = f"--B\r\n{head}\r\n\r\nfrom a file\r\n--B--\r\n".encode()
    status, posted = call(f"{api}/v1/files", "POST", form, Content_Type="multipart/form-data; boundary=B")
    assert (status, posted["name"], posted["content_type"], posted["size"]) == (201, "a.txt", "text/plain", 11)
    made = create(api, image=posted["urls"]["get"])
    assert call(made["output"][0])[1] == b"from a file"
    assert call(create(api, image=made["output"][0])["output"][0])[1] == b"from a file", "an output is an input too"
    assert call(f"{api}/v1/files/{posted['id']}/download")[1] == b"from a file"
    assert [each["id"] for each in call(f"{api}/v1/files")[1]["results"]] == [posted["id"]]
    assert call(posted["urls"]["get"], "DELETE")[0] == 204 and call(posted["urls"]["get"])[0] == 404
    assert call(f"{api}/v1/files", "POST", b"", Content_Type="multipart/form-data; boundary=B")[0] in (400, 422)


def test_replicates_own_clients_get_data_urls_from_run(api: str) -> None:
    """They make files of https: and data: URLs alone, and this server has no certificate."""
    body = {"input": {"prompt": "hello"}}
    url = f"{api}/v1/models/you/controlnet/predictions"
    made = call(url, "POST", body, Prefer="wait", User_Agent="replicate-python/1.0.7")[1]
    assert made["model"] == "you/controlnet"
    assert base64.b64decode(made["output"][0].split(",")[1]) == b"hello"
    polled = call(url, "POST", body, User_Agent="replicate-python/1.0.7")[1]
    assert ended(api, polled)["output"][0].startswith("http://")


def test_model_and_version_have_the_schema(api: str) -> None:
    model = call(f"{api}/v1/models/you/controlnet")[1]
    assert (model["owner"], model["name"]) == ("you", "controlnet")
    version = call(f"{api}/v1/models/you/controlnet/versions/abc")[1]
    assert version["id"] == "abc" and version["openapi_schema"] == model["latest_version"]["openapi_schema"]
    assert "prompt" in version["openapi_schema"]["components"]["schemas"]["Input"]["properties"]
    assert call(f"{api}/v1/models/you/controlnet/versions")[1]["results"] == [model["latest_version"]]


def test_what_is_left_out_is_said_in_a_sentence(api: str) -> None:
    for path in ("account", "trainings", "deployments/you/it", "collections", "hardware"):
        status, problem = call(f"{api}/v1/{path}")
        assert status == 404 and "left out" in problem["detail"] and "/v1/predictions" in problem["detail"]
    assert "end with /v1" in call(f"{api}/predictions", "POST", SMALL)[1]["detail"]
    assert call(f"{api}/v1/predictions/{'0' * 32}")[0] == 404


def test_webhooks_are_passed_through(api: str) -> None:
    heard: list[Any] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: Any) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Hook) as hook:
        threading.Thread(target=hook.serve_forever, daemon=True).start()
        address = {"webhook": f"http://127.0.0.1:{hook.server_port}/x", "webhook_events_filter": ["completed"]}
        made = call(f"{api}/v1/predictions", "POST", SMALL | address, Prefer="wait")[1]
        deadline = time.monotonic() + 30
        while not heard and time.monotonic() < deadline:
            time.sleep(0.05)
        hook.shutdown()
    assert [(event["id"], event["status"]) for event in heard] == [(made["id"], "succeeded")]


# ---- bounds


def a_prediction(folder: Path, status: str, bytes_in: int = 1) -> Prediction:
    prediction = Prediction(folder / status / str(bytes_in), "you/it", "abc", {}, bytes_in, inline=False)
    prediction.store([File(b"content", "image/png").data_url])
    prediction.status = status
    return prediction


def test_the_oldest_go_first_and_with_their_files_but_never_what_still_runs(tmp_path: Path) -> None:
    shelf = Shelf[Prediction](most=2, most_bytes=1000)
    for key, status in (("a", "succeeded"), ("b", "processing"), ("c", "failed"), ("d", "succeeded")):
        shelf.add(key, a_prediction(tmp_path / key, status))
    assert list(shelf.items) == ["b", "d"]
    assert not list((tmp_path / "a").rglob("out-*")) and list((tmp_path / "d").rglob("out-*"))
    shelf.add("large", a_prediction(tmp_path / "large", "succeeded", bytes_in=2000))
    assert list(shelf.items) == ["b", "large"]


def test_posted_files_are_bounded_by_their_size(tmp_path: Path) -> None:
    shelf = Shelf[Posted](most=10, most_bytes=25)
    for content in (b"1" * 10, b"2" * 10, b"3" * 10):
        posted = Posted.write(tmp_path, content, "x", "text/plain", {})
        shelf.add(posted.id, posted)
    assert [item.file().content[:1] for item in shelf.items.values()] == [b"2", b"3"]
    assert len(list(tmp_path.iterdir())) == 2
