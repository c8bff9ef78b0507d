"""Reading a request from the arguments of predict(): checked, with every default filled in."""

import secrets
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from functools import partial
from typing import Any

from controlnet.request.bundle_facts import BundleFacts
from controlnet.request.combinations import check_combinations
from controlnet.request.ignored import USUAL_ETA, find_ignored
from controlnet.request.inputs import check_inputs, declared_defaults
from controlnet.request.knobs import KNOBS, Knobs
from controlnet.request.loras import LORA_INPUTS, NOWHERE, read_loras
from controlnet.request.pose import SentPoses, read_poses
from controlnet.request.request import (
    CONTROL_INPUTS,
    INITIAL_STRENGTH,
    SEEDS,
    SUFFIXES,
    Request,
    RequestedControl,
)
from controlnet.weights.lora_sources import LoraSource, read_source

NO_CONDITIONER = "none"
"""The choice of conditioner_2 and conditioner_3 that means the same as leaving them out; a form can send it."""
NOBODY = SentPoses((), None)


def read_request(predict: Callable[..., Any], values: Mapping[str, Any], bundle: BundleFacts) -> Request:
    """Read a request from `values`, the locals() of `predict`. Checks it against signature, rules and bundle.

    Inputs that have no effect are left out: the result is that of a request without them, apart from `ignored`.
    Raises InputError for values that the signature does not allow, PoseError for a pose_json that cannot be read,
    LoraError for a LoRA named in a form or on a host that is not allowed, and RequestError for inputs that do not
    go together or that the bundle cannot serve. InputError and RequestError name all faults at once. What depends
    on pixels is refused later, when the pictures are opened.
    """
    inputs, declared = check_inputs(predict, values), declared_defaults(predict)
    inputs |= {name: None for suffix in SUFFIXES if inputs[name := f"conditioner{suffix}"] == NO_CONDITIONER}
    inputs |= {name: None for name, _ in LORA_INPUTS if inputs[name] is not None and not inputs[name].strip()}
    # First without reading a pose_json and LoRAs, which may be among the ignored inputs.
    ignored = find_ignored(_fill(inputs, declared, bundle, lambda text: NOBODY, lambda text: NOWHERE), bundle)
    inputs |= {name: declared[name] for each in ignored for name in each.names}
    read_lora = partial(read_source, hosts=bundle.lora_hosts)
    request = replace(_fill(inputs, declared, bundle, read_poses, read_lora), ignored=ignored)
    check_combinations(request, bundle)
    return request


def _fill(
    inputs: Mapping[str, Any],
    declared: Mapping[str, Any],
    bundle: BundleFacts,
    read: Callable[[str], SentPoses],
    locate: Callable[[str], LoraSource],
) -> Request:
    """The request with all defaults. `inputs` already has those that predict() declares; the bundle has the others.

    `read` reads a pose_json, `locate` the text that says where a LoRA is.
    """
    of_bundle = asdict(bundle.defaults)
    of_bundle["reference_scale"] = bundle.reference.scale if bundle.reference else 1.0  # without one it is refused
    if inputs["go_fast"] and bundle.fast:
        of_bundle |= {name: value for name, value in asdict(bundle.fast).items() if name in of_bundle}
    values: dict[str, Any] = {name: of_bundle.get(name) if v is None else v for name, v in inputs.items()}
    values |= {
        "controls": _controls(inputs, declared),
        "knobs": Knobs(**{name: inputs[name] for name in KNOBS}),
        "pose_json": None if inputs["pose_json"] is None else read(inputs["pose_json"]),
        "prompt_strength": 1.0,
        "loras": read_loras(inputs, locate),
        "seed": secrets.randbelow(SEEDS) if inputs["seed"] is None else inputs["seed"],
        "sent": tuple(name for name, value in inputs.items() if value != declared[name]),
        "orphans": _orphans(inputs),
    }
    if values["eta"] is None:
        values["eta"] = USUAL_ETA.get(values["scheduler"], 0.0)
    request = Request(**{field.name: values[field.name] for field in fields(Request) if field.name in values})
    if request.init_image is None and not request.repaints:
        return request
    usual = 1.0 if request.repaints else INITIAL_STRENGTH
    return replace(request, prompt_strength=usual if inputs["prompt_strength"] is None else inputs["prompt_strength"])


def _controls(inputs: Mapping[str, Any], declared: Mapping[str, Any]) -> tuple[RequestedControl, ...]:
    """The controls that have a conditioner. The second and third have the defaults that the first one declares."""
    controls: list[RequestedControl] = []
    for suffix in SUFFIXES:
        sent = {field: inputs[name + suffix] for field, name in CONTROL_INPUTS.items()}
        if sent["conditioner"] is None:
            continue
        usual = {field: declared[name] for field, name in CONTROL_INPUTS.items()} | {"image": inputs["image"]}
        values: dict[str, Any] = usual | {field: value for field, value in sent.items() if value is not None}
        has_own_image = suffix != "" and sent["image"] is not None
        controls.append(RequestedControl(**values, suffix=suffix, has_own_image=has_own_image))
    return tuple(controls)


def _orphans(inputs: Mapping[str, Any]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Inputs of controls that are not there, because their conditioner is not sent."""
    absent = [suffix for suffix in SUFFIXES if inputs[f"conditioner{suffix}"] is None]
    names = [(f"conditioner{suffix}", [name + suffix for name in CONTROL_INPUTS.values()]) for suffix in absent]
    names += [(file, [scale]) for file, scale in LORA_INPUTS if inputs[file] is None]
    found = [(missing, tuple(name for name in own if inputs[name] is not None)) for missing, own in names]
    return tuple((missing, sent) for missing, sent in found if sent)
