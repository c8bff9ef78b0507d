"""The inputs of rossjillian/controlnet, as its published schema (version 795433b1) has them.

`structure` has no default there, and none here. `seed` is optional: with today's Cog, an int without a default would be
required. What its last version did with `scale` could not be verified; here it is the guidance scale.
"""

# pyright: reportArgumentType=false

from typing import Optional

from cog import BasePredictor, Input, Path

from interfaces.adapter import Adapter, Named

STRUCTURES = ["canny", "depth", "hed", "hough", "normal", "pose", "scribble", "seg"]
RESOLUTIONS = [256, 512, 768]
SCHEDULERS = [
    "DDIM",
    "DPMSolverMultistep",
    "HeunDiscrete",
    "K_EULER_ANCESTRAL",
    "K_EULER",
    "KLMS",
    "PNDM",
    "UniPCMultistep",
]
CONDITIONERS = {"hough": "mlsd", "pose": "openpose"}
"""Our names of the structures that have another one."""


class Predictor(BasePredictor):
    """Serves requests of rossjillian/controlnet."""

    def setup(self) -> None:
        """Load the bundle."""
        self.adapter = Adapter(self.record_metric)

    def predict(
        self,
        image: Path = Input(description="The picture whose structure is kept."),
        prompt: str = Input(description="What the picture should show."),
        structure: str = Input(choices=STRUCTURES, description="Which structure is taken from the image."),
        num_outputs: int = Input(default=1, ge=1, le=4, description="How many pictures to make."),
        image_resolution: int = Input(
            default=512, choices=RESOLUTIONS, description="Length of the shorter side, in pixels."
        ),
        scheduler: str = Input(default="DDIM", choices=SCHEDULERS, description="The sampler."),
        steps: int = Input(default=20, description="Denoising steps, 1 to 100."),
        scale: float = Input(default=9.0, ge=0.1, le=30.0, description="How closely the prompt is followed."),
        seed: Optional[int] = Input(default=None, description="The same seed gives the same picture."),
        eta: float = Input(default=0.0, description="Noise that DDIM adds at each step, from 0 (none) to 1."),
        negative_prompt: str = Input(
            default="Longbody, lowres, bad anatomy, bad hands, missing fingers, extra digit, fewer digits, cropped, worst quality, low quality",
            description="What the picture should not show.",
        ),
        low_threshold: int = Input(default=100, ge=1, le=255, description="Canny: weaker edges are dropped."),
        high_threshold: int = Input(default=200, ge=1, le=255, description="Canny: stronger edges are kept."),
        return_reference_image: bool = Input(default=False, description="Return the control map too, first."),
    ) -> list[Path]:
        """Return the control map if it is asked for, then the pictures."""
        return self.adapter.answer(Predictor.predict, locals(), _named)


def _named(inputs: dict) -> Named:
    structure = inputs["structure"]
    return (
        {name: (name, inputs[name]) for name in ("image", "prompt", "low_threshold", "high_threshold")}
        | {
            "conditioner": ("structure", CONDITIONERS.get(structure, structure)),
            "resolution": ("image_resolution", inputs["image_resolution"]),
            "num_inference_steps": ("steps", inputs["steps"]),
            "guidance_scale": ("scale", inputs["scale"]),
            "return_control_map": ("return_reference_image", inputs["return_reference_image"]),
            "output_format": (None, "png"),
        }
        | {name: (name, inputs[name]) for name in ("num_outputs", "scheduler", "seed", "eta", "negative_prompt")}
    )
