"""The two sides of script/bench/speed: this project's whole request, and diffusers' pipelines as a user writes them.

Both use the same models in the same process. A run goes from the picture's file to the files of the result.
"""

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest import mock

import cog
import cv2
import numpy as np
import torch
from diffusers import (
    ControlNetModel,
    ControlNetUnionModel,
    DDIMScheduler,
    MultiControlNetModel,
    StableDiffusionControlNetPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLControlNetUnionPipeline,
)
from PIL import Image
from speed_clock import Clock

from controlnet.model import Model
from controlnet.models.lora_reader import NETWORKS
from controlnet.models.schedulers import make_scheduler
from controlnet.request.ignored import USUAL_ETA
from controlnet.request.reading import read_request
from controlnet.serving.files import write_pictures
from predict import Predictor

PHOTO = Path(__file__).resolve().parents[2] / "examples" / "cat.jpg"
PROMPT, NEGATIVE = "a red house with a blue roof on grass", "grey"
SEED = 5


@dataclass(frozen=True)
class Case:
    """A request that both sides can make."""

    name: str
    nets: int = 1
    end: float = 1.0
    """Share of the steps after which no net acts."""
    outputs: int = 1
    drawn: bool = False
    """Whether the map is drawn, by canny, for each request."""
    fast: bool = False
    """Whether it is made in the bundle's few steps, with the LoRA for them (go_fast)."""
    reference: bool = False
    """Whether the photo is its reference picture, too."""


@dataclass(frozen=True)
class Setting:
    """What all cases of a table have in common."""

    side: int
    """Of the pictures, in pixels."""
    steps: int
    conditioners: Sequence[str]
    """Those of the first, second and third net."""
    folder: Path
    """For the files of this run. It has photo.png and map.png, of the pictures' size."""

    @classmethod
    def prepare(cls, side: int, steps: int, conditioners: Sequence[str], folder: Path) -> "Setting":
        photo = Image.open(PHOTO).convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
        photo.save(folder / "photo.png")
        plain_canny(photo).save(folder / "map.png")
        return cls(side, steps, conditioners, folder)


@dataclass(frozen=True)
class Sampling:
    """How a request gets from noise to latents."""

    scheduler: str
    steps: int
    guidance_scale: float

    @classmethod
    def of(cls, model: Model, case: Case, setting: Setting) -> "Sampling":
        """Raises ValueError for few steps if the bundle has none."""
        if not case.fast:
            return cls("DDIM", setting.steps, model.bundle.defaults.guidance_scale)
        if (fast := model.bundle.fast) is None:
            raise ValueError(f"{model.bundle.manifest.name} has no go_fast.")
        return cls(fast.scheduler, fast.num_inference_steps, fast.guidance_scale)


def plain_canny(photo: Image.Image) -> Image.Image:
    """Canny as diffusers' documentation shows it."""
    edges = cv2.Canny(np.array(photo), 100, 200)
    return Image.fromarray(np.concatenate([edges[:, :, None]] * 3, axis=2))


def ours(model: Model, case: Case, setting: Setting) -> list[Path]:
    """The request with this project. Returns the files of its pictures."""
    inputs: dict[str, Any] = {
        "prompt": PROMPT,
        "negative_prompt": NEGATIVE,
        "resolution": setting.side,
        "num_outputs": case.outputs,
        "seed": SEED,
        "control_mode": "balanced",
        "disable_safety_checker": True,
    }
    # With go_fast the bundle has the sampler, its steps and the guidance.
    inputs |= {"go_fast": True} if case.fast else {"scheduler": "DDIM", "num_inference_steps": setting.steps}
    inputs |= {"reference_image": cog.Path(setting.folder / "photo.png")} if case.reference else {}
    for suffix, conditioner in zip(("", "_2", "_3")[: case.nets], setting.conditioners, strict=False):
        inputs |= {
            f"image{suffix}": cog.Path(setting.folder / ("photo.png" if case.drawn else "map.png")),
            f"conditioner{suffix}": conditioner,
            f"preprocess{suffix}": case.drawn,
            f"control_end{suffix}": case.end,
        }
    request = read_request(Predictor.predict, inputs, model.bundle)
    if case.drawn:
        model.maps = type(model.maps)()  # none is kept from the last run
    answer = model.answer(request, lambda name, value: None)
    files = write_pictures(answer.maps, answer.pictures, request.output_format, request.output_quality)
    return [Path(file) for file in files]


