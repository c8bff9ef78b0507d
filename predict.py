"""The public interface: what a client may send, and in what order it is used. Everything else is in controlnet/.

`cog build` reads this file without running it, so names, bounds, defaults and descriptions stand here as plain literals
(tests/serving/test_schema.py checks that; tests/test_predict.py compares the choices with registries in controlnet/).
"""

# pyright: reportArgumentType=false
# (Cog declares choices as a list of str | int, which a list of str is not to a type checker.)

from typing import Optional

from cog import BasePredictor, Input, Path

from controlnet import startup  # first, for it imports torch and diffusers in less time
from controlnet.bundle import open_bundle
from controlnet.errors import plain_errors
from controlnet.generation.generator import Generator
from controlnet.generation.job import make_job
from controlnet.generation.safety import open_safety_checker, withhold
from controlnet.maps.cache import MapCache
from controlnet.maps.controls import Control, draw_controls, found_poses
from controlnet.pictures.canvas import lay_out
from controlnet.pictures.output import write_pictures
from controlnet.pictures.temporary import sweep, use_home
from controlnet.request.ask import Ask
from controlnet.serving.input_files import take_in_without_threads
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
    "PNDM",
    "UniPCMultistep",
]
POSE_PARTS = ["body", "body_hands", "body_face", "all"]
CONTROL_MODES = ["balanced", "prompt", "control", "unbalanced"]
RESIZE_MODES = ["crop", "fill", "stretch"]
OUTPUT_FORMATS = ["webp", "jpg", "png"]


