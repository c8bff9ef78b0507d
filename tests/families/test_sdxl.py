"""Stable Diffusion XL with a union of ControlNets, small and random, against diffusers' own pipelines."""

import copy
import json
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    StableDiffusionXLControlNetImg2ImgPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLControlNetUnionImg2ImgPipeline,
    StableDiffusionXLControlNetUnionPipeline,
)
from PIL import Image
from random_loras import ATTENTION, random_layers
from safetensors.torch import save_file
from support import small_sdxl
from support.jobs import hint, pixels
from support.latents import latents
from support.loras import TEXT
from support.recorded_graphs import open_recorded, recorded_graphs

from controlnet import speedups
from controlnet.families import sdxl
from controlnet.generation.composite import Acting, CompositeControlNet
from controlnet.generation.generator import Generator
from controlnet.generation.job import Job
from controlnet.generation.windowed import unet_windows
from controlnet.maps.controls import Control
from controlnet.models.loading import WeightsMismatch
from controlnet.models.schedulers import SCHEDULERS, make_scheduler
from controlnet.pictures.canvas import InitialPicture
from controlnet.settings import Settings
from controlnet.speedups import forms
from controlnet.speedups.replaced import FORMS
from controlnet.weights.lora_files import Lora
from controlnet.weights.manifest import Manifest

EXACT = 2e-5
"""The largest difference from diffusers where the same numbers add up in another order, as a share of the largest."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sdxl")


@pytest.fixture(scope="module")
def manifest(root: Path) -> Manifest:
    return small_sdxl.write(root)


@pytest.fixture(scope="module")
def generator(root: Path, manifest: Manifest) -> Generator:
    return Generator(small_sdxl.opened(manifest, root))


@pytest.fixture(scope="module")
def plain(root: Path, manifest: Manifest) -> Generator:
    """Without the speedups, so that its arithmetic is diffusers' own."""
    return Generator(small_sdxl.opened(manifest, root, Settings(speedups=False)))


def job(*controls: Control, **changes: Any) -> Job:
    values: dict[str, Any] = {
        "prompt": "a red ball",
        "negative_prompt": "grass",
        "num_outputs": 1,
        "num_inference_steps": 3,
        "guidance_scale": 4.0,
        "scheduler": "DDIM",
        "seed": 5,
        "clip_skip": 2,
    }
    return Job(**(values | changes), controls=controls or (control("canny"),))


def control(conditioner: str, seed: int = 1, **changes: Any) -> Control:
    return Control(conditioner, hint(seed), **changes)


