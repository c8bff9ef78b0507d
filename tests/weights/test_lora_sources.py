"""The forms in which a request names a LoRA, and the hosts that it may come from."""

import base64

import pytest

from controlnet.weights.lora_files import LoraError
from controlnet.weights.lora_sources import (
    CIVITAI_TOKEN,
    HOSTS,
    CivitaiModel,
    HubRepo,
    Inline,
    Remote,
    allowed_hosts,
    read_source,
)


@pytest.fixture(autouse=True)
def no_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://huggingface.co")


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("https://replicate.delivery/a/b.safetensors?x=1", "https://replicate.delivery/a/b.safetensors?x=1"),
        ("owner/model/a.safetensors", "https://huggingface.co/owner/model/resolve/main/a.safetensors"),
        ("owner/model/deep/a.safetensors", "https://huggingface.co/owner/model/resolve/main/deep/a.safetensors"),
        ("huggingface.co/owner/model/a.safetensors", "https://huggingface.co/owner/model/resolve/main/a.safetensors"),
        (
            "https://huggingface.co/owner/model/blob/v2/deep/a.safetensors",
            "https://huggingface.co/owner/model/resolve/v2/deep/a.safetensors",
        ),
        (
            "https://civitai.com/api/download/models/12?type=Model",
            "https://civitai.com/api/download/models/12?type=Model",
        ),
    ],
)
def test_addresses_of_a_file(text: str, url: str) -> None:
    source = read_source(text, {})
    assert isinstance(source, Remote) and source.url == url


def test_a_bare_pair_is_a_repository_on_the_hub() -> None:
    assert read_source("owner/model", {}) == HubRepo("owner/model")
    assert read_source(" https://huggingface.co/owner/model ", {}) == HubRepo("owner/model")
    assert read_source("https://huggingface.co/owner/model/tree/v2", {}) == HubRepo("owner/model", "v2")


def test_links_to_civitai() -> None:
    assert read_source("https://civitai.com/models/12/some-name", {}) == CivitaiModel("12", None)
    assert read_source("civitai.com/models/12?modelVersionId=34", {}) == CivitaiModel("12", "34")


def test_the_operators_token_goes_to_civitai_alone() -> None:
    environ = {CIVITAI_TOKEN: "secret"}
    download = read_source("https://civitai.com/api/download/models/12", environ)
    other = read_source("https://replicate.delivery/a.safetensors", environ)
    assert isinstance(download, Remote) and isinstance(other, Remote)
    assert download.headers() == {"Authorization": "Bearer secret"}
    assert other.headers() == {}


def test_a_data_uri_is_the_file_itself() -> None:
    text = "data:application/octet-stream;base64," + base64.b64encode(b"abc").decode()
    assert read_source(text, {}) == Inline(b"abc")


@pytest.mark.parametrize(
    "text",
    [
        "night",
        "owner/model/../other/a.safetensors",
        "owner/model/a.ckpt",
        "/etc/passwd",
        "file:///etc/passwd",
        "https://replicate.delivery/a.zip",
        "https://name:password@replicate.delivery/a.safetensors",
        "https://",
        "https://[::1/a.safetensors",
        "data:,abc",
        "data:x;base64,????",
        "ftp://replicate.delivery/a.safetensors",
    ],
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(LoraError, match="expected"):
        read_source(text, {})


@pytest.mark.parametrize(
    "text",
    [
        "https://example.com/a.safetensors",
        "http://replicate.delivery/a.safetensors",
        "https://replicate.delivery.example.com/a.safetensors",
        "https://169.254.169.254/a.safetensors",
        "http://localhost:5000/a.safetensors",
    ],
)
def test_hosts_that_are_not_listed_are_refused(text: str) -> None:
    with pytest.raises(LoraError, match=f"fetches no LoRA from .*{HOSTS}"):
        read_source(text, {})


def test_the_operator_chooses_the_hosts() -> None:
    environ = {HOSTS: "*.example.com, http://localhost:5000"}
    assert isinstance(read_source("https://a.example.com/a.safetensors", environ), Remote)
    assert isinstance(read_source("http://localhost:5000/a.safetensors", environ), Remote)
    for text in ("owner/model", "https://huggingface.co/owner/model", "http://localhost:5001/a.safetensors"):
        with pytest.raises(LoraError, match="fetches no LoRA"):
            read_source(text, environ)
    assert allowed_hosts({HOSTS: "none"}) == ()
    with pytest.raises(LoraError, match="no downloads are allowed"):
        read_source("owner/model", {HOSTS: "none"})


def test_what_is_shown_of_an_address_has_no_query() -> None:
    assert str(read_source("https://replicate.delivery/a.safetensors?token=1", {})).endswith("a.safetensors")
