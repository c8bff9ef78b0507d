"""Reference pictures, small and random, against diffusers' own load_ip_adapter, in both families."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionXLControlNetUnionImg2ImgPipeline,
    StableDiffusionXLControlNetUnionPipeline,
)
from diffusers.image_processor import IPAdapterMaskProcessor
from PIL import Image
from random_loras import ATTENTION, random_layers, save_kohya
from safetensors.torch import load_file, save_file
from support import small_reference
from support.jobs import hint, job
from support.latents import latents
from support.recorded_graphs import open_recorded, recorded_graphs
from support.small_reference import photo

from controlnet import speedups
from controlnet.generation.generator import Generator
from controlnet.generation.job import Job
from controlnet.maps.controls import Control
from controlnet.models.loading import WeightsMismatch
from controlnet.models.schedulers import make_scheduler
from controlnet.pictures.canvas import InitialPicture, ReferencePicture
from controlnet.settings import Settings
from controlnet.speedups.forms import plan_of
from controlnet.weights.lora_files import Lora
from controlnet.weights.manifest import Manifest

EXACT = 2e-5
"""The largest difference from diffusers where the same numbers add up in another order, as a share of the largest."""
KINDS = [("sd15", True), ("sd15", False), ("sdxl", True), ("sdxl", False)]


class Case:
    """A bundle on disk, and its generators with and without the speedups."""

    def __init__(self, family: str, plus: bool, root: Path) -> None:
        self.family, self.root = family, root
        self.manifest = small_reference.write(family, root, plus)
        self.fast, self.plain = self.opened(), self.opened(speedups=False)

    def opened(self, **settings: Any) -> Generator:
        return Generator(small_reference.opened(self.manifest, self.root, **settings))

    def job(self, *controls: Control, **changes: Any) -> Job:
        usual = {"negative_prompt": "grass", "reference": ReferencePicture(photo(1), 0.6, "all")}
        made = job(**usual | {"clip_skip": 2 if self.family == "sdxl" else 1} | changes)
        return replace(made, controls=controls) if controls else made

    def theirs(self, asked: Job, scale: Any = 0.6, picture: Image.Image | None = None, **changes: Any) -> torch.Tensor:
        """The latents of diffusers' pipeline with its own loader, on copies of the networks."""
        base = copy.deepcopy(dict(self.plain.base))
        base["scheduler"] = make_scheduler(asked.scheduler, base["scheduler"].config, 0)
        (control,) = asked.controls
        xl, initial = self.family == "sdxl", "image" in changes
        if xl:
            net, without = self.plain.controlnets["union"], {"add_watermarker": False}
            kind: Any = StableDiffusionXLControlNetUnionPipeline
            kind = StableDiffusionXLControlNetUnionImg2ImgPipeline if initial else kind
            changes |= {"control_mode": [3], "control_image": [control.control_map]}
        else:
            net, without = self.plain.controlnets["canny"], {"safety_checker": None, "feature_extractor": None}
            kind = StableDiffusionControlNetImg2ImgPipeline if initial else StableDiffusionControlNetPipeline
            changes |= {"control_image" if initial else "image": control.control_map}
        pipeline = kind(**base, controlnet=net, **without)
        pipeline.set_progress_bar_config(disable=True)
        (file,) = self.manifest.part("ip_adapter").files
        pipeline.load_ip_adapter(
            str(self.root / self.family),
            subfolder="ip_adapter",
            weight_name=file,
            image_encoder_folder="./image_encoder",
            local_files_only=True,
        )
        pipeline.set_ip_adapter_scale(scale)
        return pipeline(
            asked.prompt,
            negative_prompt=asked.negative_prompt,
            num_inference_steps=asked.num_inference_steps,
            guidance_scale=asked.guidance_scale,
            generator=torch.Generator().manual_seed(asked.seed),
            output_type="latent",
            ip_adapter_image=picture or photo(1),
            controlnet_conditioning_scale=1.0,
            **changes,
        ).images


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: f"{kind[0]}-{'plus' if kind[1] else 'basic'}")
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(*request.param, tmp_path_factory.mktemp("reference"))


