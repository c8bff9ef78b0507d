"""Environment variables that are on or off."""

from collections.abc import Mapping

BATCH_OUTPUTS = "CONTROLNET_BATCH_OUTPUTS"
"""1 denoises the pictures of a request as one batch. Otherwise, one after the other."""
_CHOICES = {"0": False, "1": True}


class SwitchError(ValueError):
    """An environment variable that switches something on or off has another value than 1, 0 or nothing."""


def is_on(name: str, environ: Mapping[str, str], default: bool) -> bool:
    """Whether an environment variable is 1; `default` if it is unset or empty. Raises SwitchError."""
    value = environ.get(name, "")
    if value and value not in _CHOICES:
        usual = "on" if default else "off"
        raise SwitchError(f"{name}: expected 1 (on), 0 (off) or nothing ({usual}), got {value!r}.")
    return _CHOICES.get(value, default)
