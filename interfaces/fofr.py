"""The inputs of fofr's SDXL models with up to three ControlNets, and of their relatives: each class is a predictor of one.

They mean the same in all, and some defaults differ. Cog reads this file without running it. Of a default such as
Inputs.image it reads the Input() in that class.
"""

# pyright: reportArgumentType=false

from typing import Optional

from cog import BasePredictor, Input, Path

from interfaces.fofr_adapter import Fofr

CONTROLNETS = [
    "none",
    "edge_canny",
    "illusion",
    "depth_leres",
    "depth_midas",
    "soft_edge_pidi",
    "soft_edge_hed",
    "lineart",
    "lineart_anime",
    "openpose",
]
SIZING = [
    "width_height",
    "input_image",
    "controlnet_1_image",
    "controlnet_2_image",
    "controlnet_3_image",
    "mask_image",
]
SCHEDULERS = [
    "DDIM",
    "DPMSolverMultistep",
    "HeunDiscrete",
    "KarrasDPM",
    "K_EULER_ANCESTRAL",
    "K_EULER",
    "PNDM",
]


class Inputs:
    """Every input that has one default in all of them."""

    image = Input(default=None, description="A picture to begin with instead of noise.")
    mask = Input(default=None, description="What of image is repainted: white where it is, black where not.")
    sizing_strategy = Input(
        default="width_height",
        choices=SIZING,
        description="Where the size comes from: width and height, or the shape of one of the pictures.",
    )
    num_outputs = Input(default=1, ge=1, le=4, description="How many pictures to make.")
    scheduler = Input(default="K_EULER", choices=SCHEDULERS, description="The sampler.")
    prompt_strength = Input(default=0.8, ge=0.0, le=1.0, description="How much of image is changed.")
    seed = Input(default=None, description="The same seed gives the same pictures.")
    refine = Input(
        default="no_refiner", choices=["no_refiner", "base_image_refiner"], description="There is no refiner here."
    )
    refine_steps = Input(default=None, description="Has no effect.")
    apply_watermark = Input(default=True, description="Has no effect: there is no watermark.")
    lora_scale = Input(default=0.6, ge=0.0, le=1.0, description="How strongly the LoRA acts.")
    lora_weights = Input(
        default=None,
        description="A LoRA: URL of a .safetensors file, Hugging Face owner/model[/file], or CivitAI link.",
    )
    disable_safety_checker = Input(default=False, description="Skip the safety checker.")
    controlnet = Input(default="none", choices=CONTROLNETS, description="Which structure this control takes.")
    controlnet_image = Input(default=None, description="The picture whose structure this control takes.")
    conditioning_scale = Input(default=0.75, ge=0.0, le=4.0, description="How strongly this control acts, 0 to 2.")
    start = Input(default=0.0, ge=0.0, le=1.0, description="Share of the steps after which this control begins.")
    end = Input(default=1.0, ge=0.0, le=1.0, description="Share of the steps after which this control ends.")


class Sdxl(BasePredictor):
    """fofr/sdxl-multi-controlnet-lora, and those that differ from it in the checkpoint alone."""

    def setup(self) -> None:
        self.adapter = Fofr(self.record_metric)

    def predict(
        self,
        prompt: str = Input(
            default="An astronaut riding a rainbow unicorn", description="What the picture should show."
        ),
        negative_prompt: str = Input(default="", description="What the picture should not show."),
        image: Optional[Path] = Inputs.image,
        mask: Optional[Path] = Inputs.mask,
        width: int = Input(default=768, description="Width in pixels, 64 to 2048."),
        height: int = Input(default=768, description="Height in pixels, 64 to 2048."),
        sizing_strategy: str = Inputs.sizing_strategy,
        num_outputs: int = Inputs.num_outputs,
        scheduler: str = Inputs.scheduler,
        num_inference_steps: int = Input(default=30, ge=1, le=500, description="Denoising steps, at most 100."),
        guidance_scale: float = Input(
            default=7.5, ge=1.0, le=50.0, description="How closely the prompt is followed, at most 30."
        ),
        prompt_strength: float = Inputs.prompt_strength,
        seed: Optional[int] = Inputs.seed,
        refine: str = Inputs.refine,
        refine_steps: Optional[int] = Inputs.refine_steps,
        apply_watermark: bool = Inputs.apply_watermark,
        lora_scale: float = Inputs.lora_scale,
        lora_weights: Optional[str] = Inputs.lora_weights,
        disable_safety_checker: bool = Inputs.disable_safety_checker,
        controlnet_1: str = Inputs.controlnet,
        controlnet_1_image: Optional[Path] = Inputs.controlnet_image,
        controlnet_1_conditioning_scale: float = Inputs.conditioning_scale,
        controlnet_1_start: float = Inputs.start,
        controlnet_1_end: float = Inputs.end,
        controlnet_2: str = Inputs.controlnet,
        controlnet_2_image: Optional[Path] = Inputs.controlnet_image,
        controlnet_2_conditioning_scale: float = Inputs.conditioning_scale,
        controlnet_2_start: float = Inputs.start,
        controlnet_2_end: float = Inputs.end,
        controlnet_3: str = Inputs.controlnet,
        controlnet_3_image: Optional[Path] = Inputs.controlnet_image,
        controlnet_3_conditioning_scale: float = Inputs.conditioning_scale,
        controlnet_3_start: float = Inputs.start,
        controlnet_3_end: float = Inputs.end,
    ) -> list[Path]:
        return self.adapter.predict(Sdxl.predict, locals())


