"""The ControlNets of a bundle: all at hand at once, in the precision that the device works in when they are used.

On a GPU they are simply there. On a CPU, which is slow in half precision, fourteen of them in float32 are 20 GB: there
they stay in their files, mapped into memory, and only the nets of the request at work are cast.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence

import torch
from diffusers import ControlNetModel

from controlnet.loading import in_parallel


class ControlNets(Mapping[str, ControlNetModel]):
    """ControlNets by conditioner, ready to run in `dtype`.

    What a request gets depends on its own names alone: a cast net is a fresh copy of a stored one, equal bit for bit to
    one that was loaded in that precision. Copies of the last request are kept for the next one.
    """

    def __init__(self, stored: Mapping[str, ControlNetModel], dtype: torch.dtype) -> None:
        self._stored = dict(stored)
        self._dtype = dtype
        self._cast: dict[str, ControlNetModel] = {}

    def together(self, names: Sequence[str]) -> list[ControlNetModel]:
        """The nets of one request, in the order of `names`; a name given twice is one net. KeyError: there is none.

        Copies of other nets are let go of first, so that memory holds no more of them than one request needs.
        """
        needed = [name for name in dict.fromkeys(names) if self._stored[name].dtype != self._dtype]
        self._cast = {name: net for name, net in self._cast.items() if name in needed}
        for name in needed:
            if name not in self._cast:
                self._cast[name] = cast(self._stored[name], self._dtype)
        return [self._cast.get(name, self._stored[name]) for name in names]

    def __getitem__(self, name: str) -> ControlNetModel:
        return self.together([name])[0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


def cast(net: ControlNetModel, dtype: torch.dtype) -> ControlNetModel:
    """A copy of a net with its numbers in `dtype`, in memory of its own; the net itself is untouched."""
    tensors = [*net.parameters(), *net.buffers()]
    copies = in_parallel(lambda tensor: tensor.to(dtype if tensor.is_floating_point() else None, copy=True), tensors)
    # A deep copy takes from its memo what is there: the structure is copied, and no number in its old precision.
    memo = {
        id(old): torch.nn.Parameter(new, requires_grad=False) if isinstance(old, torch.nn.Parameter) else new
        for old, new in zip(tensors, copies, strict=True)
    }
    return copy.deepcopy(net, memo)
