"""What annotators with a network share: strict loading from local files, and a private resolution for the network."""

import pickle
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

TRAINED_SHORT_SIDE = 512
"""Pixels. The ControlNet 1.1 annotators look at pictures at this size, and their line widths are meant for it."""

LONGEST_ASPECT = 4
"""How many short sides a private picture may be long: an enlarged 64 × 2048 strip would not fit in memory."""


class WeightsMismatch(RuntimeError):
    """A weights file's tensors are not the ones that its network has."""


@contextmanager
def quiet_controlnet_aux() -> Iterator[None]:
    """Silence what importing controlnet_aux 0.0.10, or building its networks, warns about.

    All of it is about that package's own age (old import paths, torch.jit) or about detectors that are not used here
    (mediapipe, SAM). Nobody who reads our log can act on it. Other warnings pass.
    """
    with warnings.catch_warnings():
        for message, category in (
            ("The module 'mediapipe' is not installed", UserWarning),
            ("Overwriting tiny_vit_", UserWarning),
            ("Importing from timm.models", FutureWarning),
            ("Please import `gaussian_filter`", DeprecationWarning),
            ("`torch.jit.", DeprecationWarning),
        ):
            warnings.filterwarnings("ignore", message=message, category=category)
        yield


def load_network(
    build: Callable[[], torch.nn.Module],
    file: Path,
    device: torch.device,
    tensors_of: Callable[[Any], Mapping[str, torch.Tensor]] = dict,
) -> torch.nn.Module:
    """Build a network and give it a pickled state dict: float32, on the device, in inference mode.

    tensors_of finds the state dict in what the file holds. The network is built without memory of its own and takes the
    file's tensors as they are, which halves the time and the memory of loading.

    Raises WeightsMismatch, naming the tensors, where the file lacks one, has one too many or has one of another shape.
    """
    try:
        tensors = dict(tensors_of(torch.load(file, map_location="cpu", weights_only=True)))
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError) as error:
        raise WeightsMismatch(f"{file.name} does not hold a network's tensors.{_REPAIR}") from error
    with torch.device("meta"):
        network = build()
    expected = network.state_dict()
    # BatchNorm's step counter came with PyTorch 0.4.1 and only training reads it: older files may go without.
    missing = [name for name in expected if name not in tensors and not name.endswith(".num_batches_tracked")]
    reshaped = [name for name in expected if name in tensors and tensors[name].shape != expected[name].shape]
    check_tensors(file.name, missing, (name for name in tensors if name not in expected), reshaped)
    network.load_state_dict(tensors, strict=True, assign=True)
    return network.float().eval().requires_grad_(False).to(device)


def load_pretrained(model_class: Any, folder: Path, device: torch.device) -> Any:
    """Open a transformers model from a local folder: float32, on the device, in inference mode.

    model_class is a class with transformers' from_pretrained. Raises WeightsMismatch, naming the tensors, where
    transformers itself would fill in random numbers for a missing tensor and only log it.
    """
    model, report = model_class.from_pretrained(
        folder,
        local_files_only=True,
        weights_only=True,
        ignore_mismatched_sizes=True,  # so that they reach the report, which names them
        output_loading_info=True,
        dtype=torch.float32,
    )
    reshaped = (name for name, *_ in report["mismatched_keys"])
    check_tensors(folder.name, report["missing_keys"], report["unexpected_keys"], reshaped)
    return model.eval().requires_grad_(False).to(device)


def load_processor(folder: Path) -> Any:
    """Open the image processor that was saved beside a transformers model."""
    from transformers import AutoImageProcessor

    return AutoImageProcessor.from_pretrained(folder, local_files_only=True)


_REPAIR = " Run script/verify-weights; where it finds no fault, install the versions in requirements.txt."


def check_tensors(what: str, missing: Iterable[str], unexpected: Iterable[str], reshaped: Iterable[str]) -> None:
    """Raise WeightsMismatch, naming tensors of `what`, unless all three collections of names are empty."""
    faults = {"missing": sorted(missing), "unexpected": sorted(unexpected), "of another shape": sorted(reshaped)}
    told = [
        f"{kind}: {', '.join(names[:5])}" + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        for kind, names in faults.items()
        if names
    ]
    if told:
        raise WeightsMismatch(f"{what} does not fit its network ({'; '.join(told)}).{_REPAIR}")


def private_size(size: tuple[int, int], short_side: int, multiple: int) -> tuple[int, int]:
    """The (width, height) at which a network sees a picture of (width, height) `size`.

    Both are multiples of `multiple`, the network's stride. The short side is about `short_side` and the long side at
    most about LONGEST_ASPECT times that; the aspect ratio is kept up to rounding.
    """
    scale = min(short_side / min(size), LONGEST_ASPECT * short_side / max(size))
    width, height = (max(multiple, round(side * scale / multiple) * multiple) for side in size)
    return width, height


def private_pixels(image: Image.Image, short_side: int, multiple: int) -> np.ndarray:
    """The picture at its private_size, as uint8 [height, width, 3] of its own memory."""
    size = private_size(image.size, short_side, multiple)
    pixels = np.array(image.convert("RGB"))
    if size == image.size:
        return pixels
    enlarging = size[0] * size[1] > image.width * image.height
    return cv2.resize(pixels, size, interpolation=cv2.INTER_LANCZOS4 if enlarging else cv2.INTER_AREA)


def as_batch(pixels: np.ndarray, device: torch.device) -> torch.Tensor:
    """uint8 [height, width, channels] -> float32 [1, channels, height, width], 0 to 255, on the device."""
    return torch.from_numpy(pixels).to(device).permute(2, 0, 1)[None].float()


def restore_soft(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bring values that may be blended (edge strength, depth, normals) to the picture's (width, height)."""
    height, width = values.shape[:2]
    if (width, height) == size:
        return values
    enlarging = size[0] * size[1] > width * height
    return cv2.resize(values, size, interpolation=cv2.INTER_LINEAR if enlarging else cv2.INTER_AREA)


def restore_exact(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bring values that must not be blended (labels, skeleton colours, strokes) to the picture's (width, height)."""
    return cv2.resize(values, size, interpolation=cv2.INTER_NEAREST_EXACT)


def device_of(network: torch.nn.Module) -> torch.device:
    return next(network.parameters()).device