class Predictor(BasePredictor):
    """Turns a prompt, an image and a conditioner into pictures whose structure follows the image."""

    def setup(self) -> None:
        """Load the bundle named by CONTROLNET_BUNDLE: the base model, every ControlNet and every annotator, once.

        The log has a line per part and their sum.
        """
        self.bundle = open_bundle()
        self.generator = Generator(self.bundle)
        self.annotators = self.bundle.annotators()
        self.maps = MapCache()
        self.safety_checker = open_safety_checker(self.bundle)
        self.bundle.log.summarise()
        self.generator.warm_up()
        use_home()
        take_in_without_threads()
        startup.hide_what_is_loaded()
        self.bundle.log.ready()

    def predict(
        self,
        prompt: str = Input(
            description="What the picture should show, in plain words. A long one is used to its end: with sd15, 1500 tokens (about a thousand words) fit. (word:1.3) gives a word more weight and (word:0.7) less; a backslash before a bracket leaves it a bracket.",
        ),
        image: Path = Input(
            description="The picture whose structure is kept: a photo, a drawing, or (with preprocess off) a ready-made control map. PNG, JPEG, WebP, GIF, BMP or TIFF, at least 16 pixels on each side and at most 4 times as long as wide.",
            accept="image/*",
        ),
        conditioner: str = Input(
            default="canny",
            choices=CONDITIONERS,
            description="Which structure is taken from the image: canny (hard edges), hed (soft edges), mlsd (straight lines), depth, openpose (people's poses), scribble (rough strokes or a doodle), seg (what is where), normal (how surfaces face), lineart (drawn lines), lineart_anime (lines as in anime), shuffle (colours and textures without the layout), tile (coarse shapes; details are painted anew), inpaint (everything but what mask covers), ip2p (the image itself, for prompts such as 'make it winter'). sd15 has all of them, tiny only some.",
        ),
        negative_prompt: str = Input(
            default="",
            description="What the picture should not show, in plain words. Has no effect where guidance_scale is 1 or less.",
        ),
        preprocess: bool = Input(
            default=True,
            description="On: the control map is drawn from the image. Off: the image already is a control map and is used as it is.",
        ),
        map_only: bool = Input(
            default=False,
            description="Return only the control map and generate nothing: a quick look at what the conditioner sees.",
        ),
        conditioning_scale: float = Input(
            default=1.0,
            ge=0,
            le=2,
            description="How strongly the control map shapes the picture. 0 ignores it, 1 is what the ControlNet was trained for, above 1.5 pictures look forced. 0.5 to 1.2 is a good range.",
        ),
        control_start: float = Input(
            default=0.0,
            ge=0,
            le=1,
            description="Share of the steps after which control begins. Above 0, the prompt alone lays out the picture first. Must be below control_end.",
        ),
        control_end: float = Input(
            default=1.0,
            ge=0,
            le=1,
            description="Share of the steps after which control ends. 0.5 to 0.8 keeps the layout and leaves the details to the prompt. Must be above control_start.",
        ),
        detect_resolution: Optional[int] = Input(
            default=None,
            ge=64,
            le=2048,
            description="Short side in pixels at which the annotator sees the image: more finds finer structure, less only the large. Left out: that of the picture to be made, and for most networks the 512 they were trained at.",
        ),
        low_threshold: Optional[int] = Input(
            default=None,
            ge=0,
            le=255,
            description="canny: edges weaker than this are dropped, whatever they touch. Lower finds more. Left out: 100.",
        ),
        high_threshold: Optional[int] = Input(
            default=None,
            ge=0,
            le=255,
            description="canny: edges stronger than this are kept, and the weaker ones that touch them. Lower finds more. Left out: 200.",
        ),
        hed_safe: Optional[bool] = Input(
            default=None,
            description="hed: edge strengths in three levels, without faint traces of the image's textures. Off: all strengths, finer. Left out: on.",
        ),
        mlsd_score_threshold: Optional[float] = Input(
            default=None,
            ge=0,
            le=1,
            description="mlsd: how sure a line must be. Lower finds more. Left out: 0.1 with sd15, 0.5 with tiny.",
        ),
        mlsd_distance_threshold: Optional[float] = Input(
            default=None,
            ge=0,
            le=20,
            description="mlsd: how long a line must be, in pixels of the network. Higher leaves out short ones. Left out: 0.1 with sd15, 6 with tiny.",
        ),
        shuffle_seed: Optional[int] = Input(
            default=None,
            ge=0,
            le=4294967295,
            description="shuffle: another number moves the colours to other places. Left out: the image itself decides.",
        ),
        tile_factor: Optional[float] = Input(
            default=None,
            ge=1,
            le=16,
            description="tile: by how much the image is reduced first, so that its details are dropped and painted anew. Left out: 1, it is shown whole.",
        ),
        pose_parts: Optional[str] = Input(
            default=None,
            choices=POSE_PARTS,
            description="What openpose finds and draws of people. Hands and faces need OpenPose's own networks (sd15 with CONTROLNET_OPENPOSE_CMU=1), or a pose_json that has them. Left out: body, and all that is in a pose_json.",
        ),
        pose_json: Optional[str] = Input(
            default=None,
            description="People's poses for openpose, in place of those found in image: OpenPose's JSON, as pose editors write it. It is stretched to the canvas; image only sets the size.",
        ),
        control_mode: Optional[str] = Input(
            default=None,
            choices=CONTROL_MODES,
            description="How prompt and control map share the picture: balanced; prompt (fine layers are controlled less, so that the prompt wins where the two disagree); control (the same, with control amplified by guidance_scale); unbalanced (control in full, amplified by guidance_scale). shuffle is amplified in every mode: its net knows no other way. Left out: balanced with sd15, unbalanced with tiny.",
        ),
        control_mask: Optional[Path] = Input(
            default=None,
            accept="image/*",
            description="Where the control acts: white where it does, black where the prompt alone paints, grey for part. Fitted to the picture to be made. Left out: everywhere.",
        ),
        conditioner_2: Optional[str] = Input(
            default=None,
            choices=NO_CONDITIONER + CONDITIONERS,
            description="A second control beside the first: which structure it takes. none, or left out: there is no second control, and the other inputs that end with _2 have no effect.",
        ),
        image_2: Optional[Path] = Input(
            default=None,
            accept="image/*",
            description="The picture that the second control takes its structure from. Left out: image.",
        ),
        preprocess_2: Optional[bool] = Input(
            default=None,
            description="As preprocess, for the second control: off where image_2 already is a control map. Left out: on.",
        ),
        conditioning_scale_2: Optional[float] = Input(
            default=None,
            ge=0,
            le=2,
            description="As conditioning_scale, for the second control. With several controls, 0.5 to 0.8 each is a good start. Left out: 1.",
        ),
        control_start_2: Optional[float] = Input(
            default=None,
            ge=0,
            le=1,
            description="As control_start, for the second control. Left out: 0.",
        ),
        control_end_2: Optional[float] = Input(
            default=None,
            ge=0,
            le=1,
            description="As control_end, for the second control. Left out: 1.",
        ),
        control_mask_2: Optional[Path] = Input(
            default=None,
            accept="image/*",
            description="As control_mask, for the second control: a region for each. Left out: everywhere.",
        ),
        conditioner_3: Optional[str] = Input(
            default=None,
            choices=NO_CONDITIONER + CONDITIONERS,
            description="A third control beside the first: which structure it takes. none, or left out: there is no third control, and the other inputs that end with _3 have no effect.",
        ),
        image_3: Optional[Path] = Input(
            default=None,
            accept="image/*",
            description="The picture that the third control takes its structure from. Left out: image.",
        ),
        preprocess_3: Optional[bool] = Input(
            default=None,
            description="As preprocess, for the third control: off where image_3 already is a control map. Left out: on.",
        ),
        conditioning_scale_3: Optional[float] = Input(
            default=None,
            ge=0,
            le=2,
            description="As conditioning_scale, for the third control. With several controls, 0.5 to 0.8 each is a good start. Left out: 1.",
        ),
        control_start_3: Optional[float] = Input(
            default=None,
            ge=0,
            le=1,
            description="As control_start, for the third control. Left out: 0.",
        ),
        control_end_3: Optional[float] = Input(
            default=None,
            ge=0,
            le=1,
            description="As control_end, for the third control. Left out: 1.",
        ),
        control_mask_3: Optional[Path] = Input(
            default=None,
            accept="image/*",
            description="As control_mask, for the third control: a region for each. Left out: everywhere.",
        ),
        init_image: Optional[Path] = Input(
            default=None,
            accept="image/*",
            description="A picture to begin with instead of noise: it is changed as far as prompt_strength says, under the control of image. It sets the aspect ratio. Left out: from noise, or with mask or outpaint from image itself.",
        ),
        prompt_strength: Optional[float] = Input(
            default=None,
            ge=0,
            le=1,
            description="How much of the picture to begin with is changed: 1 keeps next to nothing, 0.3 retouches. It is the share of the steps that are taken. Left out: 0.8, and 1 with mask or outpaint.",
        ),
        mask: Optional[Path] = Input(
            default=None,
            accept="image/*",
            description="What of init_image (or, without it, of image) is repainted: white where it is, black where it is kept, grey in between. Best with the inpaint conditioner.",
        ),
        mask_feather: int = Input(
            default=4,
            ge=0,
            le=64,
            description="Pixels over which the edge of mask or outpaint is softened to each side, so that no seam shows. Farther away, black keeps each pixel. 0: a hard edge.",
        ),
        outpaint_left: int = Input(
            default=0,
            ge=0,
            le=1024,
            description="How many pixels to paint beyond the left edge of init_image (or, without it, of image), rounded up to a multiple of 8. The picture grows by as much.",
        ),
        outpaint_right: int = Input(
            default=0,
            ge=0,
            le=1024,
            description="How many pixels to paint beyond the right edge of init_image (or, without it, of image), rounded up to a multiple of 8. The picture grows by as much.",
        ),
        outpaint_top: int = Input(
            default=0,
            ge=0,
            le=1024,
            description="How many pixels to paint beyond the top edge of init_image (or, without it, of image), rounded up to a multiple of 8. The picture grows by as much.",
        ),
        outpaint_bottom: int = Input(
            default=0,
            ge=0,
            le=1024,
            description="How many pixels to paint beyond the bottom edge of init_image (or, without it, of image), rounded up to a multiple of 8. The picture grows by as much.",
        ),
        num_outputs: int = Input(
            default=1,
            ge=1,
            le=4,
            description="How many pictures to make. Picture i is the one that seed + i alone would give.",
        ),
        resolution: Optional[int] = Input(
            default=None,
            ge=64,
            le=2048,
            description="Length of the picture's short side in pixels; the image's aspect ratio is kept, and both sides are rounded to multiples of 8. Left out: the size that the bundle was trained for, 512 with sd15 and 128 with tiny.",
        ),
        width: Optional[int] = Input(
            default=None,
            ge=64,
            le=2048,
            description="Width of the picture in pixels, rounded to a multiple of 8, in place of resolution. With width alone, height follows from the aspect ratio.",
        ),
        height: Optional[int] = Input(
            default=None,
            ge=64,
            le=2048,
            description="Height of the picture in pixels, rounded to a multiple of 8, in place of resolution. With height alone, width follows from the aspect ratio.",
        ),
        resize_mode: str = Input(
            default="crop",
            choices=RESIZE_MODES,
            description="What becomes of a picture of another shape than the one to be made: crop (its middle part is used), fill (all of it, with margins), stretch.",
        ),
        num_inference_steps: Optional[int] = Input(
            default=None,
            ge=1,
            le=100,
            description="Denoising steps. More are slower and finer; beyond 50 little changes. Left out: 20.",
        ),
        guidance_scale: Optional[float] = Input(
            default=None,
            ge=0,
            le=30,
            description="How closely the picture follows the prompt. 1 or less: no guidance; above 15, colours burn out. Left out: 7.5 with sd15, 3 with tiny.",
        ),
        clip_skip: int = Input(
            default=1,
            ge=1,
            le=12,
            description="Which layer of the text encoder the prompt is read from, counted from the last: 1 is what sd15 was trained with, 2 suits anime and lineart_anime. sd15 has 12 layers, tiny 2.",
        ),
        scheduler: Optional[str] = Input(
            default=None,
            choices=SCHEDULERS,
            description="The sampler that walks from noise to picture. They differ in speed and character more than in quality. Left out: UniPCMultistep with sd15, DDIM with tiny.",
        ),
        seed: Optional[int] = Input(
            default=None,
            ge=0,
            le=4294967295,
            description="Starting point of the random numbers: the same seed and inputs give the same picture. 0 is a seed like any other. Left out: one is drawn, and named in the log and the metrics.",
        ),
        return_control_map: bool = Input(
            default=False,
            description="Return the control map too, as the first file, before the pictures.",
        ),
        return_pose_json: bool = Input(
            default=False,
            description="Return the poses that openpose found too, as poses.json, after the control maps: to be edited and sent back as pose_json.",
        ),
        output_format: str = Input(
            default="webp",
            choices=OUTPUT_FORMATS,
            description="File format of what is returned. png is lossless and large, webp and jpg are small.",
        ),
        output_quality: int = Input(
            default=80,
            ge=0,
            le=100,
            description="Quality of webp and jpg pictures, from 0 (smallest file) to 100 (best). png is always lossless.",
        ),
        disable_safety_checker: bool = Input(
            default=False,
            description="Skip the safety checker for this request. Otherwise a picture that it flags is withheld.",
        ),
    ) -> list[Path]:
        """Return the files of one request: the control maps first if they are asked for, then the pictures."""
        with plain_errors():
            return self._answer(Ask.read(Predictor.predict, locals(), self.bundle))

    def _answer(self, ask: Ask) -> list[Path]:
        """The steps of a request: open its pictures, draw its control maps, generate, check, write."""
        sweep(keep=ask.files)
        self._say_ignored(ask)
        layout = lay_out(ask, self.bundle.manifest.limits.pixels)
        timed = Stopwatch(self.record_metric)
        with timed("preprocess"):
            controls = draw_controls(ask, layout, self.annotators, self.maps)
        self._say_people(ask, controls)
        maps, poses = [control.control_map for control in controls], found_poses(controls)
        if ask.map_only:
            return write_pictures(maps, [], ask.output_format, ask.output_quality, poses)

        print(f"seed: {ask.seed}")
        width, height = layout.canvas.size
        self._record(seed=ask.seed, steps=ask.num_inference_steps, width=width, height=height)
        pictures = self.generator.generate(make_job(ask, controls, layout.initial), timed)
        with timed("safety"):
            allowed = withhold(pictures, self.safety_checker, ask.disable_safety_checker)
        self._record(withheld=len(pictures) - len(allowed))
        with timed("output"):
            returned = maps if ask.return_control_map else []
            return write_pictures(returned, allowed, ask.output_format, ask.output_quality, poses)

    def _say_ignored(self, ask: Ask) -> None:
        """Name the inputs that have no effect: in one line of the log with the reasons, and in the metrics."""
        if ask.ignored:
            print(f"ignored: {'; '.join(map(str, ask.ignored))}")
        self._record(ignored=[name for each in ask.ignored for name in each.names])

    def _say_people(self, ask: Ask, controls: tuple[Control, ...]) -> None:
        """Record how many people each openpose map shows, and say in the log if there are none."""
        for asked, control in zip(ask.controls, controls, strict=True):
            if control.people is None:
                continue
            self._record(**{f"people{asked.suffix}": control.people})
            if control.people == 0:
                picture = asked.input("image") if asked.has_own_image else "image"
                source = picture if ask.pose_json is None else "pose_json"
                print(f"{asked.conditioner}: nobody in {source}, so its control map is empty")

    def _record(self, **figures: int | list[str]) -> None:
        """Put figures of this request into the metrics of its response, with the bundle and the device."""
        about = {"bundle": self.bundle.manifest.name, "device": self.bundle.device.type}
        for name, value in (about | figures).items():
            self.record_metric(name, value)
