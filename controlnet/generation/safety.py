"""The safety checker flags pictures to withhold. If it fails, all are withheld.

A request may skip it unless the container forbids that (controlnet/request/combinations.py). Method: CLIP image
embeddings compared with 17 concepts, each with a threshold (CompVis/stable-diffusion-safety-checker; Rando et al.,
arXiv 2210.04610).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from PIL import Image

from controlnet.log import say

if TYPE_CHECKING:
    import torch

    from controlnet.bundle import Bundle

FEATURE_EXTRACTOR = "feature_extractor"  # the part with the checker's image processor


class SafetyError(ValueError):
    """No picture may be returned: all were flagged, or they could not be checked."""


class Checker(Protocol):
    """What withhold() needs of a safety checker."""

    def flags(self, pictures: Sequence[Image.Image]) -> list[bool]:
        """One bool per picture, True for one to withhold. Raises SafetyError if that cannot be decided."""
        ...


class SafetyChecker:
    """diffusers' StableDiffusionSafetyChecker with its CLIP image processor, on `device`."""

    def __init__(self, model: Any, processor: Any, device: "torch.device | str") -> None:
        self.model = model.to(device).eval()
        self.processor = processor
        self.device = device
        # A NaN compares as "not above the threshold": without this, an overflow in fp16 would pass any picture.
        self.model.visual_projection.register_forward_hook(_refuse_nan)

    def flags(self, pictures: Sequence[Image.Image]) -> list[bool]:
        """One bool per picture, True for a flagged one; the pictures are not touched.

        Raises SafetyError if anything at all goes wrong: an unchecked picture is never taken for a safe one.
        """
        import numpy as np
        import torch

        try:
            pixels = self.prepared(pictures).to(self.device, next(self.model.parameters()).dtype)
            # diffusers blackens flagged entries of its second argument in place, so it gets arrays that are not used
            with torch.no_grad():
                _, flags = self.model(clip_input=pixels, images=np.zeros((len(pictures), 1, 1, 3)))
            flags = [bool(flag) for flag in flags]
        except Exception as error:  # of any sort: the pictures are unchecked
            raise _unchecked() from error
        if len(flags) != len(pictures):
            raise _unchecked()
        return flags

    def prepared(self, pictures: Sequence[Image.Image]) -> "torch.Tensor":
        """What the model sees: (N, 3, H, W), bit for bit as the processor makes it of PIL pictures."""
        import numpy as np
        import torch

        # The processor would first copy each colour into a plane of its own, where torchvision resizes half as fast.
        arrays = [torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1) for picture in pictures]
        small = [self.processor.resize(array, self.processor.size, self.processor.resample) for array in arrays]
        return self.processor(images=small, do_resize=False, return_tensors="pt").pixel_values


def withhold(pictures: Sequence[Image.Image], checker: Checker | None, disabled: bool) -> list[Image.Image]:
    """The pictures that may be returned, in their order, unchanged; which were withheld is printed to the log.

    `checker` is None if the bundle declares that it has none; `disabled` is the request's disable_safety_checker.
    Raises SafetyError if all are flagged, or if they could not be checked.
    """
    if disabled or checker is None or not pictures:
        return list(pictures)
    flags = checker.flags(pictures)
    if len(flags) != len(pictures):
        raise _unchecked()
    if all(flags):
        raise SafetyError(
            "The safety checker flagged every picture of this request, so none is returned: "
            "try another seed or another prompt."
        )
    if any(flags):
        withheld = ", ".join(str(i) for i, flag in enumerate(flags) if flag)
        say(f"Withheld by the safety checker, of the pictures 0 to {len(pictures) - 1}: {withheld}")
    return [picture for picture, flag in zip(pictures, flags, strict=True) if not flag]


def open_safety_checker(bundle: "Bundle") -> SafetyChecker | None:
    """The checker that the bundle's manifest names; None only if the manifest says "none".

    Raises SafetyError if the files are absent or incomplete: setup fails rather than run without it.
    """
    name = bundle.manifest.safety_checker
    if name == "none":
        return None
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker, logger
    from transformers import CLIPImageProcessor

    logger.setLevel("ERROR")  # its warning announces black images, which is not what happens here
    try:
        model = bundle.model(StableDiffusionSafetyChecker, name)
        processor = CLIPImageProcessor.from_pretrained(bundle.folder(FEATURE_EXTRACTOR), local_files_only=True)
    except Exception as error:  # missing concepts would be filled with ones, a threshold that no picture reaches
        raise SafetyError(_absent(bundle.manifest.name, name)) from error
    return SafetyChecker(model, processor, bundle.device)


def _refuse_nan(module: Any, inputs: Any, output: "torch.Tensor") -> None:
    if not output.isfinite().all():
        raise FloatingPointError("the image embedding is not finite")


def _unchecked() -> SafetyError:
    return SafetyError(
        "The pictures could not be checked by the safety checker, so no picture is returned: please try again."
    )


def _absent(bundle: str, part: str) -> str:
    return (
        f'The bundle {bundle} names the safety checker "{part}", but its files are absent or incomplete: '
        f"run script/download-weights {bundle}."
    )
