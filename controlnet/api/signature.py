"""The inputs of predict.py as a typed Python function. Written by script/write-signature; do not edit it."""

from collections.abc import Mapping
from typing import Any, Literal

from controlnet.api.called import calls_make
from controlnet.api.made import Pictures
from controlnet.api.sent import LoraWeights, Picture

Conditioner = Literal[
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
ResizeMode = Literal[
    "crop",
    "fill",
    "stretch",
]
ReferenceMode = Literal[
    "all",
    "style",
]
ControlMode = Literal[
    "balanced",
    "prompt",
    "control",
    "unbalanced",
]
PoseParts = Literal[
    "body",
    "body_hands",
    "body_face",
    "all",
]
Conditioner2 = Literal[
    "none",
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
Scheduler = Literal[
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
OutputFormat = Literal[
    "webp",
    "jpg",
    "png",
]


class Signature:
    """Has the signature of a request."""

    def make(self, inputs: Mapping[str, Any]) -> Pictures:
        """The pictures of a request whose inputs are in a mapping."""
        raise NotImplementedError

    @calls_make
    def __call__(
        self,
        prompt: str,
        image: Picture,
        conditioner: Conditioner = "canny",
        *,
        negative_prompt: str = "",
        num_outputs: int = 1,
        seed: int | None = None,
        resolution: int | None = None,
        width: int | None = None,
        height: int | None = None,
        resize_mode: ResizeMode = "crop",
        guidance_scale: float | None = None,
        num_inference_steps: int | None = None,
        go_fast: bool = False,
        conditioning_scale: float = 1.0,
        preprocess: bool = True,
        map_only: bool = False,
        return_control_map: bool = False,
        return_pose_json: bool = False,
        lora_weights: LoraWeights | None = None,
        lora_scale: float | None = None,
        lora_weights_2: LoraWeights | None = None,
        lora_scale_2: float | None = None,
        init_image: Picture | None = None,
        prompt_strength: float | None = None,
        mask: Picture | None = None,
        mask_feather: int = 4,
        outpaint_left: int = 0,
        outpaint_right: int = 0,
        outpaint_top: int = 0,
        outpaint_bottom: int = 0,
        upscale: float = 1.0,
        upscale_strength: float = 0.4,
        reference_image: Picture | None = None,
        reference_scale: float | None = None,
        reference_mode: ReferenceMode = "all",
        reference_mask: Picture | None = None,
        control_start: float = 0.0,
        control_end: float = 1.0,
        control_mode: ControlMode | None = None,
        control_mask: Picture | None = None,
        detect_resolution: int | None = None,
        low_threshold: int | None = None,
        high_threshold: int | None = None,
        hed_safe: bool | None = None,
        mlsd_score_threshold: float | None = None,
        mlsd_distance_threshold: float | None = None,
        shuffle_seed: int | None = None,
        tile_factor: float | None = None,
        pose_parts: PoseParts | None = None,
        pose_json: str | None = None,
        conditioner_2: Conditioner2 | None = None,
        image_2: Picture | None = None,
        preprocess_2: bool | None = None,
        conditioning_scale_2: float | None = None,
        control_start_2: float | None = None,
        control_end_2: float | None = None,
        control_mask_2: Picture | None = None,
        conditioner_3: Conditioner2 | None = None,
        image_3: Picture | None = None,
        preprocess_3: bool | None = None,
        conditioning_scale_3: float | None = None,
        control_start_3: float | None = None,
        control_end_3: float | None = None,
        control_mask_3: Picture | None = None,
        scheduler: Scheduler | None = None,
        eta: float | None = None,
        clip_skip: int | None = None,
        output_format: OutputFormat = "webp",
        output_quality: int = 80,
        disable_safety_checker: bool = False,
    ) -> Pictures:
        """Make the pictures of one request and return them as a list of PIL pictures, in the order of their seeds.

        The list also has `maps`, `poses`, `metrics`, `seed` and `save(folder)`. A picture may be sent as a PIL picture,
        a NumPy array (uint8 or bool; H×W, H×W×3 or H×W×4), the content of a file (bytes), a path, or a URL.

        Raises ValueError for a request that cannot be met, in the server's words: what was expected, what came, what to
        do. Raises RuntimeError if the request needs more memory than there is, or if making the pictures fails.

        prompt: What the picture should show. (word:1.3) weighs a word more, (word:0.7) less.
        image: The picture whose structure is kept: a photo, a drawing, or a ready-made control map.
        conditioner: Which structure is kept: canny (hard edges), hed (soft edges), mlsd (straight lines), depth,
            openpose (poses), scribble (rough strokes), seg (what is where), normal (surfaces), lineart, lineart_anime,
            shuffle (colours alone), tile (coarse shapes), inpaint (all but the mask), ip2p (instructions).
        negative_prompt: What the picture should not show.
        num_outputs: How many pictures to make. Picture i is the one that seed + i alone gives.
        seed: The same seed and inputs give the same picture. Left out: one is drawn, and the log names it.
        resolution: Short side in pixels; the image's shape is kept. Left out: 512 with sd15, 1024 with sdxl, 256 with
            tiny.
        width: Width in pixels, in place of resolution. Alone, the height follows from the image's shape.
        height: Height in pixels, in place of resolution. Alone, the width follows from the image's shape.
        resize_mode: For a picture of another shape: crop its middle, fill (all of it, with margins), or stretch.
        guidance_scale: How closely the prompt is followed. Left out: 7.5 with sd15, 6 with sdxl, 3 with tiny.
        num_inference_steps: Denoising steps: more are slower and finer. Left out: 20, with sdxl 30.
        go_fast: Paint in few steps, with the bundle's LoRA for it: several times as fast, a little coarser.
        conditioning_scale: How strongly the control map acts. 0.5 to 1.2 is a good range, 0 ignores it.
        preprocess: On: the control map is drawn from the image. Off: the image is a control map already.
        map_only: Return only the control map and generate nothing; the prompt may be empty.
        return_control_map: Return the control map too, as the first file.
        return_pose_json: openpose: return the poses too, as poses.json, to be edited and sent as pose_json.
        lora_weights: A LoRA: URL of a .safetensors file, Hugging Face owner/model[/file], or CivitAI link.
        lora_scale: How strongly the LoRA acts; below 0, in reverse. Left out: 1.
        lora_weights_2: A second LoRA, which acts together with the first.
        lora_scale_2: lora_scale of the second LoRA. Left out: 1.
        init_image: A picture to begin with instead of noise, changed as far as prompt_strength says.
        prompt_strength: How much of the picture to begin with is changed. Left out: 0.8, and 1 with mask or outpaint.
        mask: What of init_image (or, without it, of image) is repainted: white where it is, black where not.
        mask_feather: Pixels over which the edge of mask or outpaint is softened to each side.
        outpaint_left: Pixels to paint beyond the left edge, by which the picture grows.
        outpaint_right: Pixels to paint beyond the right edge, by which the picture grows.
        outpaint_top: Pixels to paint beyond the top edge, by which the picture grows.
        outpaint_bottom: Pixels to paint beyond the bottom edge, by which the picture grows.
        upscale: How many times as wide and high a second pass makes the picture, with new details.
        upscale_strength: upscale: how much the second pass may change. 0.3 to 0.5 is a good range.
        reference_image: What the picture should be like: the colours, style and things of this one. Its middle square
            counts.
        reference_scale: How strongly reference_image acts; 0 ignores it. Left out: 0.6, with tiny 1.
        reference_mode: What of reference_image acts: all, or style (its look, without its things).
        reference_mask: Where reference_image acts: white where it does, black where it does not.
        control_start: Share of the steps after which control begins. Above 0, the prompt lays out the picture.
        control_end: Share of the steps after which control ends. 0.5 to 0.8 leaves details to the prompt.
        control_mode: Who wins where prompt and map disagree: balanced (neither, as the net was trained), prompt,
            control (the map, but less in details), unbalanced (the map). Left out: balanced, with tiny unbalanced.
        control_mask: Where the control acts: white where it does, black where the prompt alone paints.
        detect_resolution: Short side at which the annotator sees the image: more finds finer structure.
        low_threshold: canny: edges weaker than this are dropped. Lower finds more. Left out: 100.
        high_threshold: canny: edges stronger than this are kept. Lower finds more. Left out: 200.
        hed_safe: hed: three levels of strength, without faint traces of textures. Left out: on.
        mlsd_score_threshold: mlsd: how sure a line must be. Left out: 0.1, with tiny 0.5.
        mlsd_distance_threshold: mlsd: the least length of a line, in pixels of the network's output. Left out: 0.1,
            with tiny 6.
        shuffle_seed: shuffle: another number moves the colours to other places.
        tile_factor: tile: how far details are dropped, to be repainted. Left out: 1, not at all.
        pose_parts: openpose: what to find and draw of people. Left out: body, and all that is in a pose_json.
        pose_json: openpose: people's poses as OpenPose's JSON, in place of those found in the image.
        conditioner_2: A second control beside the first: which structure it takes.
        image_2: The picture of the second control. Left out: image.
        preprocess_2: preprocess of the second control. Left out: on.
        conditioning_scale_2: conditioning_scale of the second control; 0.5 to 0.8 each is good. Left out: 1.
        control_start_2: control_start of the second control. Left out: 0.
        control_end_2: control_end of the second control. Left out: 1.
        control_mask_2: control_mask of the second control: a region for each. Left out: everywhere.
        conditioner_3: A third control beside the first: which structure it takes.
        image_3: The picture of the third control. Left out: image.
        preprocess_3: preprocess of the third control. Left out: on.
        conditioning_scale_3: conditioning_scale of the third control; 0.5 to 0.8 each is good. Left out: 1.
        control_start_3: control_start of the third control. Left out: 0.
        control_end_3: control_end of the third control. Left out: 1.
        control_mask_3: control_mask of the third control: a region for each. Left out: everywhere.
        scheduler: The sampler. Left out: UniPCMultistep with sd15, K_EULER_ANCESTRAL with sdxl, DDIM with tiny.
        eta: DDIM, TCD: noise added at each step, from 0 (none) to 1. Left out: 0, with TCD 0.3.
        clip_skip: Layer of the text encoder, counted from the last; 2 suits anime. Left out: the bundle's.
        output_format: File format of what is returned: png is lossless and large, webp and jpg are small.
        output_quality: Quality of webp and jpg pictures, from 0 (smallest file) to 100 (best).
        disable_safety_checker: Skip the safety checker. Otherwise a picture that it flags is withheld.
        """
        raise NotImplementedError
