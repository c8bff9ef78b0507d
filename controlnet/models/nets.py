"""The ControlNets of a bundle: all at hand at once, ready to work when a request names them.

On a GPU with room for all they are simply there. Elsewhere only the nets of the request at work are made ready:

- On a CPU, which is slow in half precision, fourteen of them in float32 are 20 GB. They stay in their files, mapped
  into memory, and are cast.
- On a GPU without the room (controlnet/models/low_memory.py) they stay in main memory, packed, and are moved.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from diffusers import ControlNetModel

from controlnet.models.loading import in_parallel
from controlnet.models.packing import Packed, tensors_of, with_tensors
from controlnet.stopwatch import Stopwatch


class ControlNets(Mapping[str, ControlNetModel]):
    """ControlNets by conditioner, ready to run in `dtype`, packed ones on `device`.

    What a request gets depends on its own names alone: a net that was made ready is a fresh copy of a stored one, equal
    bit for bit to one that was loaded in that precision on that device. The last request's copies are kept for the next
    one. A request that breaks off, wherever it does, leaves whole copies only, and the stored nets as they were.
    """

    def __init__(
        self,
        stored: Mapping[str, ControlNetModel | Packed[ControlNetModel]],
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        """`stored`: where the nets live. One that is not packed and is in `dtype` is used as it is."""
        self._stored = dict(stored)
        self._dtype = dtype
        self._device = device
        self._ready: dict[str, ControlNetModel] = {
            name: net for name, net in self._stored.items() if not isinstance(net, Packed) and net.dtype == dtype
        }
        self._copies: dict[str, ControlNetModel] = {}

    def together(self, names: Sequence[str], timed: Stopwatch | None = None) -> list[ControlNetModel]:
        """The nets of one request, in the order of `names`; a name given twice is one net. KeyError: there is none.

        Copies of other nets are let go of first, so that memory holds no more of them than one request needs. `timed`
        gets the phase swap where a net has to be made ready.
        """
        asked = {name: self._stored[name] for name in names}
        self._copies = {name: net for name, net in self._copies.items() if name in asked}
        missing = [name for name in asked if name not in self._ready and name not in self._copies]
        if missing:
            with (timed or Stopwatch())("swap"):
                for name in missing:
                    self._copies[name] = self._copy(asked[name])
        ready = self._ready | self._copies
        return [ready[name] for name in names]

    def _copy(self, net: ControlNetModel | Packed[ControlNetModel]) -> ControlNetModel:
        return net.on(self._device) if isinstance(net, Packed) else cast(net, self._dtype)

    def __getitem__(self, name: str) -> ControlNetModel:
        return self.together([name])[0]

    def __contains__(self, name: object) -> bool:
        return name in self._stored  # Mapping's own would make the net ready to find out

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


def cast(net: ControlNetModel, dtype: torch.dtype) -> ControlNetModel:
    """A copy of a net with its numbers in `dtype`, in memory of its own; the net itself is untouched."""
    copies = in_parallel(
        lambda tensor: tensor.to(dtype if tensor.is_floating_point() else None, copy=True), tensors_of(net)
    )
    return with_tensors(net, copies)