@pytest.fixture(scope="module")
def sd15(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case("sd15", True, tmp_path_factory.mktemp("reference"))


def far(ours: torch.Tensor, others: torch.Tensor) -> float:
    """The largest difference, as a share of the largest number."""
    return ((ours - others).abs().max() / others.abs().max()).item()


def compare(case: Case, asked: Job, **theirs: Any) -> None:
    expected = case.theirs(asked, **theirs)
    assert torch.equal(latents(case.plain, asked)[0], expected)
    assert far(latents(case.fast, asked)[0], expected) < EXACT
    without = replace(asked, reference=None)
    assert far(latents(case.plain, without)[0], expected) > 1e-2, "the comparison is empty: the picture changes nothing"


def test_a_picture_equals_diffusers(case: Case) -> None:
    compare(case, case.job())


def test_without_guidance(case: Case) -> None:
    compare(case, case.job(guidance_scale=1.0))


def test_an_initial_picture(case: Case) -> None:
    asked = case.job(initial=InitialPicture(hint(7), 0.6), num_inference_steps=5)
    compare(case, asked, image=hint(7), strength=0.6)


def test_a_mask(case: Case) -> None:
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 13, 27, 64))
    asked = case.job(reference=ReferencePicture(photo(1), 0.6, "all", mask))
    given = IPAdapterMaskProcessor().preprocess([mask])
    compare(case, asked, cross_attention_kwargs={"ip_adapter_masks": [given]})
    everywhere = case.job(reference=ReferencePicture(photo(1), 0.6, "all", Image.new("L", (64, 64), 255)))
    assert torch.equal(latents(case.fast, everywhere)[0], latents(case.fast, case.job())[0])


def test_style(case: Case) -> None:
    layers = {"sd15": {"up": {"block_1": 0.6}}, "sdxl": {"up": {"block_0": [0.0, 0.6]}}}[case.family]
    compare(case, case.job(reference=ReferencePicture(photo(1), 0.6, "style")), scale=layers)


def test_scale_zero_is_no_picture(case: Case) -> None:
    """Such a request is served without a picture anyway (ignored.py). The layers add nothing either."""
    none = case.job(reference=ReferencePicture(photo(1), 0.0, "all"))
    for generator in (case.fast, case.plain):
        assert torch.equal(latents(generator, none)[0], latents(generator, case.job(reference=None))[0])


@pytest.mark.parametrize("speedups", [True, False])
def test_the_order_of_requests_does_not_matter(case: Case, speedups: bool, tmp_path: Path) -> None:
    generator = case.opened(speedups=speedups)
    layers = random_layers(generator.base["unet"], ATTENTION)
    save_kohya(tmp_path / "lora.safetensors", {"unet": layers}, alpha=4.0)
    lora = Lora(tmp_path / "lora.safetensors", "one", 0.8)
    jobs = [
        case.job(),
        case.job(reference=None),
        case.job(loras=(lora,)),
        case.job(loras=(lora,), reference=None),
        case.job(reference=ReferencePicture(photo(2), 0.6, "all")),
        case.job(reference=ReferencePicture(photo(1), 1.2, "style")),
        case.job(guidance_scale=1.0),
    ]
    first = [latents(generator, asked)[0] for asked in jobs]
    again = [latents(generator, asked)[0] for asked in reversed(jobs)][::-1]
    assert all(map(torch.equal, first, again))
    assert all(far(one, other) > 1e-3 for i, one in enumerate(first) for other in first[:i])


