"""script/write-tables: the tables in docs/ and the README, made from predict.py, controlnet/ and weights/*.toml."""

import ast
import inspect
import itertools
import sys
from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from strip import STRIPS, UNCONVINCING

from controlnet.conditioners import CONDITIONERS
from controlnet.maps.annotators import ANNOTATORS
from controlnet.serving.schema import openapi_schema
from controlnet.settings import Settings, variable_of
from controlnet.weights.manifest import WEIGHTS, Manifest, bundle_names

BUNDLES = [name for name in bundle_names() if Manifest.read(WEIGHTS / f"{name}.toml").base is None]
"""Those that extend another are left out: they are somebody's own."""
ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """A Markdown table."""
    lines = [list(head), *[[str(cell) for cell in row] for row in rows]]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def inputs() -> str:
    """All inputs of predict(), from the schema that the server uses. Those of a third control join the second's."""
    schemas = openapi_schema((ROOT / "predict.py").read_text(encoding="utf-8"))["components"]["schemas"]
    properties = schemas["Input"]["properties"]
    rows = []
    for name in sorted(properties, key=lambda name: properties[name]["x-order"]):
        if name.endswith("_3"):
            continue
        field, names = properties[name], f"`{name}`"
        enum = schemas[name]["enum"] if "allOf" in field else None
        bounds = f"{field['minimum']} to {field['maximum']}" if "minimum" in field else ""
        json_type = "file" if field.get("format") == "uri" else field.get("type", "")
        values = ", ".join(enum) if enum else f"{json_type} {bounds}".strip()
        required = name in schemas["Input"]["required"]
        description, _, left_out = field["description"].partition(" Left out: ")
        default = "required" if required else _default(name, field.get("default")) or left_out.rstrip(".")
        if name.endswith("_2") and (third := f"{name.removesuffix('_2')}_3") in properties:
            names, description = f"{names}, `{third}`", description.replace("second", "second or third")
        rows.append((names, values, default, description))
    return table(("input", "values", "default", "what it does"), rows)


def _default(name: str, declared: Any) -> str:
    """The declared default; if there is none, that of each bundle."""
    if declared not in (None, ""):
        return f"`{_json(declared)}`"
    of_bundles = {bundle: getattr(Manifest.read(WEIGHTS / f"{bundle}.toml").defaults, name, None) for bundle in BUNDLES}
    if len({*of_bundles.values()}) == 1:
        return "" if (value := of_bundles[BUNDLES[0]]) is None else f"`{value}`"
    with_value = {value: [name for name in BUNDLES if of_bundles[name] == value] for value in of_bundles.values()}
    return ", ".join(f"`{value}` with {' and '.join(names)}" for value, names in with_value.items())


