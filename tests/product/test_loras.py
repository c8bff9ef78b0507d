"""LoRAs and go_fast through the server: they act on one request and on no other."""

import random
import time
from pathlib import Path

import numpy as np
import pytest
from support import ROOT
from support.hub import Fault, Hub
from support.requests_to_tiny import FAST, NIGHT, PHOTO, answer, data_url, differ, made, pixels, png
from support.server import Server

CONTENT = (ROOT / "examples/night.safetensors").read_bytes()


def brightness(file: bytes) -> float:
    return float(pixels(file).mean())


def test_the_night_is_dark_and_ends_with_its_request(server: Server) -> None:
    asked = {"num_inference_steps": 10}
    (day,), (night,) = made(server, **asked), made(server, **asked, lora_weights=NIGHT)
    assert brightness(night) < 0.6 * brightness(day)
    assert made(server, **asked) == [day]
    assert made(server, **asked, lora_weights=NIGHT) == [night]
    (dusk,) = made(server, **asked, lora_weights=NIGHT, lora_scale=0.5)
    assert brightness(night) < brightness(dusk) < brightness(day)


def test_two_loras_act_together(server: Server) -> None:
    both = made(server, lora_weights=NIGHT, lora_scale=0.5, lora_weights_2=NIGHT, lora_scale_2=0.5)
    alone = made(server, lora_weights=NIGHT)
    assert not differ(both, made(server, lora_weights=NIGHT, lora_scale=0.5, lora_weights_2=NIGHT, lora_scale_2=0.5))
    assert np.abs(pixels(both[0]) - pixels(alone[0])).max() <= 2, "twice a half is not the whole"


def test_the_metrics_name_the_file_and_the_seconds(server: Server) -> None:
    got = answer(server, lora_weights=NIGHT, lora_scale=0.9)
    assert len(got.metrics["lora_sha256"][0]) == 64
    timing = got.metrics["timing"]
    assert timing["lora_fetch"] >= 0 and timing["lora"] > 0
    assert "lora_sha256" not in answer(server).metrics


def test_a_lora_is_fetched_once_and_its_download_can_be_cancelled(server: Server) -> None:
    before = png(server)
    with Hub() as hub:
        hub.publish("someone/night", {"night.safetensors": CONTENT})
        address = f"{hub.url}/someone/night/resolve/main/night.safetensors"
        hub.fail("night.safetensors", Fault(stall_after=300_000))
        running = server.start(**FAST, image=PHOTO, lora_weights=address)
        assert hub.stalled.wait(20)
        assert running.cancel() == 200
        assert running.result().status == "canceled"  # while the connection is still silent
        hub.resume.set()
        assert png(server) == before
        by_address = made(server, lora_weights=address)
        assert not differ(by_address, made(server, lora_weights=NIGHT))
        fetched = len(hub.downloads())
        made(server, lora_weights=address, seed=2)
        assert len(hub.downloads()) == fetched


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("night", "lora_weights: expected a URL of a .safetensors file"),
        ("https://example.com/a.safetensors", "lora_weights: this server fetches no LoRA from"),
        (data_url(b"nothing", "application/octet-stream"), "lora_weights: expected a .safetensors file of a LoRA"),
        (data_url(CONTENT[:-9], "application/octet-stream"), "lora_weights: expected a .safetensors file of a LoRA"),
        ("http://127.0.0.1:9/a.safetensors", "lora_weights: it could not be fetched"),
    ],
)
def test_a_lora_that_cannot_be_used_is_one_sentence(server: Server, text: str, words: str) -> None:
    before = png(server)
    refused = answer(server, lora_weights=text)
    assert refused.status == "failed" and words in refused.error
    assert "/tmp" not in refused.error and "Traceback" not in refused.error
    assert png(server) == before


def test_go_fast_takes_few_steps(server: Server) -> None:
    got = answer(server, num_inference_steps=None, go_fast=True)
    assert got.status == "succeeded", got.error
    assert got.metrics["steps"] == 4
    assert differ(got.files, made(server, num_inference_steps=4))


def test_a_cancelled_lora_leaves_nothing(server: Server) -> None:
    """At any moment: while it is put on too, which is a good part of such a short request."""
    before, choose = png(server), random.Random(3)
    night = made(server, lora_weights=NIGHT)
    for i in range(8):
        scale = 0.3 + 0.1 * i  # another scale is put on again
        fast = {"go_fast": True, "num_inference_steps": 8} if i % 2 else {"num_inference_steps": 100}
        sent = {"image": PHOTO, "num_outputs": 4, "lora_weights": NIGHT, "lora_scale": scale}
        running = server.start(**FAST | sent | fast)
        time.sleep(choose.uniform(0, 0.6))
        running.stop()
        assert png(server) == before
    assert made(server, lora_weights=NIGHT) == night


def test_the_example_is_small_and_safe() -> None:
    file = Path(ROOT / "examples/night.safetensors")
    assert file.stat().st_size < 2**20
    assert b"/home" not in CONTENT[:100_000] and b"/work" not in CONTENT[:100_000]
