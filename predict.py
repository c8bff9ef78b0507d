"""The public interface: what a client may send, and in what order it is used. Everything else is in controlnet/.

`cog build` reads this file without running it, so names, bounds, defaults and descriptions stand here as plain literals
(tests/serving/test_schema.py checks that; tests/test_predict.py compares the choices with registries in controlnet/).
"""

# pyright: reportArgumentType=false
# (Cog declares choices as a list of str | int, which a list of str is not to a type checker.)

from typing import Optional

from cog import BasePredictor, Input, Path

from controlnet import startup  # first: it imports torch and diffusers in less time
from controlnet.bundle import open_bundle
from controlnet.errors import plain_errors
from controlnet.model import Model
from controlnet.request.reading import read_request
from controlnet.request.request import Request
from controlnet.serving.files import sweep, write_pictures
from controlnet.serving.input_files import take_in_without_threads, use_home
from controlnet.stopwatch import Stopwatch

CONDITIONERS = [
    "canny",
    "hed",
    "mlsd",
    "depth",
    "openpose",
    "scribble",
    "seg",
    "normal",
    "lineart",
    "lineart_anime",
    "shuffle",
    "tile",
    "inpaint",
    "ip2p",
]
NO_CONDITIONER = ["none"]
SCHEDULERS = [
    "DDIM",
    "DPMSolverMultistep",
    "DPMSolverMultistepKarras",
    "HeunDiscrete",
    "K_EULER",
    "K_EULER_ANCESTRAL",
    "K_EULER_KARRAS",
    "KLMS",
    "LCM",
    "PNDM",
    "TCD",
    "UniPCMultistep",
]
POSE_PARTS = ["body", "body_hands", "body_face", "all"]
CONTROL_MODES = ["balanced", "prompt", "control", "unbalanced"]
RESIZE_MODES = ["crop", "fill", "stretch"]
REFERENCE_MODES = ["all", "style"]
OUTPUT_FORMATS = ["webp", "jpg", "png"]


