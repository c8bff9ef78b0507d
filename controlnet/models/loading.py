"""Loads models from local files, strictly: a missing or an unexpected tensor is an error that names it.

Models are built one after the other. Their tensors stay in the files, which are mapped into memory. Then several
threads move the bytes to where they are needed. (The models are not built in threads because diffusers patches
torch.nn.Module for the whole process while it builds one, so the threads would corrupt each other: diffusers issue
14347.)
"""

import contextlib
import os
import pickle
import threading
import zipfile
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

THREADS = 16
"""The largest number of threads that move bytes at the same time. A machine with fewer cores uses one per core."""
T = TypeVar("T")
_REPAIR = (
    " Run script/verify-weights. If it finds no fault, install the versions in requirements.txt. If they are installed,"
    " the file is one that this project does not know: name an older commit as its part's revision in the manifest."
)


class WeightsMismatch(RuntimeError):
    """The tensors in a weights file are not the ones that the network has."""


def load_network(
    build: Callable[[], torch.nn.Module],
    file: Path,
    device: torch.device,
    tensors_of: Callable[[Any], Mapping[str, torch.Tensor]] = dict,
) -> torch.nn.Module:
    """Build a network and load a pickled state dict into it: in float32, on the device, in inference mode.

    `tensors_of` gets the file's content and returns the state dict. The network is built on the meta device and takes
    over the file's tensors, which halves the time and the memory of loading.

    Raises WeightsMismatch, which names the tensors, if one is missing, unexpected or of another shape.
    """
    try:
        read = dict(tensors_of(open_file(file)))
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError) as error:
        raise WeightsMismatch(f"{file.name} does not hold a network's tensors.{_REPAIR}") from error
    with torch.device("meta"):
        network = build()
    expected = network.state_dict()
    tensors = {name: tensor for name, tensor in read.items() if name in expected or not is_outdated(name)}
    # Only training reads BatchNorm's step counter. Files from before PyTorch 0.4.1 do not have it.
    missing = [name for name in expected if name not in tensors and not name.endswith(".num_batches_tracked")]
    reshaped = [name for name in expected if name in tensors and tensors[name].shape != expected[name].shape]
    check_tensors(file.name, missing, (name for name in tensors if name not in expected), reshaped)
    network.load_state_dict(tensors, strict=True, assign=True)
    return move(network.eval().requires_grad_(False), device, torch.float32)


def load_pretrained(
    model_class: Any, folder: Path, device: torch.device | str, dtype: torch.dtype | None = torch.float32
) -> Any:
    """Load a diffusers or transformers model from a local folder: in `dtype`, on the device, in inference mode.

    A `dtype` of None keeps the file's precision. On a CPU the tensors then stay in the file until they are read. A
    file in half precision (".fp16.") is preferred to others, and .safetensors to .bin.

    Raises WeightsMismatch, which names the tensors, if one is missing, unexpected or of another shape. diffusers and
    transformers would fill in random numbers for a missing tensor, drop an unexpected one, and only log it.
    """
    file = weights_file(folder)
    stored = stored_dtype(file)
    transformers = issubclass(model_class, PreTrainedModel)
    model, report = model_class.from_pretrained(
        folder,
        variant="fp16" if ".fp16." in file.name else None,
        use_safetensors=file.suffix == ".safetensors",
        local_files_only=True,
        ignore_mismatched_sizes=True,  # otherwise from_pretrained raises, and the report does not name them
        output_loading_info=True,
        # In the file's precision nothing is copied: the model's tensors are those of the mapped file.
        **({"dtype": stored, "weights_only": True} if transformers else {"torch_dtype": stored}),
    )
    unexpected = (name for name in report["unexpected_keys"] if not is_outdated(name))
    reshaped = (name for name, *_ in report["mismatched_keys"])
    check_tensors(folder.name, report["missing_keys"], unexpected, reshaped)
    return move(model.eval().requires_grad_(False), device, dtype or stored)


def move(model: torch.nn.Module, device: torch.device | str, dtype: torch.dtype) -> torch.nn.Module:
    """Move all tensors of a model to the device and cast the floating-point ones to `dtype`. Returns the model itself.

    It does what model.to(device, dtype) does, in several threads. A tensor that needs no change is not copied.
    """

    def move_one(tensor: torch.Tensor) -> None:
        tensor.data = tensor.data.to(device, dtype if tensor.is_floating_point() else None)

    in_parallel(move_one, [*model.parameters(), *model.buffers()])
    return model


def in_parallel(work: Callable[[torch.Tensor], T], tensors: Iterable[torch.Tensor]) -> list[T]:
    """[work(tensor) for tensor in tensors] in several threads: PyTorch releases the GIL while it copies.

    For setup() only: a cancellation in the moment in which a thread starts would block the request for ever
    (controlnet/serving/input_files.py).
    """
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        return list(pool.map(work, tensors))


def weights_file(folder: Path) -> Path:
    """The file in a model's folder that holds its tensors. Raises WeightsMismatch if there is none."""
    files = [file for suffix in (".safetensors", ".bin") for file in sorted(folder.glob(f"*{suffix}"))]
    if not files:
        raise WeightsMismatch(f"{folder.name} has no file of tensors.{_REPAIR}")
    return next((file for file in files if ".fp16." in file.name), files[0])


def stored_dtype(file: Path) -> torch.dtype:
    """The precision of a file's floating-point tensors. If they differ, one that holds all of them exactly."""
    return reduce(
        torch.promote_types, {tensor.dtype for tensor in open_file(file).values() if tensor.is_floating_point()}
    )


def open_file(file: Path) -> Any:
    """The content of a .safetensors or pickled file (.bin, .pth, .pt), with its tensors mapped instead of read.

    A pickled file from before PyTorch 1.6 is not a zip file and cannot be mapped, so it is read.
    """
    if file.suffix == ".safetensors":
        return load_file(file)
    return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))


def read_ahead(files: Iterable[Path]) -> None:
    """Make the system read files into its cache in the background, in this order and in large pieces.

    Without this, each page of a mapped file is read from the disk when it is first used.
    """

    def advise() -> None:
        for file in files:
            # A file that cannot be read is an error for whoever loads it, not here.
            with contextlib.suppress(OSError), file.open("rb") as opened:
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)

    if hasattr(os, "posix_fadvise"):  # not on macOS
        # In a thread, because the call waits for the disk once the disk's queue is full.
        threading.Thread(target=advise, daemon=True).start()


def is_outdated(name: str) -> bool:
    """Whether a tensor is one that networks had once and now compute: the numbers 0, 1, 2 … in old files of CLIP."""
    return name.endswith(".position_ids")


def check_tensors(what: str, missing: Iterable[str], unexpected: Iterable[str], reshaped: Iterable[str]) -> None:
    """Raise WeightsMismatch, which names the tensors of `what`, unless all three collections are empty."""
    faults = {"missing": sorted(missing), "unexpected": sorted(unexpected), "of another shape": sorted(reshaped)}
    described = [
        f"{fault}: {', '.join(names[:5])}" + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        for fault, names in faults.items()
        if names
    ]
    if described:
        raise WeightsMismatch(f"{what} does not fit its network ({'; '.join(described)}).{_REPAIR}")
