"""The inputs of the eight jagilley/controlnet-*, which mean the same in all: each class is a predictor of one.

Cog reads this file without running it. Of a default such as Inputs.prompt it reads the Input() in that class.
"""

# pyright: reportArgumentType=false

from typing import Optional

from cog import BasePredictor, Input, Path

from interfaces.jagilley_adapter import Jagilley


class Inputs:
    """Every input of one or more of them."""

    image = Input(description="The picture whose structure is kept.")
    prompt = Input(description="What the picture should show.")
    num_samples = Input(default="1", choices=["1", "4"], description="How many pictures to make.")
    image_resolution = Input(
        default="512", choices=["256", "512", "768"], description="Length of the shorter side, in pixels."
    )
    ddim_steps = Input(default=20, description="Denoising steps, 1 to 100.")
    scale = Input(default=9.0, ge=0.1, le=30.0, description="How closely the prompt is followed.")
    seed = Input(default=None, description="The same seed gives the same pictures.")
    eta = Input(default=0.0, description="Noise that DDIM adds at each step, from 0 (none) to 1.")
    a_prompt = Input(default="best quality, extremely detailed", description="Added to the prompt.")
    n_prompt = Input(
        default="longbody, lowres, bad anatomy, bad hands, missing fingers, extra digit, fewer digits, cropped, worst quality, low quality",
        description="What the picture should not show.",
    )
    low_threshold = Input(default=100, ge=1, le=255, description="Canny: weaker edges are dropped.")
    high_threshold = Input(default=200, ge=1, le=255, description="Canny: stronger edges are kept.")
    detect_resolution = Input(
        default=512, ge=128, le=1024, description="Short side at which the control map is drawn, in pixels."
    )
    input_image = Input(description="The picture whose structure is kept.")
    value_threshold = Input(default=0.1, ge=0.01, le=2.0, description="Fainter lines are dropped.")
    distance_threshold = Input(default=0.1, ge=0.01, le=20.0, description="Shorter lines are dropped.")
    bg_threshold = Input(default=0.0, ge=0.0, le=1.0, description="Has no effect.")


class Canny(BasePredictor):
    """jagilley/controlnet-canny."""

    def setup(self) -> None:
        self.adapter = Jagilley(
            self.record_metric, "canny", low_threshold="low_threshold", high_threshold="high_threshold"
        )

    def predict(
        self,
        image: Path = Inputs.image,
        prompt: str = Inputs.prompt,
        num_samples: str = Inputs.num_samples,
        image_resolution: str = Inputs.image_resolution,
        ddim_steps: int = Inputs.ddim_steps,
        scale: float = Inputs.scale,
        seed: Optional[int] = Inputs.seed,
        eta: float = Inputs.eta,
        a_prompt: str = Inputs.a_prompt,
        n_prompt: str = Inputs.n_prompt,
        low_threshold: int = Inputs.low_threshold,
        high_threshold: int = Inputs.high_threshold,
    ) -> list[Path]:
        return self.adapter.predict(Canny.predict, locals())


class Depth2img(BasePredictor):
    """jagilley/controlnet-depth2img."""

    def setup(self) -> None:
        self.adapter = Jagilley(self.record_metric, "depth", detect_resolution="detect_resolution")

    def predict(
        self,
        image: Path = Inputs.image,
        prompt: str = Inputs.prompt,
        num_samples: str = Inputs.num_samples,
        image_resolution: str = Inputs.image_resolution,
        ddim_steps: int = Inputs.ddim_steps,
        scale: float = Inputs.scale,
        seed: Optional[int] = Inputs.seed,
        eta: float = Inputs.eta,
        a_prompt: str = Inputs.a_prompt,
        n_prompt: str = Inputs.n_prompt,
        detect_resolution: int = Inputs.detect_resolution,
    ) -> list[Path]:
        return self.adapter.predict(Depth2img.predict, locals())


class Hed(BasePredictor):
    """jagilley/controlnet-hed.

    The picture is called `input_image`, as there.
    """

    def setup(self) -> None:
        self.adapter = Jagilley(self.record_metric, "hed", image="input_image", detect_resolution="detect_resolution")

    def predict(
        self,
        input_image: Path = Inputs.input_image,
        prompt: str = Inputs.prompt,
        num_samples: str = Inputs.num_samples,
        image_resolution: str = Inputs.image_resolution,
        ddim_steps: int = Inputs.ddim_steps,
        scale: float = Inputs.scale,
        seed: Optional[int] = Inputs.seed,
        eta: float = Inputs.eta,
        a_prompt: str = Inputs.a_prompt,
        n_prompt: str = Inputs.n_prompt,
        detect_resolution: int = Inputs.detect_resolution,
    ) -> list[Path]:
        return self.adapter.predict(Hed.predict, locals())