class Predictor(BasePredictor):
    """Turns a prompt, an image and a conditioner into pictures whose structure follows the image."""

    def setup(self) -> None:
        """Load the bundle named by CONTROLNET_BUNDLE: the base model, every ControlNet and every annotator, once.

        The log has a line per part and their sum.
        """
        self.model = Model(open_bundle())
        use_home()
        take_in_without_threads()
        startup.hide_what_is_loaded()
        self.model.bundle.log.ready()

    def predict(
        self,
        prompt: str = Input(
            description="What the picture should show. (word:1.3) weighs a word more, (word:0.7) less.",
        ),
        image: Path = Input(
            description="The picture whose structure is kept: a photo, a drawing, or a ready-made control map.",
            accept="image/*",
        ),
        conditioner: str = Input(
            default="canny",
            choices=CONDITIONERS,
            description="Which structure is kept: canny (hard edges), hed (soft edges), mlsd (straight lines), depth, openpose (poses), scribble (rough strokes), seg (what is where), normal (surfaces), lineart, lineart_anime, shuffle (colours alone), tile (coarse shapes), inpaint (all but the mask), ip2p (instructions).",
        ),
        negative_prompt: str = Input(
            default="",
            description="What the picture should not show.",
        ),
        num_outputs: int = Input(
            default=1,
            ge=1,
            le=4,
            description="How many pictures to make. Picture i is the one that seed + i alone gives.",
        ),
        seed: Optional[int] = Input(
            default=None,
            ge=0,
            le=4294967295,
            description="The same seed and inputs give the same picture. Left out: one is drawn, and the log names it.",
        ),
        resolution: Optional[int] = Input(
            default=None,
            ge=64,
            le=2048,
            description="Short side in pixels; the image's shape is kept. Left out: 512 with sd15, 1024 with sdxl, 256 with tiny.",
        ),
        width: Optional[int] = Input(
            default=None,
            ge=64,
            le=2048,
            description="Width in pixels, in place of resolution. Alone, the height follows from the image's shape.",
        ),
        height: Optional[int] = Input(
            default=None,
            ge=64,
            le=2048,
            description="Height in pixels, in place of resolution. Alone, the width follows from the image's shape.",
        ),
        resize_mode: str = Input(
            default="crop",
            choices=RESIZE_MODES,
            description="For a picture of another shape: crop its middle, fill (all of it, with margins), or stretch.",
        ),
        guidance_scale: Optional[float] = Input(
            default=None,
            ge=0,
            le=30,
            description="How closely the prompt is followed. Left out: 7.5 with sd15, 6 with sdxl, 3 with tiny.",
        ),
        num_inference_steps: Optional[int] = Input(
            default=None,
            ge=1,
            le=100,
            description="Denoising steps: more are slower and finer. Left out: 20, with sdxl 30.",
        ),
        go_fast: bool = Input(
            default=False,
            description="Paint in few steps, with the bundle's LoRA for it: several times as fast, a little coarser.",
        ),
        conditioning_scale: float = Input(
            default=1.0,
            ge=0,
            le=2,
            description="How strongly the control map acts. 0.5 to 1.2 is a good range, 0 ignores it.",
        ),
        preprocess: bool = Input(
            default=True,
            description="On: the control map is drawn from the image. Off: the image is a control map already.",
        ),
        map_only: bool = Input(
            default=False,
            description="Return only the control map and generate nothing; the prompt may be empty.",
        ),
        return_control_map: bool = Input(
            default=False,
            description="Return the control map too, as the first file.",
        ),
        return_pose_json: bool = Input(
            default=False,
            description="openpose: return the poses too, as poses.json, to be edited and sent as pose_json.",
        ),
        lora_weights: Optional[str] = Input(
            default=None,
            description="A LoRA: URL of a .safetensors file, Hugging Face owner/model[/file], or CivitAI link.",
        ),
        lora_scale: Optional[float] = Input(
            default=None,
            ge=-2,
            le=2,
            description="How strongly the LoRA acts; below 0, in reverse. Left out: 1.",
        ),
        lora_weights_2: Optional[str] = Input(
            default=None,
            description="A second LoRA, which acts together with the first.",
        ),
        lora_scale_2: Optional[float] = Input(
            default=None,
            ge=-2,
            le=2,
            description="lora_scale of the second LoRA. Left out: 1.",
        ),
        init_image: Optional[Path] = Input(
            default=None,
            accept="image/*",
            description="A picture to begin with instead of noise, changed as far as prompt_strength says.",
        ),
        prompt_strength: Optional[float] = Input(
            default=None,
            ge=0,
            le=1,
            description="How much of the picture to begin with is changed. Left out: 0.8, and 1 with mask or outpaint.",
        ),
        mask: Optional[Path] = Input(
            default=None,
            accept="image/*",
            description="What of init_image (or, without it, of image) is repainted: white where it is, black where not.",
        ),
        mask_feather: int = Input(
            default=4,
            ge=0,
            le=64,
            description="Pixels over which the edge of mask or outpaint is softened to each side.",
        ),
        outpaint_left: int = Input(
            default=0,
            ge=0,
            le=1024,
            description="Pixels to paint beyond the left edge, by which the picture grows.",
        ),
        outpaint_right: int = Input(
            default=0,
            ge=0,
            le=1024,
            description="Pixels to paint beyond the right edge, by which the picture grows.",
        ),
        outpaint_top: int = Input(
            default=0,
            ge=0,
            le=1024,
            description="Pixels to paint beyond the top edge, by which the picture grows.",
        ),
        outpaint_bottom: int = Input(
            default=0,
            ge=0,
            le=1024,
            description="Pixels to paint beyond the bottom edge, by which the picture grows.",
        ),
        upscale: float = Input(
            default=1.0,
            ge=1,
            le=4,
            description="How many times as wide and high a second pass makes the picture, with new details.",
        ),
        upscale_strength: float = Input(
            default=0.4,
            ge=0,
            le=1,
            description="upscale: how much the second pass may change. 0.3 to 0.5 is a good range.",
        ),
        reference_image: Optional[Path] = Input(
            default=None,
            accept="image/*",
            description="What the picture should be like: the colours, style and things of this one. Its middle square counts.",
        ),
        reference_scale: Optional[float] = Input(
            default=None,
            ge=0,
            le=1.5,
            description="How strongly reference_image acts; 0 ignores it. Left out: 0.6, with tiny 1.",
        ),
        reference_mode: str = Input(
            default="all",
            choices=REFERENCE_MODES,
            description="What of reference_image acts: all, or style (its look, without its things).",
        ),
        reference_mask: Optional[Path] = Input(
            default=None,
            accept="image/*",
            description="Where reference_image acts: white where it does, black where it does not.",
        ),
        control_start: float = Input(
            default=0.0,
            ge=0,
            le=1,
            description="Share of the steps after which control begins. Above 0, the prompt lays out the picture.",
        ),
        control_end: float = Input(
            default=1.0,
            ge=0,
            le=1,
            description="Share of the steps after which control ends. 0.5 to 0.8 leaves details to the prompt.",
        ),
        control_mode: Optional[str] = Input(
            default=None,
            choices=CONTROL_MODES,
            description="Who wins where prompt and map disagree: balanced (neither, as the net was trained), prompt, control (the map, but less in details), unbalanced (the map). Left out: balanced, with tiny unbalanced.",
        ),
        control_mask: Optional[Path] = Input(
            default=None,
            accept="image/*",
            description="Where the control acts: white where it does, black where the prompt alone paints.",
        ),
        detect_resolution: Optional[int] = Input(
            default=None,
            ge=64,
            le=2048,
            description="Short side at which the annotator sees the image: more finds finer structure.",
        ),
        low_threshold: Optional[int] = Input(
            default=None,
            ge=0,
            le=255,
            description="canny: edges weaker than this are dropped. Lower finds more. Left out: 100.",
        ),
        high_threshold: Optional[int] = Input(
            default=None,
            ge=0,
            le=255,
            description="canny: edges stronger than this are kept. Lower finds more. Left out: 200.",
        ),
        hed_safe: Optional[bool] = Input(
            default=None,
            description="hed: three levels of strength, without faint traces of textures. Left out: on.",
        ),
        mlsd_score_threshold: Optional[float] = Input(
            default=None,
            ge=0,
            le=1,
            description="mlsd: how sure a line must be. Left out: 0.1, with tiny 0.5.",
        ),
        mlsd_distance_threshold: Optional[float] = Input(
            default=None,
            ge=0,
            le=20,
            description="mlsd: the least length of a line, in pixels of the network's output. Left out: 0.1, with tiny 6.",
        ),
        shuffle_seed: Optional[int] = Input(
            default=None,
            ge=0,
            le=4294967295,
            description="shuffle: another number moves the colours to other places.",
        ),
        tile_factor: Optional[float] = Input(
            default=None,
            ge=1,
            le=16,
            description="tile: how far details are dropped, to be repainted. Left out: 1, not at all.",
        ),
        pose_parts: Optional[str] = Input(
            default=None,
            choices=POSE_PARTS,
            description="openpose: what to find and draw of people. Left out: body, and all that is in a pose_json.",
        ),
        pose_json: Optional[str] = Input(
            default=None,
            description="openpose: people's poses as OpenPose's JSON, in place of those found in the image.",
        ),
        conditioner_2: Optional[str] = Input(
            default=None,
            choices=NO_CONDITIONER + CONDITIONERS,
            description="A second control beside the first: which structure it takes.",
        ),
        image_2: Optional[Path] = Input(
            default=None,
            accept="image/*",
            description="The picture of the second control. Left out: image.",
        ),
        preprocess_2: Optional[bool] = Input(
            default=None,
            description="preprocess of the second control. Left out: on.",
        ),
        conditioning_scale_2: Optional[float] = Input(
            default=None,
            ge=0,
            le=2,
            description="conditioning_scale of the second control; 0.5 to 0.8 each is good. Left out: 1.",
        ),
        control_start_2: Optional[float] = Input(
            default=None,
            ge=0,
            le=1,
            description="control_start of the second control. Left out: 0.",
        ),
        control_end_2: Optional[float] = Input(
            default=None,
            ge=0,
            le=1,
            description="control_end of the second control. Left out: 1.",
        ),
        control_mask_2: Optional[Path] = Input(
            default=None,
            accept="image/*",
            description="control_mask of the second control: a region for each. Left out: everywhere.",
        ),
        conditioner_3: Optional[str] = Input(
            default=None,
            choices=NO_CONDITIONER + CONDITIONERS,
            description="A third control beside the first: which structure it takes.",
        ),
        image_3: Optional[Path] = Input(
            default=None,
            accept="image/*",
            description="The picture of the third control. Left out: image.",
        ),
        preprocess_3: Optional[bool] = Input(
            default=None,
            description="preprocess of the third control. Left out: on.",
        ),
        conditioning_scale_3: Optional[float] = Input(
            default=None,
            ge=0,
            le=2,
            description="conditioning_scale of the third control; 0.5 to 0.8 each is good. Left out: 1.",
        ),
        control_start_3: Optional[float] = Input(
            default=None,
            ge=0,
            le=1,
            description="control_start of the third control. Left out: 0.",
        ),
        control_end_3: Optional[float] = Input(
            default=None,
            ge=0,
            le=1,
            description="control_end of the third control. Left out: 1.",
        ),
        control_mask_3: Optional[Path] = Input(
            default=None,
            accept="image/*",
            description="control_mask of the third control: a region for each. Left out: everywhere.",
        ),
        scheduler: Optional[str] = Input(
            default=None,
            choices=SCHEDULERS,
            description="The sampler. Left out: UniPCMultistep with sd15, K_EULER_ANCESTRAL with sdxl, DDIM with tiny.",
        ),
        eta: Optional[float] = Input(
            default=None,
            ge=0,
            le=1,
            description="DDIM, TCD: noise added at each step, from 0 (none) to 1. Left out: 0, with TCD 0.3.",
        ),
        clip_skip: Optional[int] = Input(
            default=None,
            ge=1,
            le=12,
            description="Layer of the text encoder, counted from the last; 2 suits anime. Left out: the bundle's.",
        ),
        output_format: str = Input(
            default="webp",
            choices=OUTPUT_FORMATS,
            description="File format of what is returned: png is lossless and large, webp and jpg are small.",
        ),
        output_quality: int = Input(
            default=80,
            ge=0,
            le=100,
            description="Quality of webp and jpg pictures, from 0 (smallest file) to 100 (best).",
        ),
        disable_safety_checker: bool = Input(
            default=False,
            description="Skip the safety checker. Otherwise a picture that it flags is withheld.",
        ),
    ) -> list[Path]:
        """Return the files of one request: the control maps first if they are asked for, then the pictures."""
        # All arguments by their names, so that no list of them stands beside the signature: reading.py makes the fields
        # of a Request of them. `image` becomes `image` of its first RequestedControl (CONTROL_INPUTS).
        arguments = locals()
        with plain_errors():
            return self._answer(read_request(Predictor.predict, arguments, self.model.bundle))

    def _answer(self, request: Request) -> list[Path]:
        """Make the pictures and write them to files."""
        sweep(keep=request.files)
        answer = self.model.answer(request, self.record_metric)
        with Stopwatch(self.record_metric)("output"):
            return write_pictures(
                answer.maps, answer.pictures, request.output_format, request.output_quality, answer.poses
            )
