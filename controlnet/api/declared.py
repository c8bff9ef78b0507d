"""predict(), whose signature is the only list of inputs."""

import importlib.util
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

PREDICT = Path(__file__).resolve().parents[2] / "predict.py"


@cache
def declared_predict() -> Callable[..., Any]:
    """Predictor.predict of predict.py, for its signature. It is opened by path: a program may have its own predict.py.

    It imports torch and diffusers.
    """
    spec = importlib.util.spec_from_file_location("controlnet_predict", PREDICT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # BasePredictor: see pyproject.toml
        spec.loader.exec_module(module)
    return module.Predictor.predict