class Hough(BasePredictor):
    """jagilley/controlnet-hough.

    The net's scores are at most 1, so a value_threshold above 1 means 1: no lines.
    """

    def setup(self) -> None:
        self.adapter = Jagilley(
            self.record_metric,
            "mlsd",
            detect_resolution="detect_resolution",
            mlsd_score_threshold="value_threshold",
            mlsd_distance_threshold="distance_threshold",
        )

    def predict(
        self,
        image: Path = Inputs.image,
        prompt: str = Inputs.prompt,
        num_samples: str = Inputs.num_samples,
        image_resolution: str = Inputs.image_resolution,
        ddim_steps: int = Inputs.ddim_steps,
        scale: float = Inputs.scale,
        seed: Optional[int] = Inputs.seed,
        eta: float = Inputs.eta,
        a_prompt: str = Inputs.a_prompt,
        n_prompt: str = Inputs.n_prompt,
        detect_resolution: int = Inputs.detect_resolution,
        value_threshold: float = Inputs.value_threshold,
        distance_threshold: float = Inputs.distance_threshold,
    ) -> list[Path]:
        return self.adapter.predict(Hough.predict, locals())


class Normal(BasePredictor):
    """jagilley/controlnet-normal.

    `bg_threshold` has no effect: the annotator of ControlNet 1.1 estimates normals everywhere, not from depth.
    """

    def setup(self) -> None:
        self.adapter = Jagilley(self.record_metric, "normal", detect_resolution="detect_resolution")

    def predict(
        self,
        image: Path = Inputs.image,
        prompt: str = Inputs.prompt,
        num_samples: str = Inputs.num_samples,
        image_resolution: str = Inputs.image_resolution,
        ddim_steps: int = Inputs.ddim_steps,
        scale: float = Inputs.scale,
        seed: Optional[int] = Inputs.seed,
        eta: float = Inputs.eta,
        a_prompt: str = Inputs.a_prompt,
        n_prompt: str = Inputs.n_prompt,
        detect_resolution: int = Inputs.detect_resolution,
        bg_threshold: float = Inputs.bg_threshold,
    ) -> list[Path]:
        return self.adapter.predict(Normal.predict, locals())


class Pose(BasePredictor):
    """jagilley/controlnet-pose.

    The two thresholds are of canny. They have no effect, as there.
    """

    def setup(self) -> None:
        self.adapter = Jagilley(
            self.record_metric,
            "openpose",
            detect_resolution="detect_resolution",
            low_threshold="low_threshold",
            high_threshold="high_threshold",
        )

    def predict(
        self,
        image: Path = Inputs.image,
        prompt: str = Inputs.prompt,
        num_samples: str = Inputs.num_samples,
        image_resolution: str = Inputs.image_resolution,
        ddim_steps: int = Inputs.ddim_steps,
        scale: float = Inputs.scale,
        seed: Optional[int] = Inputs.seed,
        eta: float = Inputs.eta,
        a_prompt: str = Inputs.a_prompt,
        n_prompt: str = Inputs.n_prompt,
        detect_resolution: int = Inputs.detect_resolution,
        low_threshold: int = Inputs.low_threshold,
        high_threshold: int = Inputs.high_threshold,
    ) -> list[Path]:
        return self.adapter.predict(Pose.predict, locals())


class Scribble(BasePredictor):
    """jagilley/controlnet-scribble.

    A doodle's strokes are used as they are, as there. A photograph gets strokes drawn; there, its shadows became
    blots.
    """

    def setup(self) -> None:
        self.adapter = Jagilley(self.record_metric, "scribble")

    def predict(
        self,
        image: Path = Inputs.image,
        prompt: str = Inputs.prompt,
        num_samples: str = Inputs.num_samples,
        image_resolution: str = Inputs.image_resolution,
        ddim_steps: int = Inputs.ddim_steps,
        scale: float = Inputs.scale,
        seed: Optional[int] = Inputs.seed,
        eta: float = Inputs.eta,
        a_prompt: str = Inputs.a_prompt,
        n_prompt: str = Inputs.n_prompt,
    ) -> list[Path]:
        return self.adapter.predict(Scribble.predict, locals())


class Seg(BasePredictor):
    """jagilley/controlnet-seg.

    That it has `detect_resolution` is known from a client only.
    """

    def setup(self) -> None:
        self.adapter = Jagilley(self.record_metric, "seg", detect_resolution="detect_resolution")

    def predict(
        self,
        image: Path = Inputs.image,
        prompt: str = Inputs.prompt,
        num_samples: str = Inputs.num_samples,
        image_resolution: str = Inputs.image_resolution,
        ddim_steps: int = Inputs.ddim_steps,
        scale: float = Inputs.scale,
        seed: Optional[int] = Inputs.seed,
        eta: float = Inputs.eta,
        a_prompt: str = Inputs.a_prompt,
        n_prompt: str = Inputs.n_prompt,
        detect_resolution: int = Inputs.detect_resolution,
    ) -> list[Path]:
        return self.adapter.predict(Seg.predict, locals())
