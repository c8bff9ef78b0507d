"""The inputs of jagilley/controlnet-hough.

The net's scores are at most 1, so a value_threshold above 1 means 1: no lines.
"""

# pyright: reportArgumentType=false

from typing import Optional

from cog import BasePredictor, Input, Path

from interfaces.jagilley import Jagilley


class Predictor(BasePredictor):
    """Serves requests of jagilley/controlnet-hough."""

    def setup(self) -> None:
        """Load the bundle."""
        self.adapter = Jagilley(
            self.record_metric,
            "mlsd",
            detect_resolution="detect_resolution",
            mlsd_score_threshold="value_threshold",
            mlsd_distance_threshold="distance_threshold",
        )

    def predict(
        self,
        image: Path = Input(description="The picture whose structure is kept."),
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
        value_threshold: float = Input(default=0.1, ge=0.01, le=2.0, description="Fainter lines are dropped."),
        distance_threshold: float = Input(default=0.1, ge=0.01, le=20.0, description="Shorter lines are dropped."),
    ) -> list[Path]:
        """Return the control map, then the pictures."""
        return self.adapter.predict(Predictor.predict, locals())
