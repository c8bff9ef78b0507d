"""script/import-checkpoint: make a bundle of a checkpoint in one .safetensors file, as CivitAI has them.

The bundle extends another (sd15) and has only what differs: UNet, text encoder and VAE, in half precision. ControlNets,
annotators, tokenizer and safety checker are shared with that one. The file is read by diffusers' from_single_file.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from checkpoint_kinds import CLIP, UNET, VAE, CheckpointError, Contents, check_kind, read_contents
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import logging as diffusers_log
from transformers import CLIPTextModel
from transformers.utils.logging import disable_progress_bar

from controlnet.models.loading import WeightsMismatch, is_outdated, load_pretrained, open_file, weights_file
from controlnet.weights.download import describe, lock
from controlnet.weights.files import check, sha256
from controlnet.weights.lockfile import WeightsError
from controlnet.weights.manifest import WEIGHTS, Manifest, ManifestError, bundle_names
from controlnet.weights.parts import BUNDLE_NAME

PREDICTION_TYPES = ("epsilon", "v_prediction")
SCHEDULER_CONFIG = "scheduler_config.json"


@dataclass(frozen=True)
class Component:
    """A model of a checkpoint, and the part that it becomes."""

    prefix: str
    """How the names of its tensors begin in the file."""
    model_class: type
    library: str
    purpose: str


COMPONENTS = {
    "unet": Component(UNET, UNet2DConditionModel, "diffusers", "Denoising network"),
    "vae": Component(VAE, AutoencoderKL, "diffusers", "Turns latents into pixels"),
    "text_encoder": Component(CLIP, CLIPTextModel, "transformers", "Turns the prompt's tokens into embeddings"),
}


@dataclass(frozen=True)
class Wanted:
    """What the command line says about the new bundle."""

    name: str
    base: str = "sd15"
    prediction_type: str | None = None
    """One of PREDICTION_TYPES. None: what the file says, or else the base's."""
    clip_skip: int | None = None
    """None: the base's."""
    licence: str = "as the page says that the file is from"
    replace: bool = False
    """Whether a bundle of that name is replaced."""


def import_checkpoint(
    file: Path, wanted: Wanted, root: Path = WEIGHTS, say: Callable[[str], None] = lambda line: None
) -> Path:
    """Write the bundle's files, manifest and lock to `root`. Returns the manifest's path. `say` gets lines to print.

    Nothing is fetched, and nothing is left behind if it fails. Raises CheckpointError if the file or a wish cannot be
    used, and WeightsError or ManifestError if the base cannot.
    """
    base = Manifest.read(root / f"{wanted.base}.toml")
    _check_wishes(wanted, base, root)
    check(base, root)
    contents = read_contents(file)
    unet = _config(base, root, "unet")
    check_kind(file, contents, unet["in_channels"], unet["cross_attention_dim"])
    with tempfile.TemporaryDirectory(prefix=".import-", dir=root) as folder:
        made = Path(folder) / "bundle"
        made.mkdir()
        parts = _write_models(file, contents, base, root, made, say)
        if scheduler := _write_scheduler(wanted.prediction_type or contents.prediction_type, base, root, made):
            parts["scheduler"] = f"The noise schedule, with {scheduler}"
        if contents.unused:
            say(f"Not used: {len(contents.unused)} tensors that are of no part, such as {contents.unused[0]}.")
        text = manifest_text(file, wanted, made, parts)
        shutil.rmtree(root / wanted.name, ignore_errors=True)
        made.rename(root / wanted.name)
    path = root / f"{wanted.name}.toml"
    path.write_text(text, encoding="utf-8")
    manifest = Manifest.read(path)
    say(describe(lock(manifest, root), manifest, root))
    return path


def _check_wishes(wanted: Wanted, base: Manifest, root: Path) -> None:
    """Raise CheckpointError for a name that is not free, a base that extends another, or a wrong clip_skip."""
    if not BUNDLE_NAME.fullmatch(wanted.name):
        raise CheckpointError(f"The name must be lower case letters, digits, - and _, but it is {wanted.name!r}.")
    path = root / f"{wanted.name}.toml"
    if path.exists() and (Manifest.read(path).base is None or not wanted.replace):
        raise CheckpointError(f"There is a bundle named {wanted.name}: take another, or --replace your own.")
    if base.base:
        raise CheckpointError(f"{base.name} extends {base.base.name}: extend that one.")
    layers = _config(base, root, "text_encoder")["num_hidden_layers"]
    if wanted.clip_skip is not None and wanted.clip_skip not in range(1, layers + 1):
        raise CheckpointError(f"clip_skip must be 1 to {layers}, the text encoder's layers; it is {wanted.clip_skip}.")