def theirs(
    generator: Generator, kind: Any, net: Any, asked: Job, lora: Lora | None = None, **changes: Any
) -> torch.Tensor:
    """The latents of a pipeline of diffusers for the prompts, steps and seed of a job.

    With a LoRA, which diffusers puts on the networks, these are copies.
    """
    scheduler = make_scheduler(asked.scheduler, generator.base["scheduler"].config, 0)
    base = generator.base if lora is None else copy.deepcopy(dict(generator.base))
    pipeline = kind(**{**base, "scheduler": scheduler}, controlnet=net, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    if lora is not None:
        pipeline.load_lora_weights(str(lora.file), adapter_name="one")
        pipeline.set_adapters("one", lora.scale)
    return pipeline(
        asked.prompt,
        negative_prompt=asked.negative_prompt,
        num_inference_steps=asked.num_inference_steps,
        guidance_scale=asked.guidance_scale,
        generator=torch.Generator().manual_seed(asked.seed),
        output_type="latent",
        eta=asked.eta,
        **changes,
    ).images


def of_union(generator: Generator, asked: Job, scale: float | list[float] = 1.0, **changes: Any) -> torch.Tensor:
    types = [generator.bundle.conditioners[each.conditioner].type for each in asked.controls]
    maps = [each.control_map for each in asked.controls]
    given = {"control_image": maps, "control_mode": types, "controlnet_conditioning_scale": scale} | changes
    kind = StableDiffusionXLControlNetUnionImg2ImgPipeline if "image" in changes else None
    net = generator.controlnets["union"]
    return theirs(generator, kind or StableDiffusionXLControlNetUnionPipeline, net, asked, **given)


def far(ours: torch.Tensor, others: torch.Tensor) -> float:
    """The largest difference, as a share of the largest number."""
    return ((ours - others).abs().max() / others.abs().max()).item()


CONDITIONERS = [name for name in Manifest.read(small_sdxl.WEIGHTS / "sdxl.toml", {}).conditioners if name != "scribble"]


@pytest.mark.parametrize("conditioner", CONDITIONERS)
def test_each_conditioner_equals_the_union_pipeline(generator: Generator, plain: Generator, conditioner: str) -> None:
    asked = job(control(conditioner, scale=0.6))
    expected = of_union(generator, asked, 0.6)
    assert torch.equal(latents(plain, asked)[0], expected)
    assert far(latents(generator, asked)[0], expected) < EXACT
    assert far(of_union(generator, asked, 0.0), expected) > 1e-2, "the comparison is empty: control changes nothing"


@pytest.mark.parametrize("own", FORMS, ids=lambda own: own.__name__)
def test_each_form_of_a_layer_alone_equals_diffusers(
    generator: Generator, plain: Generator, own: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = job(control("canny", scale=0.6), control(small_sdxl.SINGLE, 2))
    monkeypatch.setattr(forms, "_plans", weakref.WeakKeyDictionary())  # those of all forms come back afterwards
    monkeypatch.setattr(forms, "FORMS", {own: FORMS[own]})
    models = [generator.base["unet"], *generator.controlnets.values()]
    assert own.__name__ == "Upsample2D" or any(type(layer) is own for model in models for layer in model.modules())
    assert far(latents(generator, asked)[0], latents(plain, asked)[0]) < EXACT


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_each_sampler_equals_the_union_pipeline(plain: Generator, scheduler: str) -> None:
    asked = job(scheduler=scheduler, num_inference_steps=4)
    assert torch.equal(latents(plain, asked)[0], of_union(plain, asked))


def test_without_guidance_and_with_windows_of_steps(plain: Generator) -> None:
    asked = job(guidance_scale=1.0)
    assert torch.equal(latents(plain, asked)[0], of_union(plain, asked))
    asked = job(control("depth", start=0.25, end=0.75), num_inference_steps=8)
    window = {"control_guidance_start": 0.25, "control_guidance_end": 0.75}
    assert torch.equal(latents(plain, asked)[0], of_union(plain, asked, **window))


def test_an_initial_picture(plain: Generator) -> None:
    picture = hint(7)
    asked = job(initial=InitialPicture(picture, 0.6), num_inference_steps=5)
    expected = of_union(plain, asked, image=picture, strength=0.6)
    assert torch.equal(latents(plain, asked)[0], expected)
    other = job(initial=InitialPicture(hint(8), 0.6), num_inference_steps=5)
    assert far(latents(plain, other)[0], expected) > 1e-2


def test_two_maps_of_scale_one_are_one_call_and_equal_the_union_pipeline(plain: Generator) -> None:
    asked = job(control("canny"), control("depth", 2))
    with counted(plain.controlnets["union"]) as calls:
        ours = latents(plain, asked)[0]
    assert len(calls) == 3
    assert torch.equal(ours, of_union(plain, asked, [1.0, 1.0]))
    assert far(latents(plain, job(control("depth", 2), control("canny")))[0], ours) < EXACT, "in any order"


class counted:
    """Counts the calls of a net in its block."""

    def __init__(self, net: Any) -> None:
        self.net, self.calls = net, []

    def __enter__(self) -> list[dict[str, Any]]:
        self.handle = self.net.register_forward_hook(
            lambda _, args, named, made: self.calls.append(named), with_kwargs=True
        )
        return self.calls

    def __exit__(self, *_: object) -> None:
        self.handle.remove()


def composite(generator: Generator, scales: Sequence[float], mode: Any = None) -> list[torch.Tensor]:
    """The residuals of one step for canny and depth, of which the union is told by their types 3 and 1."""
    net, drawn = generator.controlnets["union"], torch.Generator().manual_seed(3)
    given = [torch.rand((1, 3, 64, 64), generator=drawn) for _ in scales]
    sample = torch.randn((2, 4, 8, 8), generator=drawn)
    words, pooled = torch.randn((2, 5, 40), generator=drawn), torch.randn((2, 12), generator=drawn)
    added = {"text_embeds": pooled, "time_ids": torch.full((2, 6), 64.0)}
    acting = [Acting(net, (0, 1), (3, 1))]
    made = CompositeControlNet(acting, True, *([mode] if mode else []))
    with torch.no_grad():
        down, middle = made(sample, torch.tensor(500), words, given, list(scales), added_cond_kwargs=added)
        if down is None:
            return []
        direct = {
            share: net(
                sample,
                torch.tensor(500),
                words,
                controlnet_cond=[each.expand(2, -1, -1, -1) for each in given],
                control_type=torch.tensor([[0, 1, 0, 1, 0, 0, 0, 0]] * 2, dtype=torch.float32),
                control_type_idx=[3, 1],
                conditioning_scale=[1.0, share],
                added_cond_kwargs=added,
                return_dict=False,
            )
            for share in (0.5,)
        }
    return [*down, middle, *direct[0.5][0], direct[0.5][1]]


def test_unequal_scales_follow_the_formula_and_nothing_acts_at_zero(generator: Generator) -> None:
    assert composite(generator, [0.0, 0.0]) == []
    both = composite(generator, [0.8, 0.4])
    ours, formula = both[: len(both) // 2], both[len(both) // 2 :]
    for own, other in zip(ours, formula, strict=True):
        assert torch.equal(own, other * 0.8)
    one = composite(generator, [0.8, 0.0])[: len(ours)]
    assert any(far(own, other) > 1e-3 for own, other in zip(one, ours, strict=True))


def test_what_does_not_act_is_left_out_with_its_type(plain: Generator) -> None:
    asked = job(control("canny"), control("depth", 2, end=0.5), num_inference_steps=4)
    with counted(plain.controlnets["union"]) as calls:
        latents(plain, asked)
    assert [call["control_type_idx"] for call in calls] == [[3, 1], [3, 1], [3], [3]]
    assert [call["control_type"].sum().item() / 2 for call in calls] == [2, 2, 1, 1]


def test_a_region_has_a_call_of_its_own(plain: Generator) -> None:
    half = Image.new("L", (64, 64))
    half.paste(255, (0, 0, 32, 64))
    asked = job(control("canny"), control("depth", 2, region=half), control("hed", 3))
    with counted(plain.controlnets["union"]) as calls:
        made = latents(plain, asked)[0]
    assert [call["control_type_idx"] for call in calls[:2]] == [[3, 2], [1]]
    everywhere = latents(plain, job(control("canny"), control("depth", 2), control("hed", 3)))[0]
    assert far(made, everywhere) > 1e-3


def test_a_union_and_a_single_net_act_together(plain: Generator) -> None:
    asked = job(control("canny"), control(small_sdxl.SINGLE, 2, scale=0.7))
    alone = job(control(small_sdxl.SINGLE, 2, scale=0.7))
    expected = theirs(
        plain,
        StableDiffusionXLControlNetPipeline,
        plain.controlnets[small_sdxl.SINGLE],
        alone,
        image=hint(2),
        controlnet_conditioning_scale=0.7,
    )
    assert torch.equal(latents(plain, alone)[0], expected)
    both = latents(plain, asked)[0]
    assert far(both, expected) > 1e-3 and far(both, latents(plain, job())[0]) > 1e-3


def test_a_single_net_and_an_initial_picture(plain: Generator) -> None:
    asked = job(control(small_sdxl.SINGLE, 2), initial=InitialPicture(hint(7), 0.6), num_inference_steps=5)
    given = {"image": hint(7), "control_image": hint(2), "strength": 0.6, "controlnet_conditioning_scale": 1.0}
    net = plain.controlnets[small_sdxl.SINGLE]
    expected = theirs(plain, StableDiffusionXLControlNetImg2ImgPipeline, net, asked, **given)
    assert torch.equal(latents(plain, asked)[0], expected)


@pytest.mark.parametrize("mode", ["control", "unbalanced"])
def test_on_the_conditional_half_a_union_gets_that_half_of_everything(plain: Generator, mode: str) -> None:
    asked = job(control("canny"), control("depth", 2), control_mode=mode)
    with counted(plain.controlnets["union"]) as calls:
        made = latents(plain, asked)[0]
    added = calls[0]["added_cond_kwargs"]
    assert len(calls[0]["control_type"]) == len(added["text_embeds"]) == len(calls[0]["controlnet_cond"][0]) == 1
    assert far(made, latents(plain, job(control("canny"), control("depth", 2)))[0]) > 1e-3


@pytest.mark.parametrize(("prompt", "negative"), [("a red ball", "grass"), ("a red ball", None)])
def test_prompts_of_one_chunk_equal_diffusers(generator: Generator, prompt: str, negative: str | None) -> None:
    base = generator.base
    pipeline: Any = StableDiffusionXLControlNetPipeline(
        **base, controlnet=generator.controlnets[small_sdxl.SINGLE], add_watermarker=False
    )
    expected = pipeline.encode_prompt(prompt, device="cpu", negative_prompt=negative)
    for own, other in zip(sdxl.encode(base, prompt, negative or "").values(), expected, strict=True):
        assert torch.equal(own, other)
    skipped = pipeline.encode_prompt(prompt, device="cpu", negative_prompt="", clip_skip=1)
    assert torch.equal(sdxl.encode(base, prompt, "", 3)["prompt_embeds"], skipped[0])


def test_a_long_prompt_is_read_to_its_end_and_pooled_from_its_first_chunk(generator: Generator) -> None:
    base, long = generator.base, "a red ball " * 12
    made, other = sdxl.encode(base, long + "grass", "sky"), sdxl.encode(base, long + "water", "sky")
    assert made["prompt_embeds"].shape == made["negative_prompt_embeds"].shape and made["prompt_embeds"].shape[1] > 32
    assert not torch.equal(made["prompt_embeds"], other["prompt_embeds"])
    assert torch.equal(made["pooled_prompt_embeds"], other["pooled_prompt_embeds"])
    short = sdxl.encode(base, "a", "sky")
    torch.testing.assert_close(made["negative_pooled_prompt_embeds"], short["negative_pooled_prompt_embeds"])
    weighted = sdxl.encode(base, "a (red:1.5) ball", "sky")
    assert not torch.equal(weighted["prompt_embeds"], sdxl.encode(base, "a red ball", "sky")["prompt_embeds"])


@pytest.mark.parametrize("layout", ["sgm", "diffusers"])
def test_a_lora_equals_diffusers_own_loader(plain: Generator, tmp_path: Path, layout: str) -> None:
    base = plain.base
    layers = {
        "unet": random_layers(base["unet"], ATTENTION),
        "text_encoder": random_layers(base["text_encoder"], TEXT, 1),
        "text_encoder_2": random_layers(base["text_encoder_2"], TEXT, 2),
    }
    file = {"sgm": save_sgm, "diffusers": save_peft}[layout](tmp_path / "lora.safetensors", layers)
    lora, before = Lora(file, layout, 0.8), latents(plain, job())[0]
    ours, made = latents(plain, job(loras=(lora,)))[0], of_union(plain, job(), lora=lora)
    assert far(ours, made) < 1e-4
    assert far(before, made) > 1e-2
    assert torch.equal(latents(plain, job())[0], before), "the shared networks stay as they were"


PREFIXES = {"unet": "unet.", "text_encoder": "text_encoder.", "text_encoder_2": "text_encoder_2."}


def save_peft(file: Path, layers: dict[str, Any]) -> Path:
    tensors = {}
    for network, own in layers.items():
        for name, (down, up) in own.items():
            inner = "" if network != "text_encoder" else "text_model."
            tensors[f"{PREFIXES[network]}{inner}{name}.lora_A.weight"] = down
            tensors[f"{PREFIXES[network]}{inner}{name}.lora_B.weight"] = up
    save_file(tensors, file)
    return file


BLOCKS = {"down_blocks.1.attentions.0": "input_blocks_3_1", "mid_block.attentions.0": "middle_block_1"}
"""Blocks of the small UNet, with one layer each, as kohya's scripts number them."""


def save_sgm(file: Path, layers: dict[str, Any]) -> Path:
    """As kohya's scripts write it. Of the UNet only the blocks whose numbers are the same for one layer a block."""
    tensors: dict[str, torch.Tensor] = {}
    for network, own in layers.items():
        for name, (down, up) in own.items():
            if network == "unet":
                block = next((each for each in BLOCKS if name.startswith(each)), None)
                if block is None:
                    continue
                key = "lora_unet_" + (BLOCKS[block] + name.removeprefix(block)).replace(".", "_")
            else:
                prefix = {"text_encoder": "lora_te1_text_model_", "text_encoder_2": "lora_te2_"}[network]
                key = prefix + name.replace(".", "_")
            tensors[f"{key}.lora_down.weight"], tensors[f"{key}.lora_up.weight"] = down, up
            tensors[f"{key}.alpha"] = torch.tensor(float(down.shape[0]))
    save_file(tensors, file)
    return file


def test_what_the_union_sees_in_holes_is_black(generator: Generator) -> None:
    holes = Image.new("L", (64, 64))
    holes.paste(255, (0, 0, 32, 64))
    with counted(generator.controlnets["union"]) as calls:
        latents(generator, job(control("inpaint", holes=holes)))
    (given,) = calls[0]["controlnet_cond"]
    assert calls[0]["control_type_idx"] == [7]
    assert not given[..., :32].any() and given.min() == 0 and given[..., 32:].any()


def test_requests_in_any_order_give_the_same_bytes(generator: Generator, tmp_path: Path) -> None:
    file = save_peft(tmp_path / "l.safetensors", {"unet": random_layers(generator.base["unet"], ATTENTION)})
    walk = [
        job(),
        job(prompt="a blue box"),
        job(control("depth", 2, scale=0.4), control("inpaint", 3)),
        job(loras=(Lora(file, "one", 1.0),)),
        job(go_fast=True, scheduler="TCD", guidance_scale=1.0, num_inference_steps=4, eta=0.3),
        job(initial=InitialPicture(hint(7), 0.5)),
        job(upscale=2.0, upscale_strength=0.5, num_inference_steps=4),
        job(num_outputs=2, seed=9),
    ]
    first = [pixels(generator.generate(each)) for each in walk]
    assert len({each[0] for each in first}) == len(walk)
    assert [pixels(generator.generate(each)) for each in reversed(walk)] == first[::-1]


def test_graphs_give_the_latents_of_requests_without(
    root: Path, manifest: Manifest, generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of two requests that differ in the pooled embeddings alone, which the networks get in a dict."""
    monkeypatch.setattr(speedups, "open_graphs", open_recorded)
    with recorded_graphs() as recorded:
        graphed = Generator(small_sdxl.opened(manifest, root))
        for asked in (
            job(),
            job(control("canny", scale=0.8), control("depth", 2, scale=0.4)),
            job(control("canny"), control(small_sdxl.SINGLE, 2), control_mode="control"),
            job(),
        ):
            assert torch.equal(latents(graphed, asked)[0], latents(generator, asked)[0])
        assert len(recorded) >= 4
        made = []
        for sign in (1, -1):
            embeddings = dict(sdxl.encode(generator.base, "a red ball", "grass"))
            embeddings["pooled_prompt_embeds"] = sign * embeddings["pooled_prompt_embeds"]
            for each in (graphed, generator):
                monkeypatch.setattr(each, "_embeddings", lambda *_, embeddings=embeddings: embeddings)
                made.append(latents(each, job())[0])
        assert torch.equal(made[0], made[1]) and torch.equal(made[2], made[3])
        assert far(made[0], made[2]) > 1e-3


def test_an_enlarged_picture_is_seen_in_windows_of_the_trained_size(generator: Generator) -> None:
    asked = job(upscale=2.0, upscale_strength=0.5, num_inference_steps=4)
    with counted(generator.base["unet"]) as calls:
        (picture,) = generator.generate(asked)
    assert picture.size == (128, 128)
    parts = unet_windows(generator.base["unet"], (16, 16), 1.0)
    assert len(parts) == 9 and len(calls) == 4 + 2 * len(parts)


def test_files_that_do_not_go_with_the_manifest_are_refused(root: Path, manifest: Manifest, tmp_path: Path) -> None:
    def refused(changed: Manifest, where: Path = root) -> str:
        with pytest.raises(WeightsMismatch) as error:
            bundle = small_sdxl.opened(changed, where)
            bundle.dtype = torch.float16
            bundle.base()
            bundle.controlnets()
        return str(error.value)

    def entry(name: str, **changes: Any) -> Manifest:
        entries = manifest.conditioners
        return replace(manifest, conditioners=entries | {name: replace(entries[name], **changes)})

    assert "has 8 types, and the manifest names type 8" in refused(entry("canny", type=8))
    assert "the manifest names no type" in refused(entry("canny", type=None))
    assert "the manifest names a type" in refused(entry(small_sdxl.SINGLE, type=2))
    for part in (root / "sdxl").iterdir():
        (tmp_path / "sdxl").mkdir(exist_ok=True)
        if part.name != "vae":
            (tmp_path / "sdxl" / part.name).symlink_to(part)
    vae = tmp_path / "sdxl" / "vae"
    vae.mkdir()
    for file in (root / "sdxl" / "vae").iterdir():
        text = file.read_bytes()
        if file.name == "config.json":
            text = json.dumps(json.loads(text) | {"force_upcast": True}).encode()
        (vae / file.name).write_bytes(text)
    assert "black pictures in float16" in refused(manifest, tmp_path)
