"""script/write-signature: controlnet/api/signature.py, the inputs of predict.py as a typed Python function."""

import sys
import textwrap
from pathlib import Path
from typing import Any

from controlnet.request.loras import LORA_INPUTS
from controlnet.serving.schema import openapi_schema

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "controlnet/api/signature.py"
TYPES = {"string": "str", "integer": "int", "number": "float", "boolean": "bool"}
BY_POSITION = 3
"""How many inputs may be given without their names: prompt, image and conditioner."""
WIDTH = 120

HEAD = '''"""The inputs of predict.py as a typed Python function. Written by script/write-signature; do not edit it."""

from collections.abc import Mapping
from typing import Any, Literal

from controlnet.api.called import calls_make
from controlnet.api.made import Pictures
from controlnet.api.sent import LoraWeights, Picture

'''
CLASS = '''

class Signature:
    """Has the signature of a request."""

    def make(self, inputs: Mapping[str, Any]) -> Pictures:
        """The pictures of a request whose inputs are in a mapping."""
        raise NotImplementedError

    @calls_make
    def __call__(
        self,
'''
DOCUMENTED = '''    ) -> Pictures:
        """Make the pictures of one request and return them as a list of PIL pictures, in the order of their seeds.

        The list also has `maps`, `poses`, `metrics`, `seed` and `save(folder)`. A picture may be sent as a PIL picture,
        a NumPy array (uint8 or bool; H×W, H×W×3 or H×W×4), the content of a file (bytes), a path, or a URL.

        Raises ValueError for a request that cannot be met, in the server's words: what was expected, what came, what to
        do. Raises RuntimeError if the request needs more memory than there is, or if making the pictures fails.

'''
TAIL = '''        """
        raise NotImplementedError
'''


def signature(source: str) -> str:
    """The text of the module, for the text of a predict.py."""
    schemas = openapi_schema(source)["components"]["schemas"]
    fields = schemas["Input"]["properties"]
    required = schemas["Input"]["required"]
    names = sorted(fields, key=lambda name: (name not in required, fields[name]["x-order"]))
    choices = {name: tuple(schemas[name]["enum"]) for name in names if "allOf" in fields[name]}
    aliases: dict[tuple[str, ...], str] = {}
    for name, options in choices.items():
        aliases.setdefault(options, "".join(map(str.capitalize, name.split("_"))))
    parameters = [
        _parameter(name, fields[name], name in required, aliases.get(choices.get(name, ()))) for name in names
    ]
    parameters.insert(BY_POSITION, "*,")
    documented = "".join(f"{line}\n" for name in names for line in _documented(name, fields[name]["description"]))
    listed = "".join(f"        {parameter}\n" for parameter in parameters)
    literals = "".join(_literal(alias, options) for options, alias in aliases.items())
    return HEAD + literals + CLASS + listed + DOCUMENTED + documented + TAIL


def _literal(alias: str, options: tuple[str, ...]) -> str:
    return f"{alias} = Literal[\n" + "".join(f"    {_quoted(option)},\n" for option in options) + "]\n"


def _parameter(name: str, field: dict[str, Any], required: bool, alias: str | None) -> str:
    lora = "LoraWeights" if name in dict(LORA_INPUTS) else None
    kind = alias or lora or ("Picture" if field.get("format") == "uri" else TYPES[field["type"]])
    optional = " | None" if field.get("nullable") else ""
    if required:
        return f"{name}: {kind},"
    default = field["default"]
    if kind == "float" and default is not None:
        default = float(default)
    return f"{name}: {kind}{optional} = {_quoted(default) if isinstance(default, str) else default},"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _documented(name: str, description: str) -> list[str]:
    return textwrap.wrap(f"{name}: {description}", WIDTH, initial_indent=" " * 8, subsequent_indent=" " * 12)


def main() -> None:
    """Write the module."""
    TARGET.write_text(signature((ROOT / "predict.py").read_text(encoding="utf-8")), encoding="utf-8")
    print(TARGET.relative_to(ROOT), file=sys.stderr)


if __name__ == "__main__":
    main()