class Plain:
    """diffusers' own pipelines around the models of this project's bundle."""

    def __init__(self, model: Model, compiled: bool = False) -> None:
        """`compiled`: with torch.compile for UNet and nets, which are then copies."""
        self.model, self.compiled = model, compiled
        self._copies: dict[int, Any] = {}

    def __call__(self, case: Case, setting: Setting) -> list[Path]:
        """The request with diffusers. Returns the files of its pictures."""
        sampling = Sampling.of(self.model, case, setting)
        result: Any = self.pipeline(case, setting)(
            PROMPT,
            negative_prompt=NEGATIVE,
            num_inference_steps=sampling.steps,
            guidance_scale=sampling.guidance_scale,
            eta=USUAL_ETA.get(sampling.scheduler, 0.0),
            num_images_per_prompt=case.outputs,
            **self._control(case, setting),
            **({"ip_adapter_image": Image.open(setting.folder / "photo.png")} if case.reference else {}),
            generator=[torch.Generator("cpu").manual_seed(SEED + i) for i in range(case.outputs)],
        )
        files = [setting.folder / f"plain_{i}.webp" for i in range(len(result.images))]
        for file, picture in zip(files, result.images, strict=True):
            picture.save(file)
        return files

    def _control(self, case: Case, setting: Setting) -> dict[str, Any]:
        """The arguments that say what acts: those of a union, which takes all maps in one call, or of nets."""
        maps, scales = [self._map(case, setting)] * case.nets, [1.0] * case.nets
        types = [self.model.bundle.conditioners[name].type for name in setting.conditioners[: case.nets]]
        if None not in types:
            end = {"control_guidance_end": case.end}
            return {"control_image": maps, "control_mode": types, "controlnet_conditioning_scale": scales} | end
        if case.nets == 1:
            return {"image": maps[0], "controlnet_conditioning_scale": 1.0, "control_guidance_end": case.end}
        ends = [case.end] * case.nets
        return {"image": maps, "controlnet_conditioning_scale": scales, "control_guidance_end": ends}

    def pipeline(self, case: Case, setting: Setting) -> Any:
        nets = self.nets(setting.conditioners[: case.nets])
        parts: dict[str, Any] = {**self.model.generator.base, **(self.fast_networks if case.fast else {})}
        parts |= self.reading_parts if case.reference else {}
        parts["scheduler"] = make_scheduler(Sampling.of(self.model, case, setting).scheduler, parts["scheduler"].config)
        parts["unet"], parts["vae"] = self._own(parts["unet"], self.compiled), self._own(parts["vae"])
        chosen: Any = [self._own(net, self.compiled) for net in nets]
        return self._pipeline(parts, chosen[0] if len(chosen) == 1 else MultiControlNetModel(chosen))

    def nets(self, conditioners: Sequence[str]) -> list[Any]:
        """The ControlNets of a request, each once."""
        entries = [self.model.bundle.conditioners[name] for name in conditioners]
        return self.model.generator.controlnets.prepare(list(dict.fromkeys(entry.net for entry in entries)))

    @cached_property
    def fast_networks(self) -> dict[str, Any]:
        """Copies of UNet and text encoders with the bundle's LoRA for few steps, as diffusers puts it on.

        It is fused into the weights, so that a step takes no longer than without it.
        """
        fast: Any = self.model.bundle.fast
        (file,) = self.model.bundle.files(fast.part)
        base = self.model.generator.base
        changed = {name: copy.deepcopy(base[name]) for name in NETWORKS if name in base}
        pipeline = self._pipeline({**base, **changed}, self.nets(["canny"])[0])
        pipeline.load_lora_weights(file.parent, weight_name=file.name)
        pipeline.fuse_lora()
        pipeline.unload_lora_weights()
        return changed

    @cached_property
    def reading_parts(self) -> dict[str, Any]:
        """A copy of the UNet with the bundle's adapter for reference pictures, and what prepares them."""
        bundle, base = self.model.bundle, self.model.generator.base
        reference: Any = bundle.reference
        (file,) = bundle.files(reference.adapter)
        pipeline = self._pipeline({**base, "unet": copy.deepcopy(base["unet"])}, self.nets(["canny"])[0])
        where = {"subfolder": reference.adapter, "image_encoder_folder": f"./{reference.encoder}"}
        pipeline.load_ip_adapter(str(file.parents[1]), weight_name=file.name, local_files_only=True, **where)
        pipeline.set_ip_adapter_scale(reference.scale)
        return {name: getattr(pipeline, name) for name in ("unet", "image_encoder", "feature_extractor")}

    def _pipeline(self, parts: dict[str, Any], controlnet: Any) -> Any:
        kind: Any = {
            ("sd15", ControlNetModel): StableDiffusionControlNetPipeline,
            ("sdxl", ControlNetModel): StableDiffusionXLControlNetPipeline,
            ("sdxl", ControlNetUnionModel): StableDiffusionXLControlNetUnionPipeline,
        }[self.model.bundle.manifest.family, type(self.nets(["canny"])[0])]
        return kind(**{**self.model.bundle.family.without, **parts}, controlnet=controlnet)

    def _own(self, network: Any, compiled: bool = False) -> Any:
        """The network as a user of diffusers has it. Our requests give the network itself other forward methods.

        On a GPU it is a copy, because ours has the channels of its convolutions last in memory.
        """
        if not compiled and next(network.parameters()).device.type == "cpu":
            return network
        if id(network) not in self._copies:
            own = copy.deepcopy(network).to(memory_format=torch.contiguous_format)
            self._copies[id(network)] = network, torch.compile(own) if compiled else own
        return self._copies[id(network)][1]

    @staticmethod
    def _map(case: Case, setting: Setting) -> Image.Image:
        name = "photo.png" if case.drawn else "map.png"
        picture = Image.open(setting.folder / name).convert("RGB")
        return plain_canny(picture) if case.drawn else picture