def _json(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def conditioners() -> str:
    """All conditioners, and the annotator that draws the map in each bundle."""
    drawn = {name: _annotators(Manifest.read(WEIGHTS / f"{name}.toml")) for name in BUNDLES}
    # A bundle that draws as another one does, and perhaps less, is in the same column.
    columns = [name for name in BUNDLES if not any(drawn[name].items() < each.items() for each in drawn.values())]
    rows = []
    for conditioner in CONDITIONERS:
        cells = [drawn[name].get(conditioner.name, "not in this bundle") for name in columns]
        lacking = [name for name in BUNDLES if name not in columns and conditioner.name not in drawn[name]]
        without = f" (not in {' and '.join(lacking)})" if lacking else ""
        rows.append((f"`{conditioner.name}`{without}", conditioner.help, conditioner.good_for, *cells))
    heads = [
        " and ".join([name, *(other for other in BUNDLES if drawn[other].items() < drawn[name].items())])
        for name in columns
    ]
    return table(("conditioner", "keeps", "good for", *(f"annotator in {head}" for head in heads)), rows)


def _annotators(bundle: Manifest) -> dict[str, str]:
    return {name: _annotator(bundle, name) for name in bundle.conditioners}


def _annotator(bundle: Manifest, conditioner: str) -> str:
    entry = bundle.conditioners[conditioner]
    drawn = _description(bundle, entry.annotator)
    others = entry.others.items()
    variable = variable_of(conditioner)
    return "; ".join([drawn, *(f"with `{variable}={word}`: {_description(bundle, kind)}" for word, kind in others)])


def _description(bundle: Manifest, name: str) -> str:
    kind = ANNOTATORS[name]
    licences = {part.licence for part in bundle.parts if part.name in kind.parts}
    return f"{kind.help.rstrip('.')} ({', '.join(sorted(licences)) or 'no weights'})"


def strips() -> str:
    """The strip of each conditioner, with its prompts and the command that makes it."""
    rows = [
        f"![{name}](../examples/strip-{name}.jpg)\n\n`{name}`: {'; '.join(prompts)} (`script/make-strip {name}`)."
        for name, (_, prompts) in STRIPS.items()
        if name not in UNCONVINCING
    ]
    return "\n\n".join(rows)


def bundles() -> str:
    """All bundles and what they need."""
    rows = []
    for name in BUNDLES:
        bundle = Manifest.read(WEIGHTS / f"{name}.toml")
        base = ", ".join(sorted({part.licence for part in bundle.parts if not part.name.startswith("annotator/")}))
        held = "all" if len(bundle.conditioners) == len(CONDITIONERS) else ", ".join(bundle.conditioners)
        checker = "yes" if bundle.safety_checker != "none" else f"none: {bundle.safety_note}"
        needs = bundle.needs
        rows.append((f"`{name}`", bundle.summary, held, needs["memory"], needs["disk"], base, checker))
    return table(("bundle", "what it is", "conditioners", "memory", "disk", "licence", "safety checker"), rows)


def quality() -> str:
    """How well pictures of the embedded bundle follow map and prompt, as measured by script/evaluate."""
    made = Manifest.read(WEIGHTS / "tiny.toml").made
    measured, fast = made["quality"], made["go_fast"]
    figures = ("value", "score", "floor", "ceiling", "share")
    rows = [
        (f"`{name}`", row["metric"], *(f"{row[key]:.2f}" for key in figures), f"{fast[name]['share']:.2f}")
        for name, row in measured.items()
        if name != "prompt_colour"
    ]
    colour = measured["prompt_colour"]
    return (
        table(("conditioner", "metric", *figures, "share with `go_fast`"), rows)
        + f"\n\nThe one thing of a scene has the colour that the prompt names in {colour['right']:.0%} of "
        f"{colour['scenes']} pictures (by chance {colour['chance']:.0%}; the rendered scenes' own are read right "
        f"in {colour['ceiling']:.0%}), and with `go_fast` in {fast['prompt_colour']['right']:.0%}."
    )


def together() -> str:
    """Several controls at once, and regions, as measured by script/evaluate-together."""
    measured = Manifest.read(WEIGHTS / "tiny.toml").made["together"]
    rows = [
        (f"`{name.replace('_', ' ')}`", part, f"{row['score']:.2f}", f"{row['floor']:.2f}")
        for name, parts in measured.items()
        if name != "scenes"
        for part, row in parts.items()
    ]
    return table(("controls", "measured", "score", "floor"), rows)


def enlarged() -> str:
    """Pictures that upscale enlarges, as measured by script/evaluate-upscale."""
    measured = Manifest.read(WEIGHTS / "tiny.toml").made["enlarged"]
    figures = ("steepness", "before", "f1", "floor", "seams", "seams_before")
    rows = [
        (f"{int(name) / 100:g}", *(f"{row[key]:.2f}" for key in figures))
        for name, row in measured.items()
        if name not in ("scenes", "upscale")
    ]
    head = ("steepness", "merely enlarged", "F1", "floor", "at windows", "merely enlarged")
    return table(("`upscale_strength`", *head), rows)


def reference() -> str:
    """Pictures with a reference picture, as measured by script/evaluate-reference."""
    measured, shares = Manifest.read(WEIGHTS / "tiny.toml").made["reference"], ("share", "rendered")
    rows = [
        (f"`{conditioner}`", f"{int(name) / 100:g}", f"{row['nearer']:.0%}", *(f"{row[key]:.2f}" for key in shares))
        for conditioner, by_scale in measured.items()
        if conditioner != "scenes"
        for name, row in by_scale.items()
    ]
    head = ("control map", "scale of the reference", "nearer to its palette", "share of the map obeyed")
    return table((*head, "the scene in these colours"), rows)


def settings() -> str:
    """The environment variables, with what controlnet/settings.py says below each."""
    (declared,) = (node for node in ast.parse(inspect.getsource(Settings)).body if isinstance(node, ast.ClassDef))
    said = {
        ast.unparse(above.target): inspect.cleandoc(ast.literal_eval(below.value)).replace("\n", " ")
        for above, below in itertools.pairwise(declared.body)
        if isinstance(above, ast.AnnAssign) and isinstance(below, ast.Expr)
    }
    rows = [
        (f"`{each.metadata['variable']}`", each.metadata["values"], each.metadata["usual"], said[each.name])
        for each in fields(Settings)
        if each.metadata
    ]
    return table(("variable", "values", "if unset", "what it does"), rows)


TABLES: dict[str, Callable[[], str]] = {
    "inputs": inputs,
    "conditioners": conditioners,
    "strips": strips,
    "bundles": bundles,
    "quality": quality,
    "together": together,
    "enlarged": enlarged,
    "reference": reference,
    "settings": settings,
}


def with_tables(text: str) -> str:
    """`text` with a new table between <!-- NAME:begin --> and <!-- NAME:end --> for each name in TABLES that it has."""
    for name, make in TABLES.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        if begin not in text:
            continue
        before, rest = text.split(begin)
        text = f"{before}{begin}\n{make()}\n{end}{rest.split(end)[1]}"
    return text


if __name__ == "__main__":
    for page in PAGES:
        before = page.read_text(encoding="utf-8")
        if (after := with_tables(before)) != before:
            page.write_text(after, encoding="utf-8")
            print(f"wrote {page.relative_to(ROOT)}", file=sys.stderr)
