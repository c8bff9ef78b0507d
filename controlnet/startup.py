"""Imports torch, diffusers and transformers in less time. predict.py imports this module first.

Importing them makes about a million objects. Python's cyclic garbage collector visits them again and again, in vain,
because they stay until the process ends. Without it the imports take a fifth less time. Afterwards they are hidden from
it, because it would visit all of them during requests, and once more when the process ends (0.8 s).
"""

import gc

PIPELINES = ("StableDiffusionControlNetPipeline", "StableDiffusionControlNetImg2ImgPipeline")
"""diffusers imports a class when its name is first used. These two need all that is slow to import."""


def _import_libraries() -> None:
    collecting = gc.isenabled()
    gc.disable()
    try:
        import diffusers

        for name in PIPELINES:
            getattr(diffusers, name)
    finally:
        gc.freeze()  # without a collection, which would take as long as was saved; it would free 8 MB
        if collecting:
            gc.enable()


def hide_what_is_loaded() -> None:
    """Hide all objects that are in use now from Python's garbage collector. Called at the end of setup()."""
    gc.collect()
    gc.freeze()


_import_libraries()
