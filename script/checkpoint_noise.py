"""The noise schedule of an imported checkpoint: what its file or the command line says, and no other tensor shows."""

from collections.abc import Callable, Mapping
from typing import Any

from checkpoint_kinds import CheckpointError, Contents

from controlnet.models.schedulers import ZERO_SNR

PREDICTION_TYPES = ("epsilon", "v_prediction")
UNSAID = {"prediction_type": "epsilon", ZERO_SNR: False}
"""What a scheduler's configuration means if it does not say it."""


def noise_of(
    contents: Contents,
    base: Mapping[str, Any],
    prediction_type: str | None,
    zero_snr: bool | None,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """What differs from `base`, the configuration of the base's scheduler, in that of a checkpoint.

    `prediction_type` and `zero_snr` are wishes. If they are None, the file's marks count, or else the base. `say` gets
    lines to print. Raises CheckpointError for wishes that contradict.
    """
    predicts = prediction_type or contents.prediction_type or base.get("prediction_type", "epsilon")
    if zero_snr and predicts != "v_prediction":
        # From noise alone it would only learn to copy its input.
        raise CheckpointError("--zero-snr is for a UNet that predicts v: add --prediction-type v_prediction.")
    if zero_snr is None and contents.zero_snr and predicts == "v_prediction":
        zero_snr = True
    noise = {"prediction_type": predicts} | ({} if zero_snr is None else {ZERO_SNR: zero_snr})
    noise |= {"timestep_spacing": "trailing"} if zero_snr else {}  # so that the first step is the one of noise alone
    changes = {key: value for key, value in noise.items() if value != base.get(key, UNSAID.get(key))}
    if changes:
        say(f"scheduler: {', '.join(f'{key} {value}' for key, value in changes.items())}.")
    if changes and zero_snr is None and predicts == "v_prediction":
        say("scheduler: nothing says that it was trained to zero SNR. Add --zero-snr if its page does.")
    return changes
