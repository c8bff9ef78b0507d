"""Low-memory mode, for script/bench/speed: the net changes with every request, and only that of the request is ready.

Both sides keep the others at the same place, and have to make a net ready: on a CPU in their files, in half precision,
which is what this project always does there, and on a GPU in main memory.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from diffusers import ControlNetModel
from speed_sides import Case, Plain, Setting, ours

from controlnet.model import Model
from controlnet.models.attention import use_attention
from controlnet.models.controlnets import ControlNets

CHANGING = Case("low memory, net changes (two requests)")
ALONE = "low memory, the two changes alone"


class PlainSwaps(Plain):
    """Of its ControlNets only that of the last request is ready.

    On a CPU it is loaded with from_pretrained, because diffusers warns of casts with to(). On a GPU it is moved there
    with to(), and back to main memory for the next one.
    """

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self._ready: dict[str, Any] = {}
        self._stored: dict[str, Any] = {}

    def nets(self, names: Sequence[str]) -> list[ControlNetModel]:
        if [*self._ready] != [*names]:
            for net in self._ready.values():
                net.to("cpu")
            self._ready = {}  # memory never holds the old and the new one
            self._ready = {name: self._made_ready(name) for name in names}
        return [*self._ready.values()]

    def _made_ready(self, name: str) -> Any:
        device = self.model.bundle.device
        if device.type == "cpu":
            return self._loaded(name)
        if name not in self._stored:
            self._stored[name] = self._loaded(name)
        return self._stored[name].to(device)

    def _loaded(self, name: str) -> Any:
        bundle = self.model.bundle
        folder = bundle.folder(f"controlnet/{name}")
        half = {"variant": "fp16"} if any(folder.glob("*.fp16.*")) else {}
        net: Any = ControlNetModel.from_pretrained(folder, torch_dtype=bundle.dtype, local_files_only=True, **half)
        use_attention(net, bundle.attention)
        return net


def low_memory_nets(model: Model, names: Sequence[str]) -> ControlNets:
    """This project's nets as they are in low-memory mode."""
    if model.bundle.device.type == "cpu":
        return model.generator.controlnets
    packed = {name: model.bundle.packed(ControlNetModel, f"controlnet/{name}") for name in names}
    return ControlNets(packed, model.bundle.dtype, model.bundle.device)


@contextmanager
def only_these_nets(model: Model, nets: ControlNets) -> Iterator[None]:
    """Inside the block, the model's requests use these nets."""
    with patch.object(model.generator, "controlnets", nets):
        yield


class Swaps:
    """What is measured: each run has one request, or one change, for each of two nets. So it begins with a change."""

    def __init__(self, model: Model, setting: Setting) -> None:
        self.model = model
        self.settings = [replace(setting, conditioners=(name,)) for name in setting.conditioners[:2]]
        self.names = setting.conditioners[:2]
        self.own, self.plain = low_memory_nets(model, self.names), PlainSwaps(model)

    def requests(self) -> dict[str, Any]:
        """The sides, with whole requests."""

        def made() -> None:
            with only_these_nets(self.model, self.own):
                for setting in self.settings:
                    ours(self.model, CHANGING, setting)

        def plain() -> None:
            for setting in self.settings:
                self.plain(CHANGING, setting)

        return {"ours": made, "plain": plain}

    def alone(self) -> dict[str, Any]:
        """The sides, with nothing but the changes."""
        sides = {"ours": self.own.together, "plain": self.plain.nets}
        return {side: lambda nets=nets: [nets([name]) for name in self.names] for side, nets in sides.items()}