def test_a_lora_acts_on_the_words_and_the_picture_on_top(sd15: Case, tmp_path: Path) -> None:
    """The numbers of a LoRA reach the copy, and a file of another LoRA leaves no copy behind."""
    layers = random_layers(sd15.plain.base["unet"], ATTENTION)
    save_kohya(tmp_path / "lora.safetensors", {"unet": layers}, alpha=4.0)
    for scale in (0.8, 0.4):
        latents(sd15.plain, sd15.job(loras=(Lora(tmp_path / "lora.safetensors", "one", scale),)))
    assert sd15.plain.references is not None
    assert len(sd15.plain.references._copies) == 2, "the base's, and that with the last LoRA"


def test_a_picture_is_encoded_once_for_several_requests(sd15: Case) -> None:
    generator, calls = sd15.opened(), []
    assert generator.references is not None
    generator.references._encoder.register_forward_hook(lambda *_: calls.append(1))
    for seed in (1, 2):
        latents(generator, sd15.job(seed=seed, num_outputs=2))
    assert len(calls) == 2, "with guidance: the picture, and none"
    latents(generator, sd15.job(guidance_scale=1.0))
    latents(generator, sd15.job(reference=ReferencePicture(photo(1).rotate(180), 0.6, "all")))
    assert len(calls) == 5


def test_the_speedups_stay_on(case: Case) -> None:
    assert case.fast.references is not None
    own, calls = case.fast.references.of(case.fast.base["unet"]), []
    assert plan_of(own).complete == (case.family == "sd15")
    layer = next(each for name, each in own.named_modules() if name.endswith("attn2.processor"))
    layer.to_k.register_forward_hook(lambda *_: calls.append(1))
    latents(case.fast, case.job(num_inference_steps=6))
    assert len(calls) == 1, "keys of the picture are computed once"


def test_the_networks_share_their_numbers_and_the_unet_stays_as_it_was(case: Case) -> None:
    unet = case.fast.base["unet"]
    assert case.fast.references is not None
    own = case.fast.references.of(unet)
    pointers = {tensor.data_ptr() for tensor in unet.parameters()}
    added = [name for name, tensor in own.named_parameters() if tensor.data_ptr() not in pointers]
    assert added and all(".attn2.processor.to_" in name for name in added)
    assert unet.encoder_hid_proj is None and unet.config.encoder_hid_dim_type is None
    assert not any(isinstance(each, torch.nn.Module) for each in unet.attn_processors.values())


def test_outputs_as_one_batch(sd15: Case) -> None:
    together = sd15.opened(batch_outputs=True)
    one = [latents(sd15.fast, sd15.job(seed=seed))[0] for seed in (5, 6)]
    both = latents(together, sd15.job(num_outputs=2))
    assert all(far(own, other) < EXACT for own, other in zip(both, one, strict=True))


@pytest.mark.parametrize("masked", [False, True])
def test_each_window_of_a_second_pass_gets_its_part_of_the_mask(sd15: Case, masked: bool) -> None:
    """Where the mask is black the pictures are those of a request without a reference, up to what the windows share."""
    mask = Image.new("L", (128, 64))
    mask.paste(255, (0, 0, 24, 64))
    wide = Control("canny", hint(1).resize((128, 64)))
    asked = sd15.job(wide, upscale=2.0, reference=ReferencePicture(photo(1), 1.0, "all", mask if masked else None))
    first = hint(3).resize((128, 64))
    with_picture = latents(sd15.fast, asked, first)[1]
    without = latents(sd15.fast, replace(asked, reference=None), first)[1]
    change = (with_picture - without).abs().mean((0, 1, 2))
    assert (change[:2].mean() > 5 * change[-4:].mean()) == masked