@contextmanager
def silent() -> Iterator[None]:
    """Nothing on stdout and stderr: progress bars are drawn, but to nowhere."""
    with (
        Path(os.devnull).open("w") as nowhere,
        redirect_stdout(nowhere),
        redirect_stderr(nowhere),
    ):
        yield


def latents_of(model: Model, run: Callable[[], Any]) -> torch.Tensor:
    """What a run decodes: the final latents of all pictures, (N, C, h, w)."""
    vae: Any = model.generator.base["vae"]
    decode, given = type(vae).decode, []

    def kept(own: Any, latents: torch.Tensor, *others: Any, **named: Any) -> Any:
        given.append(latents.float() * vae.config.scaling_factor)
        return decode(own, latents, *others, **named)

    with mock.patch.object(type(vae), "decode", kept):
        run()
    return torch.cat(given)


def denoising_of(model: Model, run: Callable[[], Any], clock: Clock) -> float:
    """Seconds from a run's first step until its latents are decoded. It has one output, and its sampler is DDIM."""
    marks: list[Any] = []
    vae = type(model.generator.base["vae"])
    decode, scale = vae.decode, DDIMScheduler.scale_model_input

    def begun(*given: Any, **named: Any) -> Any:
        if not marks:
            marks.append(clock.mark())
        return scale(*given, **named)

    def ended(*given: Any, **named: Any) -> Any:
        marks.append(clock.mark())
        return decode(*given, **named)

    with mock.patch.object(DDIMScheduler, "scale_model_input", begun), mock.patch.object(vae, "decode", ended):
        run()
    return clock.seconds(*marks)
