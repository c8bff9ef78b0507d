"""The forms in which a request names a LoRA, and the hosts that it may come from."""

import base64

import pytest

from controlnet.settings import USUAL_HOSTS, Settings
from controlnet.weights.lora_files import LoraError
from controlnet.weights.lora_sources import (
    HOSTS,
    CivitaiModel,
    HubFile,
    HubRepo,
    Inline,
    Remote,
    civitai_headers,
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
        ("HTTPS://Replicate.Delivery/A.safetensors", "https://replicate.delivery/A.safetensors"),
        ("https://replicate.delivery:443/a.safetensors", "https://replicate.delivery:443/a.safetensors"),
        ("HTTPS://HF.co/Owner/Model/a.safetensors", "https://huggingface.co/Owner/Model/resolve/main/a.safetensors"),
        ("hf.co/owner/model/a.safetensors", "https://huggingface.co/owner/model/resolve/main/a.safetensors"),
        (
            "https://huggingface.co/owner/model/resolve/refs%2Fpr%2F1/a.safetensors",
            "https://huggingface.co/owner/model/resolve/refs%2Fpr%2F1/a.safetensors",
        ),
        (
            "https://huggingface.co/datasets/owner/name/resolve/main/deep/a.safetensors?download=true",
            "https://huggingface.co/datasets/owner/name/resolve/main/deep/a.safetensors",
        ),
        (
            "https://huggingface.co/spaces/owner/name/blob/v2/a.safetensors",
            "https://huggingface.co/spaces/owner/name/resolve/v2/a.safetensors",
        ),
        ("civitai.red/api/download/models/12", "https://civitai.red/api/download/models/12"),
    ],
)
def test_addresses_of_a_file(text: str, url: str) -> None:
    source = read_source(text, USUAL_HOSTS)
    assert isinstance(source, Remote | HubFile) and source.url == url and url.startswith(str(source))


def test_a_bare_pair_is_a_repository_on_the_hub() -> None:
    assert read_source("owner/model", USUAL_HOSTS) == HubRepo("owner/model")
    assert read_source(" https://huggingface.co/owner/model ", USUAL_HOSTS) == HubRepo("owner/model")
    assert read_source("https://huggingface.co/owner/model/tree/v2", USUAL_HOSTS) == HubRepo("owner/model", "v2")
    assert read_source("hf.co/owner/model/tree/refs%2Fpr%2F1", USUAL_HOSTS) == HubRepo("owner/model", "refs/pr/1")
    assert read_source("HuggingFace.co/owner/model/", USUAL_HOSTS) == HubRepo("owner/model")


def test_links_to_civitai() -> None:
    assert read_source("https://civitai.com/models/12/some-name", USUAL_HOSTS) == CivitaiModel("12", None)
    assert read_source("civitai.com/models/12?modelVersionId=34", USUAL_HOSTS) == CivitaiModel("12", "34")
    assert read_source("Https://WWW.Civitai.com/models/12", USUAL_HOSTS) == CivitaiModel("12", None)
    assert read_source("civitai.red/models/12", USUAL_HOSTS) == CivitaiModel("12", None, "civitai.red")


def test_civitais_token_goes_to_its_two_hosts_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CIVITAI_API_TOKEN", raising=False)
    assert civitai_headers() == {}
    monkeypatch.setenv("CIVITAI_API_TOKEN", "secret")
    assert civitai_headers() == {"Authorization": "Bearer secret"}
    for text in ("civitai.com/api/download/models/12", "https://civitai.red/api/download/models/12"):
        assert read_source(text, USUAL_HOSTS) == Remote(f"https://{text.removeprefix('https://')}", civitai=True)
    for text in ("https://replicate.delivery/a.safetensors", "https://civitai.com/a.safetensors"):
        assert read_source(text, USUAL_HOSTS) == Remote(text, civitai=False)


def test_a_data_uri_is_the_file_itself() -> None:
    text = "data:application/octet-stream;base64," + base64.b64encode(b"abc").decode()
    assert read_source(text, USUAL_HOSTS) == Inline(b"abc")
    assert read_source("DATA:;BASE64," + base64.b64encode(b"abc").decode(), USUAL_HOSTS) == Inline(b"abc")


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
        "data:x;base64,\N{LATIN SMALL LETTER U WITH DIAERESIS}",
        "data:x;base64,\ud800",
        "huggingface.co/datasets/owner/name",
        "spaces/owner/name",
        "owner/a--b",
        "owner/a.git/a.safetensors",
        f"owner/{'m' * 200}",
        "https://replicate.delivery/a\0.safetensors",
        "https://replicate.delivery/a\n.safetensors",
        "https://replicate.delivery/\ud800.safetensors",
        "https://replicate.delivery/\x7f.safetensors",
        f"https://replicate.delivery/{'a' * 100_000}.safetensors",
        f"owner/model/{'a' * 100_000}.safetensors",
        f"https://{'a' * 64}.replicate.delivery/a.safetensors",
        "https://a..replicate.delivery/a.safetensors",
        "https://a b.replicate.delivery/a.safetensors",
        "https://civitai.com/models/\N{ARABIC-INDIC DIGIT ONE}",
        "ftp://replicate.delivery/a.safetensors",
    ],
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(LoraError, match="expected") as refused:
        read_source(text, USUAL_HOSTS)
    assert len(str(refused.value)) < 400 and str(refused.value).isprintable()


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
        read_source(text, USUAL_HOSTS)


def test_the_operator_chooses_the_hosts() -> None:
    hosts = Settings.read({HOSTS: "*.example.com, http://localhost:5000"}).lora_hosts
    assert isinstance(read_source("https://a.example.com/a.safetensors", hosts), Remote)
    assert isinstance(read_source("http://localhost:5000/a.safetensors", hosts), Remote)
    for text in ("owner/model", "https://huggingface.co/owner/model", "http://localhost:5001/a.safetensors"):
        with pytest.raises(LoraError, match="fetches no LoRA"):
            read_source(text, hosts)
    hosts = Settings.read({HOSTS: "HF.co, Example.COM:8443, HTTP://LocalHost:80/"}).lora_hosts
    for text in (
        "owner/model",
        "https://EXAMPLE.com:8443/a.safetensors",
        "http://LOCALHOST/a.safetensors",
        "http://localhost:80/a.safetensors",
    ):
        read_source(text, hosts)
    assert Settings.read({HOSTS: "NONE"}).lora_hosts == ()
    with pytest.raises(LoraError, match="no downloads are allowed"):
        read_source("owner/model", ())


def test_what_is_shown_of_an_address_has_no_query() -> None:
    assert str(read_source("https://replicate.delivery/a.safetensors?token=1", USUAL_HOSTS)).endswith("a.safetensors")
