"""Environment variables: each is read once, and a value that means nothing gets a sentence."""

from dataclasses import fields

import pytest

from controlnet.settings import USUAL_HOSTS, Settings, SettingsError

VARIABLES = [each.metadata["variable"] for each in fields(Settings) if each.metadata]


def test_an_empty_environment_and_empty_variables_give_the_defaults() -> None:
    assert Settings.read({}) == Settings() == Settings.read(dict.fromkeys(VARIABLES, " "))


@pytest.mark.parametrize(
    ("variable", "text", "name", "value"),
    [
        ("CONTROLNET_BUNDLE", "tiny", "bundle", "tiny"),
        ("CONTROLNET_DOWNLOAD", "1", "download", True),
        ("CONTROLNET_DTYPE", "bf16", "dtype", "bf16"),
        ("CONTROLNET_LOW_MEMORY", "0", "low_memory", False),
        ("CONTROLNET_EXACT_SPEEDUPS", "0", "speedups", False),
        ("CONTROLNET_ATTENTION", "xformers", "attention", "xformers"),
        ("CONTROLNET_FORBID_UNSAFE", "yes", "forbid_unsafe", True),
        ("CONTROLNET_FORBID_UNSAFE", "ture", "forbid_unsafe", True),
        ("CONTROLNET_FORBID_UNSAFE", "False", "forbid_unsafe", False),
        (
            "CONTROLNET_LORA_HOSTS",
            "Example.com, http://localhost:8000",
            "lora_hosts",
            ("example.com", "http://localhost:8000"),
        ),
        ("CONTROLNET_LORA_HOSTS", "none", "lora_hosts", ()),
        ("CONTROLNET_LORA_CACHE_GB", "0.5", "lora_gigabytes", 0.5),
        ("OMP_NUM_THREADS", "3", "threads", True),
        ("CONTROLNET_OPENPOSE", "dwpose", "annotators", {"openpose": "dwpose"}),
        ("CONTROLNET_OPENPOSE_CMU", "1", "annotators", {"openpose": "cmu"}),
    ],
)
def test_a_variable_sets_its_field_alone(variable: str, text: str, name: str, value: object) -> None:
    settings = Settings.read({variable: text})
    assert getattr(settings, name) == value
    others = [each.name for each in fields(Settings) if each.name != name]
    assert all(getattr(settings, other) == getattr(Settings(), other) for other in others)


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("CONTROLNET_DOWNLOAD", "true"),
        ("CONTROLNET_DTYPE", "float16"),
        ("CONTROLNET_LOW_MEMORY", "yes"),
        ("CONTROLNET_CUDA_GRAPHS", "2"),
        ("CONTROLNET_ATTENTION", "flash"),
        *[("CONTROLNET_LORA_CACHE_GB", text) for text in ("0", "-1", "nan", "inf", "five")],
    ],
)
def test_a_value_that_means_nothing_is_refused_with_what_is_expected(variable: str, text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.read({variable: text, "CONTROLNET_BATCH_OUTPUTS": "maybe"})
    assert f"{variable}: expected " in str(caught.value) and f"got {text!r}." in str(caught.value)
    assert "CONTROLNET_BATCH_OUTPUTS: expected 1 or 0, or nothing (0), got 'maybe'." in str(caught.value)


def test_the_newer_variable_wins() -> None:
    environ = {"CONTROLNET_OPENPOSE": "vitpose", "CONTROLNET_OPENPOSE_CMU": "1"}
    assert Settings.read(environ).annotators == {"openpose": "vitpose"}
    assert Settings().lora_hosts == USUAL_HOSTS
