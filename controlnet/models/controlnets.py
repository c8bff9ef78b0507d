"""The ControlNets of a bundle. A request names some of them, and those are made ready to run.

On a GPU with room for all ControlNets, all are always ready. Otherwise only those of the current request are:

- A CPU is slow in half precision, and fourteen ControlNets in float32 take 20 GB. So they stay in their files, mapped
  into memory, and are cast when a request uses them.
- On a GPU without the room (controlnet/models/low_memory.py) they stay in main memory, packed, and are moved to the
  GPU when a request uses them.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from diffusers import ControlNetModel

from controlnet.models.packed import Packed, tensors_of, with_tensors
from controlnet.stopwatch import Stopwatch


class ControlNets(Mapping[str, ControlNetModel]):
    """ControlNets by name, ready to run in `dtype` and on the right device.

    The result depends only on the requested names, not on earlier requests. A net is made ready by copying the stored
    one. The copy equals, bit for bit, a net that was loaded in that precision on that device. The copies are kept for
    the next request. A request that is interrupted, at any point, leaves no incomplete copy and no changed stored net.
    """

    def __init__(
        self,
        stored: Mapping[str, ControlNetModel | Packed[ControlNetModel]],
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        """`stored` has the nets to copy from. A net that is not packed and has the right `dtype` is used directly.

        Packed nets are copied to `device`.
        """
        self._stored = dict(stored)
        self._dtype = dtype
        self._device = device
        self._ready: dict[str, ControlNetModel] = {
            name: net for name, net in self._stored.items() if not isinstance(net, Packed) and net.dtype == dtype
        }
        self._copies: dict[str, ControlNetModel] = {}

    def prepare(self, names: Sequence[str], timed: Stopwatch | None = None) -> list[ControlNetModel]:
        """The nets of one request, in the order of `names`. The same name gives the same net.

        Copies of other nets are freed first, so memory never holds more copies than one request needs. `timed` records
        the phase "swap" if a net has to be made ready. Raises KeyError for a name that the bundle does not have.
        """
        requested = {name: self._stored[name] for name in names}
        self._copies = {name: net for name, net in self._copies.items() if name in requested}
        missing = [name for name in requested if name not in self._ready and name not in self._copies]
        if missing:
            with (timed or Stopwatch())("swap"):
                for name in missing:
                    self._copies[name] = self._copy(requested[name])
        ready = self._ready | self._copies
        return [ready[name] for name in names]

    def _copy(self, net: ControlNetModel | Packed[ControlNetModel]) -> ControlNetModel:
        return net.on(self._device) if isinstance(net, Packed) else cast(net, self._dtype)

    def __getitem__(self, name: str) -> ControlNetModel:
        return self.prepare([name])[0]

    def __contains__(self, name: object) -> bool:
        return name in self._stored  # Mapping's own method would make the net ready

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


def cast(net: ControlNetModel, dtype: torch.dtype) -> ControlNetModel:
    """A copy of a net in `dtype`. It shares no memory with the net, which stays unchanged."""
    # Not with in_parallel(): a request must not start threads (controlnet/serving/input_files.py says why).
    copies = [tensor.to(dtype if tensor.is_floating_point() else None, copy=True) for tensor in tensors_of(net)]
    return with_tensors(net, copies)
