"""A bundle of weights as an object: its files are checked, and its parts are opened as models.

Every bundle loads through this code, the embedded tiny one and the full-size ones alike.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    ControlNetModel,
    ControlNetUnionModel,
    DDIMScheduler,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPVisionModelWithProjection
from transformers.utils.logging import disable_progress_bar

from controlnet.conditioners import BY_NAME
from controlnet.families.family import Embeddings, Family, family_of
from controlnet.log import say
from controlnet.maps.annotators import ANNOTATORS, LoadedAnnotator
from controlnet.models.attention import check_attention, use_attention
from controlnet.models.checks import check_net, check_vae
from controlnet.models.controlnets import ControlNets
from controlnet.models.load_log import LoadLog
from controlnet.models.loading import WeightsMismatch, load_pretrained, open_file, read_ahead
from controlnet.models.lora import Base
from controlnet.models.lora_reader import read_lora
from controlnet.models.low_memory import LOW_MEMORY, choose_mode, needed_memory, on_device
from controlnet.models.packed import Packed
from controlnet.models.precision import working_dtype
from controlnet.models.reference import References
from controlnet.models.schedulers import suited_schedulers, unet_calls
from controlnet.models.tokens import prompt_fault
from controlnet.request.knobs import KnobValue
from controlnet.settings import Settings
from controlnet.speedups.cuda.graphs import room
from controlnet.speedups.cuda.kernels import HALVES
from controlnet.speedups.cuda.trial import TriedKernels, open_kernels
from controlnet.weights.download import make_present
from controlnet.weights.entries import ConditionerEntry
from controlnet.weights.files import sha256
from controlnet.weights.lora_files import Lora
from controlnet.weights.manifest import WEIGHTS, Manifest, choose_bundle
from controlnet.weights.tables import Defaults, Fast, Reference

VAES = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}
CPU = torch.device("cpu")
NETS = {"ControlNetModel": ControlNetModel, "ControlNetUnionModel": ControlNetUnionModel}
WITH_CONVOLUTIONS = (UNet2DConditionModel, *NETS.values(), AutoencoderKL)
"""Models whose layers have kernels for a GPU."""


class Bundle:
    """The parts of one bundle, opened on one device in one dtype; in low-memory mode its ControlNets in main memory.

    It is also the BundleFacts (controlnet/request/bundle_facts.py) that requests are checked against.
    """

    def __init__(
        self,
        manifest: Manifest,
        root: Path,
        device: torch.device,
        dtype: torch.dtype,
        low_memory: bool = False,
        settings: Settings = Settings(),
        kernels: TriedKernels | None = None,
        graphs: bool = False,
    ) -> None:
        """`kernels` are those for a GPU (controlnet/speedups/cuda/kernels.py): models then have their channels last in
        memory. `graphs`: whether there are to be CUDA graphs, and there is room (controlnet/speedups/cuda/graphs.py).
        """
        self.manifest = manifest
        self.family: Family = family_of(manifest.family)
        self.root = root
        self.device = device
        self.dtype = dtype
        self.low_memory = low_memory
        self.settings = settings
        self.kernels = kernels
        self.graphs = graphs
        self.log = LoadLog(root)
        self._unet_calls: dict[tuple[str, int, int], int] = {}

    # ---- what requests are checked against

    @property
    def defaults(self) -> Defaults:
        return self.manifest.defaults

    @property
    def fast(self) -> Fast | None:
        return self.manifest.fast

    @property
    def reference(self) -> Reference | None:
        return self.manifest.reference

    @property
    def conditioners(self) -> Mapping[str, ConditionerEntry]:
        return self.manifest.conditioners

    def knobs(self, conditioner: str) -> Collection[str]:
        return ANNOTATORS[self.manifest.annotator(conditioner)].knobs

    def knob_fault(self, conditioner: str, knobs: Mapping[str, KnobValue]) -> str | None:
        return ANNOTATORS[self.manifest.annotator(conditioner)].fault(knobs)

    def prompt_fault(self, prompts: Sequence[str], clip_skip: int) -> str | None:
        return prompt_fault(prompts, clip_skip, self.tokenizer, self._text_layers)

    @property
    def forbids_unsafe(self) -> bool:
        return self.settings.forbid_unsafe

    @property
    def lora_hosts(self) -> Sequence[str]:
        return self.settings.lora_hosts

    @property
    def schedulers(self) -> Sequence[str]:
        return suited_schedulers(self._scheduler_config)

    def unet_calls(self, scheduler: str, num_inference_steps: int, skipped: int) -> int:
        key = scheduler, num_inference_steps, skipped
        if key not in self._unet_calls:
            if len(self._unet_calls) >= 1000:
                self._unet_calls.clear()
            self._unet_calls[key] = unet_calls(scheduler, self._scheduler_config, num_inference_steps, skipped)
        return self._unet_calls[key]

    # ---- its parts

    def folder(self, part: str) -> Path:
        """Where the files of a part are."""
        return self.root / self.manifest.part(part).bundle / part

    def base(self) -> dict[str, Any]:
        """Tokenizers, text encoders, UNet, VAE and scheduler, under the names that diffusers' pipelines give them.

        Raises WeightsMismatch also for a VAE that cannot be used in the bundle's precision.
        """
        self.read_ahead()
        return {
            **{name: self._text_part(name, kind) for name, kind in self.family.texts.items()},
            "unet": self.model(UNet2DConditionModel, "unet"),
            "vae": self._vae_part(),
            "scheduler": self._scheduler(),
        }

    def _text_part(self, name: str, kind: type) -> Any:
        if name in self.family.encoders:
            return self.model(kind, name, device=CPU if self._texts_wait else None)
        return self.tokenizer if name == "tokenizer" else self._tokenizer(name)

    def _vae_part(self) -> Any:
        if self.family.upcasts_vae:
            check_vae(self._config("vae"), self.dtype)
        return self.model(VAES[self._class_name("vae")], "vae")

    @property
    def _texts_wait(self) -> bool:
        return self.low_memory and self.family.texts_wait

    def encode(self, base: Base, prompt: str, negative_prompt: str, clip_skip: int) -> Embeddings:
        """The embeddings of both prompts, by the text encoders of a base, which may have LoRAs."""
        if self._texts_wait:
            base = {**base, **{name: on_device(base[name], self.device) for name in self.family.encoders}}
        return self.family.encode(base, prompt, negative_prompt, clip_skip)

    def controlnets(self) -> ControlNets:
        """Every ControlNet of the bundle, by its name. On a CPU their numbers stay in the files until used."""
        mapped = self.device.type == "cpu"
        for name, entry in self.conditioners.items():
            config = self._config(entry.part)
            check_net(entry.part, config, self._config("unet"), BY_NAME[name].pooled, entry.type)
        kinds = {entry.net: (NETS[self._class_name(entry.part)], entry.part) for entry in self.conditioners.values()}
        if self.low_memory:
            stored = {net: self.packed(*kind) for net, kind in kinds.items()}
        else:
            stored = {net: self.model(*kind, mapped) for net, kind in kinds.items()}
        return ControlNets(stored, self.dtype, self.device)

    def fast_lora(self, unet: Any) -> Lora | None:
        """The LoRA of go_fast, for the base's UNet. None if the bundle has none.

        Its file is read when a request needs it. Raises LoraError if it is no LoRA for such a UNet.
        """
        if self.fast is None:
            return None
        files = self.files(self.fast.part)
        with self.log(self.fast.part, files, mapped=True):
            (file,) = (path for path in files if path.suffix == ".safetensors")
            lora = Lora(file, sha256(file), 1.0, "go_fast")
            read_lora(lora, unet.config)
        return lora

    def references(self, unet: Any) -> References | None:
        """What requests with a reference picture need, for the base's UNet. None if the bundle takes none.

        In low-memory mode the image encoder waits in main memory. Raises WeightsMismatch.
        """
        if self.reference is None:
            return None
        waits = CPU if self.low_memory else None
        encoder = self.model(CLIPVisionModelWithProjection, self.reference.encoder, device=waits)
        files = self.files(self.reference.adapter)
        with self.log(self.reference.adapter, files):
            (file,) = (path for path in files if path.suffix == ".safetensors")
            return References(unet, encoder, open_file(file), self.reference.style, self.device)

    def annotators(self) -> dict[str, LoadedAnnotator]:
        """Every conditioner's annotator. Conditioners that use the same kind share one."""
        self._say_chosen()
        kinds = {name: self.manifest.annotator(name) for name in self.manifest.conditioners}
        loaded = {kind: self._annotator(kind) for kind in sorted(set(kinds.values()))}
        return {
            name: replace(loaded[kind], line_width=self.conditioners[name].line_width) for name, kind in kinds.items()
        }

    def _say_chosen(self) -> None:
        """Print the licences of annotators that the environment has chosen."""
        for part in self.manifest.needed_parts:
            if part.option:
                say(f"{part.option} is used because it was chosen. Licence: {part.licence}")

    def model(self, model_class: type, part: str, mapped: bool = False, device: torch.device | None = None) -> Any:
        """A part as a `model_class`, on the bundle's device or another one.

        `mapped`: its tensors are left in the file, in the file's precision, for any dtype of the bundle. Raises
        WeightsMismatch if its tensors are not the model's.
        """
        where = device or self.device
        with self.log(part, self.files(part), mapped):
            model: Any = load_pretrained(model_class, self.folder(part), where, None if mapped else self.dtype)
            if issubclass(model_class, WITH_CONVOLUTIONS) and self._have_kernels(model):
                model.to(memory_format=torch.channels_last)
            return self._with_attention(model)

    def packed(self, model_class: type, part: str) -> Packed:
        """A part as a `model_class`, packed in main memory for moves to the device. Raises WeightsMismatch."""
        with self.log(part, self.files(part)):
            model = load_pretrained(model_class, self.folder(part), "cpu", None)  # its tensors still in the file
            on_gpu = self.device.type == "cuda"
            last = self._have_kernels(model)
            return Packed(self._with_attention(model), self.dtype, pinned=on_gpu, channels_last=last)

    def _have_kernels(self, model: Any) -> bool:
        return self.kernels is not None and self.kernels.serve(model)

    def _with_attention(self, model: Any) -> Any:
        if isinstance(model, (UNet2DConditionModel, *NETS.values())):
            use_attention(model, self.settings.attention)
        return model

    def read_ahead(self) -> None:
        """Start reading the files of all needed parts from the disk, in their order: the base first."""
        read_ahead(self.files())

    def files(self, *parts: str) -> list[Path]:
        """The files of `parts`, or of all that are needed if none is named."""
        chosen = (part for part in self.manifest.needed_parts if part.name in parts or not parts)
        return [self.root / part.bundle / path for part in chosen for path in part.paths]

    def _class_name(self, part: str) -> str:
        return self._config(part)["_class_name"]

    def _config(self, part: str) -> Mapping[str, Any]:
        """The config.json of a model of diffusers, of whatever class."""
        config: Any = AutoencoderKL.load_config(self.folder(part), local_files_only=True)
        return config

    @cached_property
    def tokenizer(self) -> Any:
        """The prompts' tokenizer. If a family has two, both give the same tokens."""
        return self._tokenizer("tokenizer")

    def _tokenizer(self, part: str) -> Any:
        kind: Any = self.family.texts[part]
        with self.log(part, self.files(part)):
            return kind.from_pretrained(self.folder(part), local_files_only=True)

    def _scheduler(self) -> Any:
        """Its class does not matter: each request builds the one it names from this one's configuration.

        Raises WeightsMismatch if the manifest names one that does not know the noise schedule.
        """
        named = {"defaults": self.defaults.scheduler} | ({"fast": self.fast.scheduler} if self.fast else {})
        if wrong := [f"{name} of [{table}]" for table, name in named.items() if name not in self.schedulers]:
            raise WeightsMismatch(
                f"scheduler: its noise schedule is not one for {wrong[0]}: in the manifest, name one of"
                f" {', '.join(self.schedulers)}."
            )
        with self.log("scheduler", self.files("scheduler")):
            return DDIMScheduler.from_config(self._scheduler_config)

    @cached_property
    def _text_layers(self) -> int:
        """Those of the text encoder that has the fewest."""
        folders = (self.folder(name) for name in self.family.encoders)
        configs = (CLIPTextConfig.from_pretrained(folder, local_files_only=True) for folder in folders)
        return min(config.num_hidden_layers for config in configs)

    @cached_property
    def _scheduler_config(self) -> Any:
        return DDIMScheduler.load_config(self.folder("scheduler"), local_files_only=True)

    def _annotator(self, name: str) -> LoadedAnnotator:
        kind, device = ANNOTATORS[name], CPU if self._texts_wait else self.device
        if not kind.parts:
            return LoadedAnnotator(kind, kind.load(self.folder, device))
        with self.log(f"annotator {name}", self.files(*kind.parts)):
            return LoadedAnnotator(kind, kind.load(self.folder, device))


