"""What the form asks, made from the server's /openapi.json: fields, their groups, and the inputs of a request."""

import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

Json = dict[str, Any]
Kind = Literal["text", "integer", "number", "boolean", "choice", "picture", "json"]

FIRST = "Request"
MORE = "More"
OF_A_CONTROL = ("conditioner", "image", "preprocess", "conditioning_scale", "control_*")
"""Inputs that a further control has too, with its number behind the name."""


@dataclass(frozen=True)
class Group:
    """Inputs that stand together. An input belongs to the first group that has a pattern for it."""

    title: str
    patterns: tuple[str, ...]
    shapes_map: bool = False
    """Whether a control map may become another one if an input of this group changes (but for NOT_IN_MAPS)."""


GROUPS = (
    Group(FIRST, ("prompt", "image", "input_image", "conditioner", "structure"), shapes_map=True),
    Group("Map", ("preprocess", "detect_resolution", "pose_parts", "pose_json"), shapes_map=True),
    Group(
        "How strongly",
        ("conditioning_scale", "condition_scale", "control_start", "control_end", "control_mode", "control_mask"),
    ),
    Group(
        "Painting",
        ("negative_prompt", "n_prompt", "a_prompt", "seed", "num_outputs", "num_samples", "go_fast", "guidance_scale")
        + ("num_inference_steps", "steps", "ddim_steps", "scale", "scheduler", "eta", "clip_skip"),
    ),
    Group(
        "Size", ("resolution", "image_resolution", "width", "height", "resize_mode", "sizing_strategy"), shapes_map=True
    ),
    Group("Part of a picture", ("init_image", "prompt_strength", "mask", "mask_*", "outpaint_*"), shapes_map=True),
    Group("First control", ("controlnet_1*",), shapes_map=True),
    Group("Second control", (*(f"{name}_2" for name in OF_A_CONTROL), "controlnet_2*"), shapes_map=True),
    Group("Third control", (*(f"{name}_3" for name in OF_A_CONTROL), "controlnet_3*"), shapes_map=True),
    Group("LoRA", ("lora_*",)),
    Group("Reference", ("reference_*",)),
    Group("Larger", ("upscale*",)),
    Group("Files", ("output_*", "return_*", "disable_safety_checker")),
)
"""The one table of groups, in the order of the form. A knob of an annotator stands in "Map", whatever its name."""
NOT_IN_MAPS = ("prompt", "prompt_strength", "mask_feather", "conditioning_scale*", "control_*")
"""Inputs of groups that shape the map, which do not shape it themselves."""
MAP = "Map"
CONDITIONERS = ("conditioner", "structure")
"""How interfaces call the input that chooses the conditioner."""
OF_THE_PAGE = "map_only"
"""The input that the page sets by itself."""
MASK_OF = {"mask": ("init_image", "image"), "control_mask": ("image",)} | {
    f"control_mask_{number}": (f"image_{number}", "image") for number in (2, 3)
}
"""The pictures over which a mask is painted: the first of them that is there."""


@dataclass(frozen=True)
class Field:
    """One input, as its schema describes it."""

    name: str
    kind: Kind
    title: str
    description: str = ""
    default: Any = None
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[Any, ...] = ()
    required: bool = False
    group: Group = Group(MORE, ())
    conditioners: frozenset[str] = frozenset()
    """The conditioners whose knob it is. Empty for other inputs."""

    @property
    def is_mask(self) -> bool:
        """Whether it is a picture that is painted over another one."""
        return self.kind == "picture" and (self.name == "mask" or "_mask" in self.name)

    @property
    def bounds(self) -> str:
        """Its range in words, or "" without one."""
        low, high = (None if bound is None else f"{bound:g}" for bound in (self.minimum, self.maximum))
        return f"{low} to {high}" if low and high else f"at least {low}" if low else f"at most {high}" if high else ""

    def usual(self, bundle: str = "") -> float | None:
        """A number's default. If it is left to the server, what the description names, for `bundle` or for all.

        None if it names none, or only those of other bundles.
        """
        if isinstance(self.default, (int, float)):
            return self.default
        number, said = r"(-?\d++(?:\.\d++)?+)", self.description.partition("Left out: ")[2]
        theirs = re.search(rf"{number} with {re.escape(bundle)}\b|\bwith {re.escape(bundle)} {number}", said)
        found = (theirs if bundle else None) or re.match(rf"{number}(?! with )", said)
        return float(next(filter(None, found.groups()))) if found else None


