"""Opening models from local files, strictly: a tensor too few or too many is an error that names it."""

import pickle
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

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


def load_pretrained(
    model_class: Any, folder: Path, device: torch.device | str, dtype: torch.dtype = torch.float32
) -> Any:
    """Open a diffusers or transformers model from a local folder: in `dtype`, on the device, in inference mode.

    A file in half precision (".fp16.") is taken where the folder holds one. Raises WeightsMismatch, naming the tensors,
    where the libraries would fill in random numbers for a missing tensor, or drop an unknown one, and only log it.
    """
    if issubclass(model_class, PreTrainedModel):
        options: dict[str, Any] = {"dtype": dtype, "weights_only": True}
    else:
        # diffusers never runs a pickle's code, but would log an error with the path of one that it was not told of.
        options = {"torch_dtype": dtype, "use_safetensors": any(folder.glob("*.safetensors"))}
    model, report = model_class.from_pretrained(
        folder,
        variant="fp16" if any(folder.glob("*.fp16.*")) else None,
        local_files_only=True,
        ignore_mismatched_sizes=True,  # so that they reach the report, which names them
        output_loading_info=True,
        **options,
    )
    reshaped = (name for name, *_ in report["mismatched_keys"])
    check_tensors(folder.name, report["missing_keys"], report["unexpected_keys"], reshaped)
    return model.eval().requires_grad_(False).to(device)


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
