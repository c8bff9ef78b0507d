"""script/import-checkpoint: make a bundle of a checkpoint, a ControlNet or a VAE in one file, as CivitAI has them.

The bundle extends another (sd15 or sdxl) and has only what differs, in half precision: of a checkpoint UNet, text
encoders and VAE. All other parts are shared with that one. A ControlNet takes the place of the one that --conditioner
names.
"""

import argparse
import json
import os
import shutil
import sys
from argparse import BooleanOptionalAction
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoint_kinds import NAMED, WIDTHS, CheckpointError, Contents, check_family, kind_of, read_contents
from checkpoint_models import MODELS, kind_of_part, read_model, same_model, write_model
from checkpoint_noise import PREDICTION_TYPES, noise_of
from safetensors import SafetensorError
from staging import staging

from controlnet.weights.download import describe, lock
from controlnet.weights.files import check, sha256
from controlnet.weights.lockfile import Lock, WeightsError
from controlnet.weights.manifest import WEIGHTS, Manifest, ManifestError, bundle_names
from controlnet.weights.parts import BUNDLE_NAME

VAES = ("own", "float16")
"""What --vae may say of the file's VAE, if the base's is another one because that one overflows in half precision."""
SCHEDULER_CONFIG = "scheduler/scheduler_config.json"
PREFIX = ".import-"
"""How the name of the folder begins in which a bundle is written."""


@dataclass(frozen=True)
class Wanted:
    """What the command line says about the new bundle."""

    name: str
    base: str | None = None
    """The bundle to extend. None: the one of the file's family, which for a VAE alone is taken to be sd15's."""
    conditioner: str | None = None
    """Whose ControlNet the file is."""
    prediction_type: str | None = None
    """One of PREDICTION_TYPES. None: what the file says, or else the base's."""
    zero_snr: bool | None = None
    """Whether it was trained to zero SNR. None: as prediction_type."""
    vae: str | None = None
    """One of VAES. None: a checkpoint's is used unless the base's is one that was made for half precision."""
    clip_skip: int | None = None
    """None: the base's."""
    licence: str = "as the page says that the file is from"
    replace: bool = False
    """Whether a bundle of that name that was imported before is replaced."""


def import_checkpoint(
    file: Path, wanted: Wanted, root: Path = WEIGHTS, say: Callable[[str], None] = lambda line: None
) -> Path:
    """Write the bundle's files, manifest and lock to `root`. Returns the manifest's path. `say` gets lines to print.

    Nothing is fetched. All is put in place at the end, and nothing is left behind if it fails or is interrupted. Raises
    CheckpointError if the file or a wish cannot be used or the bundle cannot be written, and WeightsError or
    ManifestError if the base cannot be used.
    """
    _check_free(wanted, root)
    if not wanted.licence.strip():
        raise CheckpointError("The licence is empty: leave --licence out if you do not know it.")
    if os.fsencode(wanted.licence) != wanted.licence.encode(errors="replace"):
        raise CheckpointError("The licence is not text in UTF-8.")
    contents = read_contents(file)
    kind = kind_of(file, contents)
    base = Manifest.read(root / f"{wanted.base or ('sd15' if kind == 'vae' else contents.family)}.toml")
    if kind == "vae" and not wanted.base:
        say(f"vae: taken as one for {base.name}, which no tensor shows. For Stable Diffusion XL: --base sdxl.")
    if base.base:
        raise CheckpointError(f"{base.name} extends {base.base.name}: extend that one.")
    published = {"in_channels": 4, "cross_attention_dim": WIDTHS[base.family]}
    unet = published if _absent(base, root) else _config(base, root, "unet")
    check_family(file, kind, contents, base.name, base.family, unet)
    _check_wishes(file, kind, wanted, base)
    if _absent(base, root):
        raise CheckpointError(f"The files of {base.name} are not there: script/download-weights {base.name}.")
    check(base, root)
    _check_clip_skip(wanted, base, root)
    own = {part.name for part in base.parts}
    parts = {"checkpoint": [part for part in MODELS if part in own], "vae": ["vae"]}
    noise = {}
    if kind == "checkpoint":
        schedule = _read_json(root / base.name / SCHEDULER_CONFIG)
        noise = noise_of(contents, schedule, wanted.prediction_type, wanted.zero_snr, say)
        if base.fast and "prediction_type" in noise:
            say(f"go_fast: left out, because the LoRA of {base.name} is for a UNet that does not predict the same.")
    models = _new_models(file, parts.get(kind, [f"controlnet/{wanted.conditioner}"]), contents, wanted, base, root, say)
    try:
        with staging(root, PREFIX) as made:
            locked = _write(file, wanted, models, noise, base, root, made.folder)
            made.put_in_place([wanted.name, f"{wanted.name}.lock", f"{wanted.name}.toml"])
    except (OSError, SafetensorError) as error:  # the latter if a disk is full
        raise CheckpointError(f"The bundle could not be written to {root}: {error}.") from error
    path = root / f"{wanted.name}.toml"
    say(describe(locked, Manifest.read(path), root))
    return path