@pytest.mark.parametrize("masked", [False, True])
def test_graphs_give_each_request_its_own_picture(case: Case, monkeypatch: pytest.MonkeyPatch, masked: bool) -> None:
    mask = Image.linear_gradient("L").resize((64, 64)) if masked else None
    jobs = [
        case.job(reference=ReferencePicture(photo(seed), scale, mode, mask))
        for seed, scale, mode in ((1, 0.6, "all"), (2, 0.6, "all"), (2, 1.2, "all"), (2, 1.2, "style"))
    ]
    expected = [latents(case.fast, asked)[0] for asked in jobs]
    monkeypatch.setattr(speedups, "open_graphs", open_recorded)
    with recorded_graphs() as made:
        generator, runs = case.opened(), []
        assert generator.references is not None
        generator.references.of(generator.base["unet"]).register_forward_hook(lambda *_: runs.append(1))
        for _ in range(2):
            for asked, other in zip(jobs, expected, strict=True):
                assert far(latents(generator, asked)[0], other) < EXACT
        steps = 2 * sum(asked.num_inference_steps for asked in jobs)
        assert len(runs) < steps <= sum(graph.replays for graph in made), "its operations run in a capture alone"


def test_files_that_do_not_go_together_are_refused(sd15: Case, tmp_path: Path) -> None:
    file = sd15.root / "sd15" / sd15.manifest.part("ip_adapter").paths[0]
    tensors, encoder = load_file(file), sd15.root / "sd15/image_encoder/config.json"
    unknown = tensors | {"ip_adapter.99.to_k_ip.weight": torch.zeros(8, 16)}
    missing = {name: tensor for name, tensor in tensors.items() if name != "ip_adapter.3.to_v_ip.weight"}
    reshaped = tensors | {"image_proj.proj_in.weight": torch.zeros(64, 24)}
    faces = {"image_proj.proj.0.weight": torch.zeros(8, 16)}
    for content, words in [
        (unknown, r"unexpected: ip_adapter.99.to_k_ip"),
        (missing, r"missing: ip_adapter.3.to_v_ip"),
        (reshaped, r"of another shape: image_proj.proj_in"),
        (faces, r"FaceID"),
    ]:
        with refused(sd15, file, content, words):
            sd15.opened()
    assert encoder.exists()
    with pytest.raises(WeightsMismatch, match=r"\[reference\] names layers up_blocks.7"):
        bundle = small_reference.opened(sd15.manifest, sd15.root)
        reference = replace(sd15.manifest.reference, style=("up_blocks.7",))  # type: ignore[type-var]
        bundle.manifest = replace(sd15.manifest, reference=reference)
        Generator(bundle)
    sd15.opened()


class refused:
    """A file with other tensors in the block, which must raise WeightsMismatch."""

    def __init__(self, case: Case, file: Path, tensors: dict[str, torch.Tensor], words: str) -> None:
        self.file, self.raises, self.before = file, pytest.raises(WeightsMismatch, match=words), file.read_bytes()
        save_file(tensors, file)

    def __enter__(self) -> None:
        self.raises.__enter__()

    def __exit__(self, *given: Any) -> bool:
        self.file.write_bytes(self.before)
        return bool(self.raises.__exit__(*given))


def test_the_switch_and_the_files_decide(sd15: Case) -> None:
    (sd15.root / "sd15.toml").write_text((small_reference.WEIGHTS / "sd15.toml").read_text())
    path = sd15.root / "sd15.toml"
    parts = [
        {part.name for part in Manifest.read(path, {}, asked).needed_parts} & {"image_encoder", "ip_adapter"}
        for asked in (None, True, False)
    ]
    assert parts == [{"image_encoder", "ip_adapter"}, {"image_encoder", "ip_adapter"}, set()]
    assert Manifest.read(path, {}, False).reference is None
    (sd15.root / "sd15/image_encoder/config.json").rename(sd15.root / "kept")
    try:
        assert Manifest.read(path, {}).reference is None
        assert Manifest.read(path, {}, True).choices() == {"CONTROLNET_REFERENCE": "1"}
    finally:
        (sd15.root / "kept").rename(sd15.root / "sd15/image_encoder/config.json")
    assert Settings.read({"CONTROLNET_REFERENCE": "0"}).reference is False and Settings.read({}).reference is None
