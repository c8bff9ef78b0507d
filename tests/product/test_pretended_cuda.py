"""The sd15 bundle with small random weights, in fp16, on a GPU that is only pretended: setup and every kind of request.

tests/support/pretended_cuda.py says what that shows and what it cannot. Setup is that of predict.py, apart from the
choice of the device.
"""

from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cog
import numpy as np
import pytest
import torch
from PIL import Image
from random_bundle import write_bundle
from skimage import data
from support.jobs import hint, job
from support.pretended_cuda import CPU, CUDA, MixedDevices, MixedDtypes, Operations, PretendedTensor, pretended_cuda

import predict
from controlnet.bundle import Bundle
from controlnet.generation.generator import Generator
from controlnet.maps.annotators import ANNOTATORS
from controlnet.models import packed
from controlnet.models.schedulers import SCHEDULERS
from controlnet.pictures.canvas import InitialPicture
from controlnet.request.modes import CONTROL_MODES
from controlnet.weights.manifest import Manifest

Inputs = dict[str, Any]
SHORTEST: Inputs = {"prompt": "a (red:1.3) ball", "resolution": 64, "num_inference_steps": 2, "seed": 1}
CONTROLS: dict[str, Inputs] = {
    "a region": {"control_mask": "soft"},
    "a reference picture": {"reference_image": "other", "reference_mask": "soft"},
    "a pooled net": {"conditioner": "shuffle"},
    "three nets, regions, windows": {
        "conditioner": "shuffle",
        "control_mask": "hard",
        "control_end": 0.5,
        "conditioner_2": "canny",
        "image_2": "other",
        "control_mask_2": "soft",
        "conditioner_3": "tile",
        "control_start_3": 0.5,
    },
}
BEGINNINGS: dict[str, Inputs] = {
    "noise": {},
    "a mask": {"mask": "hard"},
    "a mask at strength 0.5": {"mask": "soft", "prompt_strength": 0.5},
}
OTHERS: dict[str, Inputs] = {
    "a long prompt": {"prompt": "a (red:1.3) ball " * 30, "negative_prompt": "[blue]"},
    "clip_skip": {"clip_skip": 2},
    "no control": {"conditioning_scale": 0.0},
    "a ready-made map": {"preprocess": False},
    "poses": {"conditioner": "openpose", "return_pose_json": True},
    "two outputs": {"num_outputs": 2},
    "an initial picture": {"init_image": "other", "prompt_strength": 0.5},
    "an initial picture at strength 1": {"init_image": "other", "prompt_strength": 1.0},
    "a soft mask at strength 1": {"mask": "soft"},
    "a hard mask at strength 0.5": {"mask": "hard", "prompt_strength": 0.5},
    "a style": {"reference_image": "other", "reference_mode": "style"},
    "a reference picture for larger ones": {
        "reference_image": "other",
        "reference_mask": "soft",
        "upscale": 2.0,
        "upscale_strength": 0.5,
    },
    "larger pictures": {"upscale": 2.0, "upscale_strength": 0.5, "conditioner_2": "depth", "control_mask_2": "soft"},
    "outpainting": {"conditioner": "inpaint", "outpaint_right": 16},
    "outpainting with a region": {"conditioner": "inpaint", "outpaint_top": 16, "control_mask": "soft"},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    with_references("sd15", folder)
    return folder


def with_references(name: str, root: Path, **chosen: Any) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONTROLNET_REFERENCE", "1")
        return write_bundle(name, root, small=True, **chosen)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, cog.Path]:
    folder = tmp_path_factory.mktemp("pictures")
    photo, hard, soft = Image.fromarray(data.astronaut()).resize((64, 64)), Image.new("L", (64, 64)), soft_mask()
    hard.paste(255, (24, 0, 64, 64))
    drawn = {"photo": photo, "other": photo.rotate(90), "hard": hard, "soft": soft}
    for name, picture in drawn.items():
        picture.save(folder / f"{name}.png")
    return {name: cog.Path(folder / f"{name}.png") for name in drawn}


def soft_mask() -> Image.Image:
    mask = np.zeros((64, 64), np.uint8)
    mask[5:60, 8:40] = np.linspace(1, 255, 32).astype(np.uint8)
    return Image.fromarray(mask)


def open_bundle(root: Path, device: torch.device, low_memory: bool = False) -> Bundle:
    return Bundle(Manifest.read(root / "sd15.toml", {}), root, device, torch.float16, low_memory)