def open_bundle(settings: Settings | None = None, root: Path = WEIGHTS) -> Bundle:
    """The bundle that the settings choose, its files checked for presence and size; on the GPU if there is one.

    Without settings, those of the environment are read.

    Raises WeightsError with every fault and the command that repairs them. If CONTROLNET_DOWNLOAD is 1, absent weights
    are fetched first, and an unlocked manifest is refused. Raises SettingsError for environment variables,
    before anything is fetched.
    """
    settings = Settings.read() if settings is None else settings
    name, reason = choose_bundle(settings.bundle, root)
    manifest = Manifest.read(root / f"{name}.toml", settings.annotators, settings.reference)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = working_dtype(device, settings.dtype)
    check_attention(settings.attention, device)
    if not settings.threads:
        use_threads(manifest.cpu_threads, device)
    make_present(manifest, root, settings.download)
    disable_progress_bar()  # of transformers' loading: one per model, in the log of every start
    precision = str(dtype).removeprefix("torch.")
    say(f"bundle: {name} on {device.type} in {precision}{f' ({reason})' if reason else ''}")
    low_memory, graphs = False, settings.graphs
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        needed = needed_memory(manifest, root, dtype)
        low_memory, why = choose_mode(settings.low_memory, free, needed)
        say(why)
        graphs = graphs and not low_memory
        if graphs and free - needed < room(dtype):
            say(f"no CUDA graphs, which would need {room(dtype) / 1e9:.1f} GB more, so requests take longer")
            graphs = False
    elif settings.low_memory:
        say(f"{LOW_MEMORY}=1 changes nothing without a GPU: ControlNets stay in their files until used")
    # Without the speedups every layer runs as diffusers runs it.
    fits = device.type == "cuda" and dtype in HALVES and settings.speedups
    kernels = open_kernels(device, dtype) if settings.kernels and fits else None
    return Bundle(manifest, root, device, dtype, low_memory, settings, kernels, graphs)


def use_threads(threads: int | None, device: torch.device) -> None:
    """Let PyTorch use no more than `threads` threads if it computes on the CPU.

    The sums in a picture depend on the number of threads, so a bundle that fixes it gives the same bytes on any
    number of cores.
    """
    if threads and device.type == "cpu":
        torch.set_num_threads(min(threads, torch.get_num_threads()))
