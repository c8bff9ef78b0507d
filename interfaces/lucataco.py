"""The inputs of lucataco/sdxl-controlnet.

`image` has a default there, without which it failed. Here it is required. `seed` 0 means any, as there.
"""

# pyright: reportArgumentType=false

import math

from cog import BasePredictor, Input, Path

from controlnet.pictures.geometry import LARGEST
from controlnet.pictures.images import sent_size
from interfaces.adapter import Adapter, Named


class Predictor(BasePredictor):
    """Serves requests of lucataco/sdxl-controlnet."""

    def setup(self) -> None:
        """Load the bundle."""
        self.adapter = Adapter(self.record_metric)

    def predict(
        self,
        image: Path = Input(description="The picture whose edges are kept."),
        prompt: str = Input(
            default="aerial view, a futuristic research complex in a bright foggy jungle, hard lighting",
            description="What the picture should show.",
        ),
        negative_prompt: str = Input(
            default="low quality, bad quality, sketches", description="What the picture should not show."
        ),
        num_inference_steps: int = Input(default=50, ge=1, le=500, description="Denoising steps, at most 100."),
        condition_scale: float = Input(default=0.5, ge=0.0, le=1.0, description="How strongly the edges act."),
        seed: int = Input(default=0, description="The same seed gives the same picture. 0 draws one."),
    ) -> Path:
        """Return the picture, whose size is the bundle's in the shape of the image."""
        resolution = self.adapter.model.bundle.defaults.resolution
        (picture,) = self.adapter.answer(Predictor.predict, locals(), lambda inputs: asked(inputs, resolution))
        return picture


def asked(inputs: dict, resolution: int) -> Named:
    """Our inputs for a request of theirs. `resolution` is the bundle's."""
    width, height = sent_size(inputs["image"])
    sides = {"width": width, "height": height}
    named = {name: (name, inputs[name]) for name in ("image", "prompt", "negative_prompt", "num_inference_steps")}
    return (
        named
        | {
            name: (None, min(round(resolution * side / math.sqrt(width * height)), LARGEST))
            for name, side in sides.items()
        }
        | {
            "conditioning_scale": ("condition_scale", inputs["condition_scale"]),
            "seed": ("seed", inputs["seed"] if inputs["seed"] > 0 else None),
            "conditioner": (None, "canny"),
            "low_threshold": (None, 100),
            "high_threshold": (None, 200),
            "guidance_scale": (None, 5.0),
            "scheduler": (None, "K_EULER"),
            "output_format": (None, "png"),
        }
    )