def _check_free(wanted: Wanted, root: Path) -> None:
    """Raise CheckpointError unless the name is free, or taken by an imported bundle that may be replaced."""
    if not BUNDLE_NAME.fullmatch(wanted.name):
        raise CheckpointError(f"The name must be lower case letters, digits, - and _, but it is {wanted.name!r}.")
    folder, path = root / wanted.name, root / f"{wanted.name}.toml"
    if path.exists():
        manifest = Manifest.read(path)
        if "sha256" not in manifest.made or not wanted.replace:
            raise CheckpointError(f"There is a bundle named {wanted.name}: take another, or --replace one of your own.")
        imported = manifest.made.get("parts", [*MODELS, "scheduler"])
        files = {file for part in manifest.manifests[-1].parts if part.name in imported for file in part.paths}
        if added := sorted(_files(folder) - files):
            raise CheckpointError(
                f"{root.name}/{wanted.name}/{added[0]} was not imported and would be lost: move it elsewhere, or take "
                "another name."
            )
    elif taken := [each for each in (folder, root / f"{wanted.name}.lock") if each.exists() or each.is_symlink()]:
        raise CheckpointError(
            f"There is {root.name}/{taken[0].name}, of no bundle: move it elsewhere, or take another name."
        )


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


def _check_wishes(file: Path, kind: str, wanted: Wanted, base: Manifest) -> None:
    """Raise CheckpointError for options that do not go with what the file is."""
    if kind == "controlnet" and wanted.conditioner not in base.conditioners:
        raise CheckpointError(
            f"{file.name} is a ControlNet: name the conditioner whose place it takes, with --conditioner and one of "
            f"{', '.join(base.conditioners)}."
        )
    if kind != "controlnet" and wanted.conditioner:
        raise CheckpointError(f"--conditioner is for a ControlNet, and {file.name} is {NAMED[kind]}.")
    if kind != "checkpoint" and (wanted.prediction_type or wanted.zero_snr is not None):
        option = "--prediction-type" if wanted.prediction_type else "--zero-snr"
        raise CheckpointError(f"{option} is for a checkpoint, and {file.name} has no UNet.")
    if wanted.vae and (kind == "controlnet" or not _keeps_vae(base)):
        raise CheckpointError(
            "--vae is for files of Stable Diffusion XL, whose own VAE overflows in half precision: leave it out, "
            f"because {file.name} is {NAMED[kind]} for {base.name}."
        )


def _check_clip_skip(wanted: Wanted, base: Manifest, root: Path) -> None:
    encoders = [part.name for part in base.parts if part.name.startswith("text_encoder")]
    layers = min(_config(base, root, name)["num_hidden_layers"] for name in encoders)
    if wanted.clip_skip is not None and wanted.clip_skip not in range(1, layers + 1):
        raise CheckpointError(f"clip_skip must be 1 to {layers}, the text encoder's layers; it is {wanted.clip_skip}.")


def _absent(base: Manifest, root: Path) -> bool:
    return not (root / base.name / "unet/config.json").exists()


def _config(base: Manifest, root: Path, part: str) -> dict[str, Any]:
    return _read_json(root / base.name / part / "config.json")


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _keeps_vae(base: Manifest) -> bool:
    """Whether the base's VAE was made for half precision, in which its family's own overflows."""
    return base.family != "sd15"


def _new_models(
    file: Path,
    parts: Sequence[str],
    contents: Contents,
    wanted: Wanted,
    base: Manifest,
    root: Path,
    say: Callable[[str], None],
) -> dict[str, dict[str, Any]]:
    """By part, the tensors of each model that the file has and the base has not, in half precision."""
    new: dict[str, dict[str, Any]] = {}
    used: set[str] = set()
    for part in parts:
        kind, config = kind_of_part(part), _config(base, root, part)
        own = [name for name in contents.begins(*kind.prefixes) if not contents.needless(name)]
        if len(parts) > 1 and not own:
            say(f"{part}: not in the file, so that of {base.name} is used.")
        elif config.get("_class_name", kind.model_class.__name__) != kind.model_class.__name__:
            say(f"{part}: left out, because {base.name} has another kind of it.")
            used.update(own)
        elif part == "vae" and len(parts) > 1 and _keeps_vae(base) and not wanted.vae:
            say(f"vae: that of {base.name} is kept, because the file's may overflow in half precision (--vae).")
            used.update(own)
        else:
            model = read_model(file, contents, part, config, base.name)
            used |= model.taken
            if same_model(model.tensors, root / base.name / part):
                say(f"{part}: the same as that of {base.name}, so it is shared.")
            else:
                new[part] = model.tensors
                if part == "vae" and _keeps_vae(base) and wanted.vae != "float16":
                    say("vae: taken, but refused in float16: CONTROLNET_DTYPE=bf16, or --vae float16 if made for it.")
    unused = [name for name in contents.tensors if name not in used and not contents.needless(name)]
    if unused:
        say(f"Not used: {len(unused)} tensors, such as {unused[0]}.")
    if not new:
        raise CheckpointError(f"{file.name} has nothing that {base.name} has not: there is nothing to import.")
    return new


