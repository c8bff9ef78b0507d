"""The libraries are imported without garbage collections, and what is loaded is left out of later ones."""

import ast
import subprocess
import sys

from support import ROOT

CODE = """
import gc, sys
collections = []
gc.callbacks.append(lambda phase, info: collections.append(phase))
from controlnet import startup
print(len(collections) < 20, gc.isenabled(), gc.get_freeze_count() > 200_000, "diffusers" in sys.modules)
kept = [[] for _ in range(1000)]
before = gc.get_freeze_count()
startup.hide_what_is_loaded()
print(gc.get_freeze_count() - before >= 1000)
gc.disable()
startup._import_libraries()
print(gc.isenabled())
"""


def test_libraries_are_imported_without_garbage_collections() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == ["True True True True", "True", "False"], done.stderr


def test_predict_imports_startup_before_our_other_modules() -> None:
    module = ast.parse((ROOT / "predict.py").read_text(encoding="utf-8"))
    ours = [
        node for node in module.body if isinstance(node, ast.ImportFrom) and str(node.module).startswith("controlnet")
    ]
    assert [alias.name for alias in ours[0].names] == ["startup"]
