"""What the environment says: every variable that this project reads, read once when a bundle is opened.

Nothing else in controlnet/ looks at the environment. (Libraries do: HF_TOKEN, HF_ENDPOINT and others are
huggingface_hub's.) The table in docs/bundles.md is made from this class.
"""

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from controlnet.conditioners import CONDITIONERS

USUAL_HOSTS = ("huggingface.co", "civitai.com", "civitai.red", "replicate.delivery", "*.replicate.delivery")


class SettingsError(ValueError):
    """An environment variable has a value that means nothing, or something that cannot be had here."""


def variable_of(conditioner: str) -> str:
    """The variable that chooses among a conditioner's annotators: CONTROLNET_OPENPOSE for openpose."""
    return f"CONTROLNET_{conditioner.upper()}"


def _setting(variable: str, values: str, usual: str, read: Callable[[str], Any], default: Any) -> Any:
    """A field. `values` and `usual` are words for readers; `read` raises ValueError or KeyError for other values."""
    about = {"variable": variable, "values": values, "usual": usual, "read": read}
    return field(default=default, metadata=about)


def _switch(variable: str, usual: bool) -> Any:
    return _setting(variable, "1 or 0", "1" if usual else "0", {"1": True, "0": False}.__getitem__, usual)


def _one_of(variable: str, *values: str, usual: str, default: Any) -> Any:
    return _setting(variable, " or ".join(values), usual, {value: value for value in values}.__getitem__, default)


def _gigabytes(text: str) -> float:
    number = float(text)
    if not 0 < number < math.inf:
        raise ValueError
    return number


def _hosts(text: str) -> tuple[str, ...]:
    """In small letters and without usual ports."""
    entries = [entry.strip().lower().rstrip("/") for entry in text.split(",") if entry.strip()]
    plain = (entry.removesuffix(":80" if entry.startswith("http://") else ":443") for entry in entries)
    written = tuple("huggingface.co" if entry == "hf.co" else entry for entry in plain)
    return () if written == ("none",) else written or USUAL_HOSTS


@dataclass(frozen=True)
class Settings:
    """A value for each variable; that of its absence if it is unset or empty."""

    bundle: str = _setting(
        "CONTROLNET_BUNDLE", "a bundle's name", "`sd15` if its weights are there, else `tiny`", str, ""
    )
    """The weights to open: a manifest in weights/."""
    download: bool = _switch("CONTROLNET_DOWNLOAD", False)
    """Whether setup() fetches weights that are absent, of a locked bundle only. It is 1 in the container."""
    dtype: str = _one_of("CONTROLNET_DTYPE", "fp16", "bf16", "fp32", usual="fp16 on a GPU, fp32 on a CPU", default="")
    """Precision of the base model, the ControlNets and the safety checker. bf16 halves the time of a step on CPUs with
    AVX-512 BF16 or AMX, and is several times slower on others."""
    low_memory: bool | None = _setting(
        "CONTROLNET_LOW_MEMORY", "1 or 0", "1 on a GPU without room", {"1": True, "0": False}.__getitem__, None
    )
    """Whether ControlNets stay in main memory until a request uses them. A request then takes longer."""
    speedups: bool = _switch("CONTROLNET_EXACT_SPEEDUPS", True)
    """Whether work that diffusers repeats is left out. Pictures differ by rounding. 0 also leaves out the kernels."""
    kernels: bool = _switch("CONTROLNET_CUDA_KERNELS", True)
    """Whether a GPU uses this project's kernels. Pictures differ by rounding."""
    graphs: bool = _switch("CONTROLNET_CUDA_GRAPHS", True)
    """Whether UNet and ControlNets run as CUDA graphs. They take up to 1.7 GB; without that room there are none."""
    attention: str = _one_of("CONTROLNET_ATTENTION", "sdpa", "xformers", usual="sdpa", default="sdpa")
    """Whose attention: PyTorch's, or on a GPU that of xformers, which some speedups do not fit."""
    reference: bool | None = _setting(
        "CONTROLNET_REFERENCE", "1 or 0", "1 if the files for it are there", {"1": True, "0": False}.__getitem__, None
    )
    """Whether requests may have a reference picture. It takes an image encoder and an adapter, which are fetched only
    if this is 1."""
    batch_outputs: bool = _switch("CONTROLNET_BATCH_OUTPUTS", False)
    """Whether a request's outputs are denoised as one batch: quicker on a GPU, more memory, and each picture differs by
    rounding from the one that its seed gives alone."""
    forbid_unsafe: bool = _setting(
        # Every value but a clear no forbids it, so that a typing error cannot switch the checker off.
        "CONTROLNET_FORBID_UNSAFE",
        "1 or 0",
        "0",
        lambda text: text.lower() not in ("0", "false", "no"),
        False,
    )
    """Whether requests that skip the safety checker are refused."""
    lora_hosts: tuple[str, ...] = _setting(
        "CONTROLNET_LORA_HOSTS", "host names, `*` for any part, or none", ", ".join(USUAL_HOSTS), _hosts, USUAL_HOSTS
    )
    """Where LoRAs may be fetched from. A host is trusted with its redirects: name none that redirects to wherever it is
    asked to. An entry that begins with http:// allows that host without encryption."""
    lora_folder: str = _setting(
        "CONTROLNET_LORA_CACHE", "a folder", "controlnet-loras-USER, where temporary files are", str, ""
    )
    """Where fetched LoRAs are kept."""
    lora_gigabytes: float = _setting("CONTROLNET_LORA_CACHE_GB", "a number above 0", "5", _gigabytes, 5.0)
    """How much that folder may hold. Those that were not used for longest make room."""
    civitai_token: str = _setting("CIVITAI_API_TOKEN", "a token", "none", str, "")
    """What CivitAI asks for before it serves some files."""
    threads: bool = _setting("OMP_NUM_THREADS", "a number", "the bundle's", lambda text: True, False)
    """On a CPU, how many threads compute. The sums in a picture depend on it. (PyTorch reads the number.)"""
    annotators: Mapping[str, str] = field(default_factory=dict)
    """For each conditioner whose CONTROLNET_<CONDITIONER> is set, the word that chooses its annotator."""

    @classmethod
    def variable(cls, name: str) -> str:
        """The environment variable of a setting."""
        return cls.__dataclass_fields__[name].metadata["variable"]

    @classmethod
    def read(cls, environ: Mapping[str, str] = os.environ, bundle: str | None = None) -> "Settings":
        """The settings of an environment, with another `bundle` if one is named.

        Raises SettingsError with a sentence for each value that means nothing.
        """
        environ = {**environ, "CONTROLNET_BUNDLE": str(bundle)} if bundle else environ
        values, faults = {}, []
        for each in fields(cls):
            about = each.metadata
            text = environ.get(about["variable"], "").strip() if about else ""
            if not text:
                continue
            try:
                values[each.name] = about["read"](text)
            except (ValueError, KeyError):
                expected = f"{about['values']}, or nothing ({about['usual']})"
                faults.append(f"{about['variable']}: expected {expected}, got {text[:40]!r}.")
        if faults:
            raise SettingsError(" ".join(faults))
        words = {each.name: environ.get(variable_of(each.name), "").strip() for each in CONDITIONERS}
        if environ.get("CONTROLNET_OPENPOSE_CMU") == "1":  # from before there was a choice
            words["openpose"] = words["openpose"] or "cmu"
        return cls(**values, annotators={name: word for name, word in words.items() if word})