def _write(
    file: Path,
    wanted: Wanted,
    models: dict[str, dict[str, Any]],
    noise: dict[str, Any],
    base: Manifest,
    root: Path,
    made: Path,
) -> Lock:
    """Write the bundle's folder, manifest and lock into the folder `made`. Returns the lock."""
    folder, purposes = made / wanted.name, {}
    for part, tensors in models.items():
        # Without a word about it, the VAE is one that overflows, and is refused in half precision.
        changes = {"force_upcast": wanted.vae != "float16"} if part == "vae" and _keeps_vae(base) else {}
        write_model(part, tensors, root / base.name / part / "config.json", folder / part, changes)
        purposes[part] = f"{kind_of_part(part).purpose} of {file.name}"
    if noise:
        text = json.dumps(_read_json(root / base.name / SCHEDULER_CONFIG) | noise, indent=2)
        (folder / "scheduler").mkdir()
        (folder / SCHEDULER_CONFIG).write_text(f"{text}\n", encoding="utf-8")
        purposes["scheduler"] = f"The noise schedule, with another {' and '.join(noise)}"
    left_out = ["fast"] if base.fast and "prediction_type" in noise else []
    text = manifest_text(file, wanted, base, folder, purposes, left_out)
    (made / f"{wanted.name}.toml").write_text(text, encoding="utf-8")
    shutil.copyfile(root / f"{base.name}.toml", made / f"{base.name}.toml")  # for Manifest.read
    return lock(Manifest.read(made / f"{wanted.name}.toml"), made)


def quoted(value: str | list[str]) -> str:
    """A text or a list of texts in TOML: as JSON, but without its pairs of surrogates, and with DEL escaped."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def manifest_text(
    file: Path, wanted: Wanted, base: Manifest, folder: Path, purposes: dict[str, str], left_out: Sequence[str]
) -> str:
    """The manifest of a bundle whose files are in `folder`. `purposes` has the purpose of each part, and `left_out`
    names the base's tables that the bundle has not."""
    what = "a checkpoint" if "unet" in purposes else f"parts of {file.name}"
    lines = [
        f"# Written by script/import-checkpoint. What is not here is as in {base.name}.toml.",
        f"name = {quoted(wanted.name)}",
        f"extends = {quoted(base.name)}",
        f"title = {quoted(f'{wanted.name}, {what} for {base.name}')}",
        f"summary = {quoted(f'Made of {file.name}.')}",
        *(f"{table} = false" for table in left_out),
    ]
    if wanted.clip_skip is not None:
        lines += ["", "[defaults]", f"clip_skip = {wanted.clip_skip}"]
    lines += ["", "[made]", f"file = {quoted(file.name)}", f"sha256 = {quoted(sha256(file))}"]
    lines += [f"parts = {quoted(list(purposes))}"]
    for part, purpose in purposes.items():
        files = sorted(path.name for path in (folder / part).iterdir())
        lines += ["", "[[parts]]", f"name = {quoted(part)}", f"files = {quoted(files)}"]
        lines += [f"licence = {quoted(wanted.licence)}", f"purpose = {quoted(purpose)}"]
    return "\n".join([*lines, ""])


def main(arguments: list[str] | None = None, root: Path = WEIGHTS) -> int:
    """The command line. Returns the exit status; an error is one message on stderr."""
    parser = argparse.ArgumentParser(prog="script/import-checkpoint", description=__doc__)
    parser.add_argument(
        "file", metavar="FILE", type=Path, help="a .safetensors file, or a pickled one of tensors alone"
    )
    parser.add_argument("--name", required=True, help="of the new bundle, for CONTROLNET_BUNDLE")
    known = ", ".join(bundle_names(root))
    parser.add_argument("--base", help=f"the bundle to extend, of {known} (default: sd15 or sdxl, as the file is)")
    parser.add_argument("--conditioner", help="of a ControlNet: the conditioner whose net it replaces, such as canny")
    said = "what the UNet predicts; left out, what the file says, or else the base's"
    parser.add_argument("--prediction-type", choices=PREDICTION_TYPES, help=said)
    parser.add_argument(
        "--zero-snr",
        action=BooleanOptionalAction,
        help="whether it was trained to zero SNR; left out, what the file says",
    )
    parser.add_argument("--vae", choices=VAES, help="take an SDXL file's VAE, or say that it was made for float16")
    parser.add_argument("--clip-skip", type=int, metavar="N", help="default of the input clip_skip, often 2 for anime")
    parser.add_argument("--licence", default=Wanted.licence, help="of the file, for the manifest")
    parser.add_argument("--replace", action="store_true", help="replace the imported bundle of that name")
    parser.add_argument("--called-from", type=Path, default=Path(), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    values = {name: value for name, value in vars(options).items() if name not in ("file", "called_from")}
    try:
        path = import_checkpoint(options.called_from / options.file, Wanted(**values), root, print)
    except (CheckpointError, WeightsError, ManifestError, OSError) as error:  # OSError: files that cannot be read
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    print(f"{path.parent.name}/{path.name} is written. Use it: CONTROLNET_BUNDLE={options.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