def _folder(base: Manifest, root: Path, part: str) -> Path:
    return root / base.name / part


def _config(base: Manifest, root: Path, part: str) -> dict[str, Any]:
    path = _folder(base, root, part) / "config.json"
    if not path.exists():
        raise CheckpointError(f"The files of {base.name} are not there: script/download-weights {base.name}.")
    return json.loads(path.read_text(encoding="utf-8"))


def _write_models(
    file: Path, contents: Contents, base: Manifest, root: Path, made: Path, say: Callable[[str], None]
) -> dict[str, str]:
    """Write the models that the file has and the base has not. Returns the purpose of each, by part."""
    present = {}
    for part, component in COMPONENTS.items():
        config = _config(base, root, part)
        if not contents.begins(component.prefix):
            say(f"{part}: not in the file, so that of {base.name} is used.")
        elif config.get("_class_name", component.model_class.__name__) != component.model_class.__name__:
            say(f"{part}: left out, because {base.name} has another kind of it.")
        else:
            _check_size(file, contents, component, _folder(base, root, part))
            present[part] = component
    models = _open(file, present, base, root)
    purposes = {}
    for part, component in present.items():
        _save(models[part], file, made / part)
        shutil.copyfile(_folder(base, root, part) / "config.json", made / part / "config.json")
        load_pretrained(component.model_class, made / part, "cpu", None)  # strictly: all tensors are there, in shape
        if _equal(made / part, _folder(base, root, part)):
            say(f"{part}: the same as that of {base.name}, so it is shared.")
            shutil.rmtree(made / part)
        else:
            purposes[part] = f"{component.purpose} of {file.name}"
    if not purposes:
        raise CheckpointError(f"{file.name} has the very models of {base.name}: there is nothing to import.")
    return purposes