class Lcm(BasePredictor):
    """fofr/sdxl-lcm-multi-controlnet-lora.

    Its code could not be read: bounds are those of the others.
    """

    def setup(self) -> None:
        self.adapter = Fofr(self.record_metric, few_steps=True)

    def predict(
        self,
        prompt: str = Input(
            default="An astronaut riding a rainbow unicorn", description="What the picture should show."
        ),
        negative_prompt: str = Input(default="", description="What the picture should not show."),
        image: Optional[Path] = Inputs.image,
        mask: Optional[Path] = Inputs.mask,
        width: int = Input(default=768, description="Width in pixels, 64 to 2048."),
        height: int = Input(default=768, description="Height in pixels, 64 to 2048."),
        sizing_strategy: str = Inputs.sizing_strategy,
        num_outputs: int = Inputs.num_outputs,
        scheduler: str = Inputs.scheduler,
        num_inference_steps: int = Input(default=4, ge=1, le=500, description="Denoising steps, at most 100."),
        guidance_scale: float = Input(
            default=1.1, ge=1.0, le=50.0, description="How closely the prompt is followed, at most 30."
        ),
        prompt_strength: float = Inputs.prompt_strength,
        seed: Optional[int] = Inputs.seed,
        refine: str = Inputs.refine,
        refine_steps: Optional[int] = Inputs.refine_steps,
        apply_watermark: bool = Inputs.apply_watermark,
        lora_scale: float = Inputs.lora_scale,
        lora_weights: Optional[str] = Inputs.lora_weights,
        disable_safety_checker: bool = Inputs.disable_safety_checker,
        controlnet_1: str = Inputs.controlnet,
        controlnet_1_image: Optional[Path] = Inputs.controlnet_image,
        controlnet_1_conditioning_scale: float = Inputs.conditioning_scale,
        controlnet_1_start: float = Inputs.start,
        controlnet_1_end: float = Inputs.end,
        controlnet_2: str = Inputs.controlnet,
        controlnet_2_image: Optional[Path] = Inputs.controlnet_image,
        controlnet_2_conditioning_scale: float = Inputs.conditioning_scale,
        controlnet_2_start: float = Inputs.start,
        controlnet_2_end: float = Inputs.end,
        controlnet_3: str = Inputs.controlnet,
        controlnet_3_image: Optional[Path] = Inputs.controlnet_image,
        controlnet_3_conditioning_scale: float = Inputs.conditioning_scale,
        controlnet_3_start: float = Inputs.start,
        controlnet_3_end: float = Inputs.end,
    ) -> list[Path]:
        return self.adapter.predict(Lcm.predict, locals())


class Lightning(BasePredictor):
    """lucataco/sdxl-lightning-multi-controlnet."""

    def setup(self) -> None:
        self.adapter = Fofr(self.record_metric, few_steps=True)

    def predict(
        self,
        prompt: str = Input(default="A monkey making latte art", description="What the picture should show."),
        negative_prompt: str = Input(
            default="worst quality, low quality", description="What the picture should not show."
        ),
        image: Optional[Path] = Inputs.image,
        mask: Optional[Path] = Inputs.mask,
        width: int = Input(default=1024, description="Width in pixels, 64 to 2048."),
        height: int = Input(default=1024, description="Height in pixels, 64 to 2048."),
        sizing_strategy: str = Inputs.sizing_strategy,
        num_outputs: int = Inputs.num_outputs,
        scheduler: str = Inputs.scheduler,
        num_inference_steps: int = Input(default=4, ge=1, le=500, description="Denoising steps, at most 100."),
        guidance_scale: float = Input(
            default=0.0, ge=0.0, le=50.0, description="How closely the prompt is followed, at most 30."
        ),
        prompt_strength: float = Inputs.prompt_strength,
        seed: Optional[int] = Inputs.seed,
        refine: str = Inputs.refine,
        refine_steps: Optional[int] = Inputs.refine_steps,
        apply_watermark: bool = Inputs.apply_watermark,
        disable_safety_checker: bool = Inputs.disable_safety_checker,
        controlnet_1: str = Inputs.controlnet,
        controlnet_1_image: Optional[Path] = Inputs.controlnet_image,
        controlnet_1_conditioning_scale: float = Inputs.conditioning_scale,
        controlnet_1_start: float = Inputs.start,
        controlnet_1_end: float = Inputs.end,
        controlnet_2: str = Inputs.controlnet,
        controlnet_2_image: Optional[Path] = Inputs.controlnet_image,
        controlnet_2_conditioning_scale: float = Inputs.conditioning_scale,
        controlnet_2_start: float = Inputs.start,
        controlnet_2_end: float = Inputs.end,
        controlnet_3: str = Inputs.controlnet,
        controlnet_3_image: Optional[Path] = Inputs.controlnet_image,
        controlnet_3_conditioning_scale: float = Inputs.conditioning_scale,
        controlnet_3_start: float = Inputs.start,
        controlnet_3_end: float = Inputs.end,
    ) -> list[Path]:
        return self.adapter.predict(Lightning.predict, locals())
