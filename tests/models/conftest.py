"""The networks of tiny, and random LoRAs for them."""

from typing import Any

import pytest
from random_loras import ATTENTION, Layers, random_layers
from support.loras import CONVOLUTIONS, TEXT

from controlnet.bundle import open_bundle
from controlnet.settings import Settings


@pytest.fixture(scope="module")
def base() -> dict[str, Any]:
    return open_bundle(Settings(bundle="tiny")).base()


@pytest.fixture(scope="module")
def layers(base: dict[str, Any]) -> dict[str, Layers]:
    return {
        "unet": random_layers(base["unet"], ATTENTION + CONVOLUTIONS),
        "text_encoder": random_layers(base["text_encoder"], TEXT),
    }