def _open(file: Path, components: dict[str, Component], base: Manifest, root: Path) -> dict[str, Any]:
    """The models of a checkpoint in half precision, read by diffusers with the base's configurations."""
    index: dict[str, Any] = {"_class_name": StableDiffusionPipeline.__name__}
    absent: dict[str, Any] = {"tokenizer": None, "scheduler": None, "safety_checker": None, "feature_extractor": None}
    absent |= {part: None for part in COMPONENTS if part not in components}
    with tempfile.TemporaryDirectory() as folder:
        for part, component in components.items():
            index[part] = [component.library, component.model_class.__name__]
            (Path(folder) / part).mkdir()
            shutil.copy(_folder(base, root, part) / "config.json", Path(folder) / part)
        (Path(folder) / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
        try:
            pipeline: Any = StableDiffusionPipeline.from_single_file(
                str(file), config=folder, local_files_only=True, torch_dtype=torch.float16, **absent
            )
        except (RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"{file.name} does not fit the networks of {base.name}: its tensors have other names or shapes."
            ) from error
    return {part: getattr(pipeline, part) for part in components}


def _check_size(file: Path, contents: Contents, component: Component, base: Path) -> None:
    """Raise CheckpointError unless a model has as many numbers as the base's. `base` is that one's folder.

    diffusers would leave out what it does not know, without a word.
    """
    tensors = open_file(weights_file(base)).items()
    expected = sum(tensor.numel() for name, tensor in tensors if not is_outdated(name))
    if (got := contents.numbers(component.prefix)) != expected:
        raise CheckpointError(
            f"{file.name} has {got} numbers in its {base.name}, expected {expected}: it is not whole, or of another"
            " architecture, such as a distilled one."
        )


def _save(model: Any, file: Path, folder: Path) -> None:
    """Write a model. Raises CheckpointError if half precision cannot hold it."""
    if wrong := [name for name, tensor in model.state_dict().items() if not tensor.isfinite().all()]:
        raise CheckpointError(
            f"{file.name} has numbers in its {folder.name} that are none or too large for half precision: {wrong[0]}."
        )
    model.save_pretrained(folder, variant="fp16", safe_serialization=True)


def _equal(folder: Path, other: Path) -> bool:
    """Whether two folders hold the same model, in the precision of the first."""
    mine, theirs = (open_file(weights_file(each)) for each in (folder, other))
    theirs = {name.removeprefix("text_model."): tensor for name, tensor in theirs.items()}
    return all(
        name.removeprefix("text_model.") in theirs
        and torch.equal(tensor, theirs[name.removeprefix("text_model.")].to(tensor.dtype))
        for name, tensor in mine.items()
    )


def _write_scheduler(prediction_type: str | None, base: Manifest, root: Path, made: Path) -> str | None:
    """Write the base's scheduler with another prediction type. Returns that, or None if the base's is the same."""
    config = json.loads((_folder(base, root, "scheduler") / SCHEDULER_CONFIG).read_text(encoding="utf-8"))
    if prediction_type in (None, config.get("prediction_type", "epsilon")):
        return None
    (made / "scheduler").mkdir()
    config |= {"prediction_type": prediction_type}
    (made / "scheduler" / SCHEDULER_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return prediction_type


def manifest_text(file: Path, wanted: Wanted, made: Path, parts: dict[str, str]) -> str:
    """The manifest of a bundle whose files are in `made`. `parts` has the purpose of each part."""
    quoted = json.dumps  # JSON strings are also valid TOML
    lines = [
        f"# Written by script/import-checkpoint. What is not here is as in {wanted.base}.toml.",
        f"name = {quoted(wanted.name)}",
        f"extends = {quoted(wanted.base)}",
        f"title = {quoted(f'{wanted.name}, a checkpoint for {wanted.base}')}",
        f"summary = {quoted(f'Made of {file.name}.')}",
    ]
    if wanted.clip_skip is not None:
        lines += ["", "[defaults]", f"clip_skip = {wanted.clip_skip}"]
    lines += ["", "[made]", f"file = {quoted(file.name)}", f"sha256 = {quoted(sha256(file))}"]
    for part, purpose in parts.items():
        files = sorted(path.name for path in (made / part).iterdir())
        lines += ["", "[[parts]]", f"name = {quoted(part)}", f"files = {quoted(files)}"]
        lines += [f"licence = {quoted(wanted.licence)}", f"purpose = {quoted(purpose)}"]
    return "\n".join([*lines, ""])


def main(arguments: list[str] | None = None, root: Path = WEIGHTS) -> int:
    """The command line. Returns the exit status; an error is one message on stderr."""
    parser = argparse.ArgumentParser(prog="script/import-checkpoint", description=__doc__)
    parser.add_argument("file", metavar="FILE.safetensors", type=Path)
    parser.add_argument("--name", required=True, help="of the new bundle, for CONTROLNET_BUNDLE")
    known = ", ".join(bundle_names(root))
    parser.add_argument("--base", default="sd15", help=f"the bundle to extend, of {known} (default: %(default)s)")
    said = "what the UNet predicts; left out, what the file says, or else the base's"
    parser.add_argument("--prediction-type", choices=PREDICTION_TYPES, help=said)
    parser.add_argument("--clip-skip", type=int, metavar="N", help="default of the input clip_skip, often 2 for anime")
    parser.add_argument("--licence", default=Wanted.licence, help="of the file, for the manifest")
    parser.add_argument("--replace", action="store_true", help="replace the bundle of that name")
    parser.add_argument("--called-from", type=Path, default=Path(), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    values = {name: value for name, value in vars(options).items() if name not in ("file", "called_from")}
    disable_progress_bar()
    diffusers_log.disable_progress_bar()
    diffusers_log.set_verbosity_error()  # it warns that there is no safety checker: the bundle has the base's
    try:
        path = import_checkpoint(options.called_from / options.file, Wanted(**values), root, print)
    except (CheckpointError, WeightsError, WeightsMismatch, ManifestError, OSError) as error:  # OSError: full disk
        print(error, file=sys.stderr)
        return 1
    print(f"{path.parent.name}/{path.name} is written. Use it: CONTROLNET_BUNDLE={options.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