@pytest.fixture(scope="module")
def predictor(root: Path) -> predict.Predictor:
    with pretended_cuda(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(predict, "open_bundle", lambda: open_bundle(root, CUDA))
        made = predict.Predictor()
        made.setup()
    return made


@pytest.fixture
def gpu() -> Iterator[Operations]:
    with pretended_cuda() as operations:
        yield operations


@pytest.fixture
def send(predictor: predict.Predictor, pictures: dict[str, cog.Path], gpu: Operations) -> Callable[..., list[bytes]]:
    """send(**inputs): the files of a short request of 64 pixels. A picture is named as in `pictures`."""

    def answer(**inputs: Any) -> list[bytes]:
        sent = SHORTEST | {"image": "photo", "output_format": "png"} | inputs
        files = {name: pictures[value] for name, value in sent.items() if value in pictures}
        return [path.read_bytes() for path in predictor.predict(**sent | files)]

    return answer


# ---- the product


def test_setup_moves_all_models_to_the_gpu_in_fp16(predictor: predict.Predictor, gpu: Operations) -> None:
    base = predictor.model.generator.base
    models = [base["unet"], base["vae"], base["text_encoder"], predictor.model.safety_checker.model]
    for model in [*models, *predictor.model.generator.controlnets.values()]:
        for tensor in packed.tensors_of(model):
            assert isinstance(tensor, PretendedTensor)
            assert tensor.dtype == torch.float16 or not tensor.is_floating_point()


@pytest.mark.parametrize("conditioner", predict.CONDITIONERS)
def test_every_annotator_and_controlnet_runs_on_a_gpu(send, predictor, gpu, conditioner: str) -> None:
    kind = ANNOTATORS[predictor.model.bundle.manifest.annotator(conditioner)]
    inputs: Inputs = {"conditioner": conditioner}
    inputs |= {"mask": "hard"} if conditioner == "inpaint" else {"detect_resolution": 64}
    (control_map,) = send(map_only=True, **inputs)
    assert (gpu.count > 50) == bool(kind.parts)
    drawing = gpu.count
    assert send(return_control_map=True, **inputs)[0] == control_map
    assert gpu.count - drawing > 1000


@pytest.mark.parametrize("controls", CONTROLS)
@pytest.mark.parametrize("mode", CONTROL_MODES)
def test_every_control_mode_runs_on_a_gpu(send, mode: str, controls: str) -> None:
    assert send(control_mode=mode, **CONTROLS[controls])


@pytest.mark.parametrize("controls", CONTROLS)
def test_further_steps_move_no_tensor_to_the_gpu(send, gpu: Operations, controls: str) -> None:
    """A step that does waits for the CPU."""
    moved = []
    for steps in (2, 4):
        before = gpu.uploads
        send(scheduler="DDIM", num_inference_steps=steps, mask="soft", **CONTROLS[controls])
        moved.append(gpu.uploads - before)
    assert moved[0] == moved[1] > 0


@pytest.mark.parametrize("controls", CONTROLS)
def test_requests_without_guidance_run_on_a_gpu(send, controls: str) -> None:
    assert send(guidance_scale=1, control_mode="prompt", **CONTROLS[controls])


@pytest.mark.parametrize(("scheduler", "beginning"), list(product(SCHEDULERS, BEGINNINGS)))
def test_every_scheduler_runs_on_a_gpu(send, scheduler: str, beginning: str) -> None:
    """With four steps: samplers of higher order use earlier ones."""
    assert send(scheduler=scheduler, num_inference_steps=4, **BEGINNINGS[beginning])


@pytest.mark.parametrize("inputs", OTHERS.values(), ids=OTHERS.keys())
def test_every_other_kind_of_request_runs_on_a_gpu(send, inputs: Inputs) -> None:
    assert send(**inputs)


def test_steps_in_windows_move_no_tensor_to_the_gpu(send, gpu: Operations) -> None:
    moved = []
    for strength in (0.5, 0.75):
        before = gpu.uploads
        send(scheduler="DDIM", num_inference_steps=4, upscale=2.0, upscale_strength=strength, mask="soft")
        moved.append(gpu.uploads - before)
    assert moved[0] == moved[1] > 0


def test_the_safety_checker_runs_on_a_gpu(predictor: predict.Predictor, gpu: Operations) -> None:
    assert predictor.model.safety_checker.flags([Image.new("RGB", (64, 48), "red")] * 2) == [False, False]
    assert gpu.count > 100


def test_low_memory_mode_swaps_controlnets_on_a_gpu(root, predictor, gpu, monkeypatch) -> None:
    """Except for what asks the driver: locking memory, and waiting for a transfer."""
    locked: list[torch.Tensor] = []
    waits: list[torch.device] = []

    class Stream:
        def __init__(self, device: torch.device) -> None:
            self.synchronize = lambda: waits.append(device)

    monkeypatch.setattr(packed, "_pin", locked.append)
    monkeypatch.setattr(packed, "_unpin", lambda address: None)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    low = Generator(open_bundle(root, CUDA, low_memory=True))
    assert len(locked) == len(predict.CONDITIONERS)
    assert all(not isinstance(buffer, PretendedTensor) for buffer in locked)
    for conditioner in ("canny", "shuffle", "canny"):
        asked = job(control={"conditioner": conditioner})
        assert low.generate(asked) == predictor.model.generator.generate(asked)
    assert waits == [CUDA] * 3


def test_low_memory_mode_of_sdxl_keeps_encoders_and_annotators_off_the_gpu(
    tmp_path: Path, pictures: dict[str, cog.Path], gpu: Operations, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "_pin", lambda buffer: None)
    monkeypatch.setattr(packed, "_unpin", lambda address: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(synchronize=lambda: None))
    manifest = Manifest.read(with_references("sdxl", tmp_path, conditioners=("canny", "depth")), {})
    answers, predictors = [], []
    for low_memory in (False, True):
        bundle = Bundle(manifest, tmp_path, CUDA, torch.float16, low_memory)
        monkeypatch.setattr(predict, "open_bundle", lambda bundle=bundle: bundle)
        predictors.append(made := predict.Predictor())
        made.setup()
        sent = SHORTEST | {"image": pictures["photo"], "output_format": "png"}
        two = sent | {"conditioner_2": "depth", "negative_prompt": "grass"}
        like = sent | {"reference_image": pictures["other"]}
        answers.append([path.read_bytes() for inputs in (sent, two, like, sent) for path in made.predict(**inputs)])
    assert answers[0] == answers[1] and answers[0][0] == answers[0][3] and len({*answers[0]}) == 3
    base, references = predictors[1].model.generator.base, predictors[1].model.generator.references
    for model in (base["text_encoder"], base["text_encoder_2"], references._encoder):
        assert not any(isinstance(tensor, PretendedTensor) for tensor in packed.tensors_of(model))
    for name in ("unet", "vae"):
        assert all(isinstance(tensor, PretendedTensor) for tensor in packed.tensors_of(base[name]))
    before = gpu.count
    list(predictors[1].predict(**sent | {"conditioner": "depth", "map_only": True, "detect_resolution": 64}))
    assert gpu.count == before, "no annotator is on the GPU"


# ---- the pretended GPU


@pytest.mark.parametrize("initial", [None, InitialPicture(hint(9), 0.5, soft_mask())], ids=["noise", "mask"])
def test_a_pretended_gpu_makes_the_pictures_of_the_cpu(root, predictor, initial: InitialPicture | None) -> None:
    (on_cpu,) = Generator(open_bundle(root, CPU)).generate(job(initial=initial))
    with pretended_cuda():
        (made,) = predictor.model.generator.generate(job(initial=initial))
    assert np.abs(np.asarray(made, int) - np.asarray(on_cpu)).max() <= 8, "more than rounding"
    assert np.std(on_cpu) > 40


@pytest.mark.parametrize("grad", [torch.no_grad, torch.inference_mode])
def test_an_operation_of_both_devices_is_refused(gpu: Operations, grad: Callable) -> None:
    there, here = torch.ones(1, 1, 2, 2, device="cuda"), torch.ones(1, 1, 2, 2)
    with grad():
        for mixed in (
            lambda: there + here,
            lambda: here.add_(there),
            lambda: torch.cat([there, here]),
            lambda: torch.stack([there.sum(), torch.tensor(1.0)]),
            lambda: torch.where(here > 0, there, there),
            lambda: there[torch.tensor([0])],
            lambda: torch.nn.functional.linear(there, here[0, 0]),
            lambda: torch.nn.functional.conv2d(there, here),
            lambda: torch.nn.functional.scaled_dot_product_attention(there, there, here),
        ):
            with pytest.raises(MixedDevices, match=r"on cuda.* on cpu|on cpu.* on cuda"):
                mixed()
        with pytest.raises(RuntimeError, match="numpy"):
            there.numpy()


@pytest.mark.parametrize("grad", [torch.no_grad, torch.inference_mode])
def test_mixed_precisions_are_refused(gpu: Operations, grad: Callable) -> None:
    pixels = torch.ones(1, 4, 8, 8, device="cuda")
    for layer in (torch.nn.GroupNorm(2, 4), torch.nn.LayerNorm(8), torch.nn.Conv2d(4, 4, 1)):
        layer.requires_grad_(False).to("cuda")
        with grad():
            layer(pixels)
            with pytest.raises((MixedDtypes, RuntimeError), match=r"got torch.float16 and torch.float32|be the same"):
                layer(pixels.half())
