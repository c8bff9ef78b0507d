"""What jagilley/controlnet-* have in common: their inputs mean the same and the map always comes first."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
from cog import Path
from PIL import Image, ImageOps

from controlnet.model import Answer, Record
from controlnet.request.request import Request
from interfaces.adapter import Adapter, Named


class Jagilley(Adapter):
    """Serves requests of one of them."""

    def __init__(self, record: Record, conditioner: str, **own: str) -> None:
        """`own` are our inputs that only this model has, with its names."""
        super().__init__(record)
        self.conditioner, self.own = conditioner, own

    def predict(self, predict: Callable[..., Any], values: dict[str, Any]) -> list[Path]:
        """Answer a request that has arrived at `predict`: its locals(), since the signature is the only list of inputs."""

        def named(inputs: dict[str, Any]) -> Named:
            names = {"negative_prompt": "n_prompt", "num_inference_steps": "ddim_steps", "guidance_scale": "scale"}
            names |= {name: name for name in ("image", "seed", "eta")} | self.own
            prompts = [inputs["prompt"], inputs["a_prompt"]]
            if "value_threshold" in inputs:
                inputs["value_threshold"] = min(inputs["value_threshold"], 1.0)
            return {ours: (theirs, inputs[theirs]) for ours, theirs in names.items()} | {
                "prompt": ("prompt", ", ".join(filter(None, prompts))),
                "num_outputs": ("num_samples", int(inputs["num_samples"])),
                "resolution": ("image_resolution", int(inputs["image_resolution"])),
                "conditioner": (None, self.conditioner),
                "scheduler": (None, "DDIM"),
                "return_control_map": (None, True),
                "output_format": (None, "png"),
            }

        return self.answer(
            predict,
            values,
            named,
            _with_their_map,
            without_effect=lambda inputs: {"bg_threshold": "normals are not found from depth"},
        )


def _with_their_map(answer: Answer, request: Request) -> Answer:
    """They return lines dark on white, and straight lines 3 pixels wider. The nets see white lines on black."""
    conditioner = request.controls[0].conditioner
    if conditioner not in ("canny", "scribble", "mlsd"):
        return answer
    (drawn,) = answer.maps
    if conditioner == "mlsd":
        drawn = Image.fromarray(cv2.dilate(np.asarray(drawn), np.ones((3, 3), np.uint8)))
    return replace(answer, maps=[ImageOps.invert(drawn.convert("RGB"))])
