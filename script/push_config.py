"""Check cog-safe-push.yaml and the schema of predict.py with the code of cog-safe-push itself, without pushing.

Needs cog-safe-push at the commit that .github/workflows/push.yaml installs, and no other package:
PYTHONPATH=. python script/push_config.py in a checkout. CI runs it; script/test needs no network and does not.
"""

import sys
from importlib import import_module  # cog-safe-push is installed for this check only, so it is no requirement
from pathlib import Path
from types import SimpleNamespace

from controlnet.serving.schema import openapi_schema


def main() -> None:
    """Exit with cog-safe-push's message if it refuses something."""
    names = ("yaml", "cog_safe_push.config", "cog_safe_push.lint", "cog_safe_push.schema")
    yaml, config, lint, schema = (import_module(name) for name in names)
    refusals = import_module("cog_safe_push.exceptions").CogSafePushError
    document = openapi_schema(Path("predict.py").read_text("utf-8"))
    # The only thing of a model that the checks of a schema look at is its newest version.
    model = SimpleNamespace(versions=SimpleNamespace(list=lambda: [SimpleNamespace(openapi_schema=document)]))
    try:
        ours = config.Config.model_validate(yaml.safe_load(Path("cog-safe-push.yaml").read_text("utf-8")))
        lint.lint_predict()
        schema.lint(model, train=False)
        schemas = schema.get_schemas(model, train=False)
        schema.check_backwards_compatible(schemas, schemas, train=False)
    except (refusals, ValueError) as error:  # pydantic's ValidationError is a ValueError
        sys.exit(str(error))
    cases, inputs = len(ours.predict.test_cases), len(schemas["Input"]["properties"])
    print(f"cog-safe-push accepts cog-safe-push.yaml with {cases} cases, and a schema with {inputs} inputs.")


if __name__ == "__main__":
    main()
