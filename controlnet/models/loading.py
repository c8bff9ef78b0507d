"""Opening models from local files, strictly: a tensor too few or too many is an error that names it.

Models are built one after the other, with their tensors left in the files, which are mapped into memory. Only then are
the bytes moved to where they are needed, by several threads. (Threads that build diffusers' models corrupt each other:
building patches torch.nn.Module for the whole process, issue 14347 of diffusers.)
"""

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
"""The most that move bytes at once, on a machine with as many cores."""
TENSOR_FILES = (".safetensors", ".bin", ".pth", ".pt")
"""Endings of the files that hold tensors."""
T = TypeVar("T")
_REPAIR = " Run script/verify-weights; where it finds no fault, install the versions in requirements.txt."


class WeightsMismatch(RuntimeError):
    """A weights file's tensors are not the ones that its network has."""


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
        tensors = dict(tensors_of(open_file(file)))
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
    return move(network.eval().requires_grad_(False), device, torch.float32)


def load_pretrained(
    model_class: Any, folder: Path, device: torch.device | str, dtype: torch.dtype | None = torch.float32
) -> Any:
    """Open a diffusers or transformers model from a local folder: in `dtype`, on the device, in inference mode.

    `dtype` None: in the file's own, and on a CPU the tensors are then left in the file until they are read. A file in
    half precision (".fp16.") is taken where the folder holds one, and a .safetensors rather than a .bin. Raises
    WeightsMismatch, naming the tensors, where the libraries would fill in random numbers for a missing tensor, or drop
    an unknown one, and only log it.
    """
    file = weights_file(folder)
    stored = stored_dtype(file)
    transformers = issubclass(model_class, PreTrainedModel)
    model, report = model_class.from_pretrained(
        folder,
        variant="fp16" if ".fp16." in file.name else None,
        use_safetensors=file.suffix == ".safetensors",
        local_files_only=True,
        ignore_mismatched_sizes=True,  # so that they reach the report, which names them
        output_loading_info=True,
        # In the file's own precision nothing is copied: the tensors are those of the mapped file.
        **({"dtype": stored, "weights_only": True} if transformers else {"torch_dtype": stored}),
    )
    reshaped = (name for name, *_ in report["mismatched_keys"])
    check_tensors(folder.name, report["missing_keys"], report["unexpected_keys"], reshaped)
    return move(model.eval().requires_grad_(False), device, dtype or stored)


def move(model: torch.nn.Module, device: torch.device | str, dtype: torch.dtype) -> torch.nn.Module:
    """`model` itself with all its tensors on the device, its floating-point ones in `dtype`.

    As model.to(device, dtype), tensor by tensor in several threads. What is there already is not copied.
    """

    def move_one(tensor: torch.Tensor) -> None:
        tensor.data = tensor.data.to(device, dtype if tensor.is_floating_point() else None)

    in_parallel(move_one, [*model.parameters(), *model.buffers()])
    return model


def in_parallel(work: Callable[[torch.Tensor], T], tensors: Iterable[torch.Tensor]) -> list[T]:
    """[work(tensor) for tensor in tensors] by several threads; PyTorch lets go of the interpreter while it copies."""
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        return list(pool.map(work, tensors))


def weights_file(folder: Path) -> Path:
    """The file of a model's folder that holds its tensors. Raises WeightsMismatch where there is none."""
    files = [file for suffix in (".safetensors", ".bin") for file in sorted(folder.glob(f"*{suffix}"))]
    if not files:
        raise WeightsMismatch(f"{folder.name} has no file of tensors.{_REPAIR}")
    return next((file for file in files if ".fp16." in file.name), files[0])


def stored_dtype(file: Path) -> torch.dtype:
    """The precision of a file's floating-point tensors; where they differ, one that holds them all."""
    return reduce(
        torch.promote_types, {tensor.dtype for tensor in open_file(file).values() if tensor.is_floating_point()}
    )


def open_file(file: Path) -> Any:
    """What a .safetensors or a pickled file (.bin, .pth, .pt) holds, its tensors mapped rather than read.

    A pickled file from before PyTorch 1.6 is no zip and cannot be mapped: that one is read.
    """
    if file.suffix == ".safetensors":
        return load_file(file)
    return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))


def read_ahead(files: Iterable[Path]) -> None:
    """Have the system read files into its cache, in their order and in large pieces, while other work goes on.

    Without it the pages of mapped files come from the disk one by one as they are touched.
    """

    def advise() -> None:
        for file in files:
            with file.open("rb") as opened:
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)

    if hasattr(os, "posix_fadvise"):  # not on macOS
        # The call itself waits for the disk once its queue is full.
        threading.Thread(target=advise, daemon=True).start()


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
