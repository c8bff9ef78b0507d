"""The public interface: what a client may send, and in what order it is used. Everything else is in controlnet/.

`cog build` reads this file without running it, so names, bounds, defaults and descriptions stand here as plain literals
(tests/test_schema.py holds that; tests/test_predict.py holds the choices equal to the registries in controlnet/).
"""

# pyright: reportArgumentType=false
# (Cog declares choices as a list of str | int, which a list of str is not to a type checker.)

from types import SimpleNamespace
from typing import Optional

from cog import BasePredictor, Input, Path

from controlnet.bundle import open_bundle
from controlnet.conditioners import check_conditioner, draw_control_map
from controlnet.errors import plain_errors
from controlnet.generation import Control, Generator, Request
from controlnet.geometry import canvas_size, check_pixels
from controlnet.images import open_image
from controlnet.inputs import check_inputs, pick_seed
from controlnet.output import sweep, write_pictures
from controlnet.safety import check_disabling, open_safety_checker, withhold
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
    "ip2p",
]
SCHEDULERS = [
    "DDIM",
    "DPMSolverMultistep",
    "HeunDiscrete",
    "K_EULER",
    "K_EULER_ANCESTRAL",
    "KLMS",
    "PNDM",
    "UniPCMultistep",
]
FORMATS = ["webp", "jpg", "png"]


class Predictor(BasePredictor):
    """Turns a prompt, an image and a conditioner into pictures whose structure follows the image."""

    def setup(self) -> None:
        """Load the bundle named by CONTROLNET_BUNDLE: the base model, every ControlNet and every annotator, once.

        The log has a line per part and their sum.
        """
        self.bundle = open_bundle()
        self.generator = Generator(self.bundle)
        self.annotators = self.bundle.annotators()
        self.safety_checker = open_safety_checker(self.bundle)
        self.bundle.log.summarise()
        self.generator.warm_up()
        self.bundle.log.ready()

    def predict(
        self,
        prompt: str = Input(
            description="What the picture should show, in plain words. A long one is used to its end: with sd15, 1500 tokens (about a thousand words) fit.",
        ),
        image: Path = Input(
            description="The picture whose structure is kept: a photo, a drawing, or (with preprocess off) a ready-made control map. PNG, JPEG, WebP, GIF, BMP or TIFF, at least 16 pixels on each side and at most 4 times as long as wide.",
            accept="image/*",
        ),
        conditioner: str = Input(
            default="canny",
            choices=CONDITIONERS,
            description="Which structure is taken from the image: canny (hard edges), hed (soft edges), mlsd (straight lines), depth, openpose (people's poses), scribble (rough strokes or a doodle), seg (what is where), normal (how surfaces face), lineart (drawn lines), lineart_anime (lines as in anime), shuffle (colours and textures without the layout), tile (coarse shapes; details are painted anew), ip2p (the image itself, for prompts such as 'make it winter'). sd15 has all of them, tiny only some.",
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
        output_format: str = Input(
            default="webp",
            choices=FORMATS,
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
        """Return the files of one request: the control map first where it is asked for, then the pictures."""
        with plain_errors():
            return self._answer(self.bundle.resolve(check_inputs(Predictor.predict, locals())))

    def _answer(self, ask: SimpleNamespace) -> list[Path]:
        """The way of a request, whose inputs `ask` holds by name: look, draw the control map, generate, check, write."""
        sweep()
        check_conditioner(ask.conditioner, self.annotators)
        check_disabling(ask.disable_safety_checker)
        self.generator.check_window(ask.control_start, ask.control_end, ask.scheduler, ask.num_inference_steps)
        picture = open_image(ask.image)
        size = canvas_size(picture.size, ask.resolution)
        check_pixels(size, ask.num_outputs, self.bundle.manifest.limits.pixels)
        timed = Stopwatch(self.record_metric)
        with timed("preprocess"):
            control_map = draw_control_map(ask.conditioner, picture, size, ask.preprocess, self.annotators)
        if ask.map_only:
            return write_pictures([control_map], [], ask.output_format, ask.output_quality)

        seed = pick_seed(ask.seed)
        print(f"seed: {seed}")
        self._record(seed=seed, steps=ask.num_inference_steps, width=size[0], height=size[1])
        control = Control(ask.conditioner, control_map, ask.conditioning_scale, ask.control_start, ask.control_end)
        request = Request(
            prompt=ask.prompt,
            negative_prompt=ask.negative_prompt,
            controls=(control,),
            num_outputs=ask.num_outputs,
            num_inference_steps=ask.num_inference_steps,
            guidance_scale=ask.guidance_scale,
            scheduler=ask.scheduler,
            seed=seed,
        )
        pictures = self.generator.generate(request, timed)
        with timed("safety"):
            allowed = withhold(pictures, self.safety_checker, ask.disable_safety_checker)
        self._record(withheld=len(pictures) - len(allowed))
        maps = [control_map] if ask.return_control_map else []
        with timed("output"):
            return write_pictures(maps, allowed, ask.output_format, ask.output_quality)

    def _record(self, **figures: int) -> None:
        """Put figures of this request into the metrics of its response, with the bundle and the device."""
        about = {"bundle": self.bundle.manifest.name, "device": self.bundle.device.type}
        for name, value in (about | figures).items():
            self.record_metric(name, value)