@dataclass(frozen=True)
class Form:
    """All inputs of a server, by name and in the order of its signature."""

    fields: Mapping[str, Field]

    @classmethod
    def read(cls, document: Json) -> "Form":
        """Read an OpenAPI document as `cog build` writes it. Raises ValueError if it is not one."""
        try:
            schemas = document["components"]["schemas"]
            inputs = schemas["Input"]
            named = sorted(inputs["properties"].items(), key=lambda item: item[1].get("x-order", 0))
            fields = [_field(name, schema, schemas, inputs.get("required", [])) for name, schema in named]
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError("The server's /openapi.json does not describe inputs as Cog does.") from error
        chooses = next((field for field in fields if field.name in CONDITIONERS), None)
        known = frozenset(map(str, chooses.choices)) if chooses else frozenset()
        return cls({field.name: _in_its_group(field, known) for field in fields})

    @property
    def conditioner(self) -> Field | None:
        """The input that chooses the conditioner. None if the server has but one."""
        return next((self.fields[name] for name in CONDITIONERS if name in self.fields), None)

    @property
    def picture(self) -> str | None:
        """The picture that every request has, or else the first one."""
        pictures = [field for field in self.fields.values() if field.kind == "picture"]
        return next((field.name for field in sorted(pictures, key=lambda field: not field.required)), None)

    @property
    def draws_maps(self) -> bool:
        """Whether the server can return a control map alone."""
        return OF_THE_PAGE in self.fields

    def groups(self) -> dict[Group, list[Field]]:
        """The groups that have fields, in the order of the table, "More" last. Without what the page sets itself."""
        found: dict[Group, list[Field]] = {}
        for group in (*GROUPS, Group(MORE, ())):
            if members := [field for field in self.fields.values() if field.group == group]:
                found[group] = [field for field in members if field.name != OF_THE_PAGE]
        return {group: members for group, members in found.items() if members}

    def shown(self, field: Field, values: Mapping[str, Any]) -> bool:
        """Whether a field is of use with the conditioners that `values` choose."""
        if field.group.title.endswith("control") and (chooser := _chooser(field.name)):
            return values.get(chooser) not in (None, "none")
        return not field.conditioners or bool(field.conditioners & self.chosen(values))

    def chosen(self, values: Mapping[str, Any]) -> set[str]:
        """The conditioners that `values` choose, first and further ones."""
        names = [name for name in self.fields if re.fullmatch(rf"({'|'.join(CONDITIONERS)})(_\d)?", name)]
        return {str(values.get(name, self.fields[name].default)) for name in names}

    def inputs(self, values: Mapping[str, Any]) -> Json:
        """The input of a request: what differs from its default, and what is required.

        A picture is a data URL. What is empty is left out, as are knobs of other conditioners.
        """
        sent = {}
        for name, field in self.fields.items():
            value = values.get(name, field.default)
            if field.required and field.kind == "text" and value is None:
                value = ""
            if value is None or (value == "" and not field.required):
                continue
            if (value != field.default or field.required) and self.shown(field, values):
                sent[name] = value
        return sent

    def map_inputs(self, inputs: Json) -> Json:
        """The part of a request's input that its control map depends on, and what is required; asks for it alone."""
        kept = {name: value for name, value in inputs.items() if self.fields[name].required or self.shapes_map(name)}
        return kept | {OF_THE_PAGE: True}

    def shapes_map(self, name: str) -> bool:
        """Whether a control map may become another one if this input changes."""
        return self.fields[name].group.shapes_map and not any(fnmatchcase(name, each) for each in NOT_IN_MAPS)

    def named_in(self, sentence: str) -> str | None:
        """The input that a sentence of the server is about: the one that it names first."""
        names = sorted(self.fields, key=len, reverse=True)
        found = re.search(rf"(?<![\w-])({'|'.join(map(re.escape, names))})(?![\w-])", sentence)
        return found[1] if found else None

    def over(self, mask: str, pictures: Collection[str]) -> str | None:
        """The name of the picture over which `mask` is painted. None if none of them is there."""
        candidates = MASK_OF.get(mask, ("init_image", "image"))
        return next((name for name in candidates if name in pictures), None)


def _chooser(name: str) -> str | None:
    """The input that chooses what the control of the input `name` takes. None if it is the one itself."""
    if theirs := re.match(r"(controlnet_\d)_", name):
        return theirs[1]
    further = re.search(r"_\d$", name)
    return f"conditioner{further[0]}" if further and not name.startswith((*CONDITIONERS, "controlnet")) else None


def _field(name: str, schema: Json, schemas: Json, required: Iterable[str]) -> Field:
    resolved = schemas[schema["allOf"][0]["$ref"].rsplit("/", 1)[1]] if "allOf" in schema else schema
    return Field(
        name=name,
        kind=_kind(resolved),
        title=schema.get("title") or name.replace("_", " ").title(),
        description=schema.get("description", ""),
        default=schema.get("default"),
        minimum=resolved.get("minimum"),
        maximum=resolved.get("maximum"),
        choices=tuple(resolved.get("enum", ())),
        required=name in required,
    )


def _kind(schema: Json) -> Kind:
    if "enum" in schema:
        return "choice"
    if schema.get("format") == "uri":
        return "picture"
    kinds: dict[str | None, Kind] = {"integer": "integer", "number": "number", "boolean": "boolean", "string": "text"}
    # A union, list or dictionary, and what a later Cog may bring.
    return kinds.get(schema.get("type"), "json")


def _in_its_group(field: Field, known: frozenset[str]) -> Field:
    words = field.description.partition(":")[0].lower().split(", ")
    knob = frozenset(words) if known.issuperset(words) and field.name != OF_THE_PAGE else frozenset()
    group = next((group for group in GROUPS if any(fnmatchcase(field.name, each) for each in group.patterns)), None)
    if group is None:
        group = next(group for group in GROUPS if group.title == MAP) if knob else Group(MORE, ())
    return Field(**{**field.__dict__, "group": group, "conditioners": knob})


def typed(field: Field, text: Any) -> Any:
    """What a person entered, as the JSON value of an input. What does not fit its type is sent as text.

    The server then says what is wrong with it.
    """
    if text is None or text == "":
        return None
    if field.kind in ("integer", "number"):
        if not isinstance(text, (int, float)):
            try:
                text = float(text)
            except ValueError:
                return text
        return int(text) if text == int(text) and field.kind == "integer" else text
    if field.kind == "json":
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text
