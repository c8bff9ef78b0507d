"""The control modes, how prompt and control map share the picture (github.com/Mikubill/sd-webui-controlnet); and those
of a reference picture."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class ControlMode:
    """What a mode does. controlnet/generation/composite.py carries it out."""

    faded: bool
    """Layer i of N weighs 0.825^(N − 1 − i): the finer a layer, the less of the control reaches it."""
    conditional_only: bool
    """Only the half of a guided batch that sees the prompt is controlled, so guidance amplifies the control too."""


CONTROL_MODES: Mapping[str, ControlMode] = {
    "balanced": ControlMode(faded=False, conditional_only=False),
    "prompt": ControlMode(faded=True, conditional_only=False),
    "control": ControlMode(faded=True, conditional_only=True),
    "unbalanced": ControlMode(faded=False, conditional_only=True),
}
"""The modes, by the choices of control_mode."""
STYLE = "style"
REFERENCE_MODES = ("all", STYLE)
"""What of a reference picture acts: all, or what reaches the layers that the bundle names for style
(Reference.style in controlnet/weights/tables.py)."""
