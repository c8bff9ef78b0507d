"""The inputs of jagilley/controlnet-hed.

The picture is called `input_image`, as there.
"""

# pyright: reportArgumentType=false

from typing import Optional

from cog import BasePredictor, Input, Path

from interfaces.jagilley import Jagilley


class Predictor(BasePredictor):
    """Serves requests of jagilley/controlnet-hed."""

    def setup(self) -> None:
        """Load the bundle."""
        self.adapter = Jagilley(self.record_metric, "hed", image="input_image", detect_resolution="detect_resolution")

    def predict(
        self,
        input_image: Path = Input(description="The picture whose structure is kept."),
        prompt: str = Input(description="What the picture should show."),
        num_samples: str = Input(default="1", choices=["1", "4"], description="How many pictures to make."),
        image_resolution: str = Input(
            default="512", choices=["256", "512", "768"], description="Length of the shorter side, in pixels."
        ),
        ddim_steps: int = Input(default=20, description="Denoising steps, 1 to 100."),
        scale: float = Input(default=9.0, ge=0.1, le=30.0, description="How closely the prompt is followed."),
        seed: Optional[int] = Input(default=None, description="The same seed gives the same pictures."),
        eta: float = Input(default=0.0, description="Noise that DDIM adds at each step, from 0 (none) to 1."),
        a_prompt: str = Input(default="best quality, extremely detailed", description="Added to the prompt."),
        n_prompt: str = Input(
            default="longbody, lowres, bad anatomy, bad hands, missing fingers, extra digit, fewer digits, cropped, worst quality, low quality",
            description="What the picture should not show.",
        ),
        detect_resolution: int = Input(
            default=512, ge=128, le=1024, description="Short side at which the control map is drawn, in pixels."
        ),
    ) -> list[Path]:
        """Return the control map, then the pictures."""
        return self.adapter.predict(Predictor.predict, locals())
