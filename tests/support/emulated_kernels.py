"""The kernels of kernels.cu on a CPU, compiled by g++ (emulated_cuda.cpp), with the grids that kernels.py gives them.

It shows what they compute and that they stay within shared memory. It does not show how fast they are, and only by
chance that threads do not wait for each other where they should.
"""

import ctypes
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch

from controlnet.speedups.cuda.kernels import HALVES, SOURCE, WIDTHS, Argument, Kernels

CUDA = Path(__file__).with_name("emulated_cuda.cpp")
CONVERSIONS = {
    r'asm\("cvt\.f32\.f16 .*?\);': "y = wide_of_half(x);",
    r'asm\("cvt\.rn\.f16\.f32 .*?\);': "y = half_of(x);",
    r'asm\("cvt\.rn\.bf16\.f32 .*?\);': "y = bfloat_of(x);",
}


def source() -> str:
    """kernels.cu as C++, and for each kernel a function that launches it."""
    kernels = SOURCE.read_text(encoding="utf-8")
    for pattern, call in CONVERSIONS.items():
        kernels, found = re.subn(pattern, call, kernels)
        assert found == 1, pattern
    kernels = kernels.replace("extern __shared__ float shared[];", "")
    launches = []
    for pattern, given in re.findall(r'extern "C" __global__ void ([\w#]+)\(([^)]*)\)', kernels.replace("\\\n", "")):
        names = ", ".join(re.findall(r"(\w+)(?:,|$)", given))
        for name in {pattern.replace("##most", str(most)) for most in WIDTHS}:
            launches.append(
                f'extern "C" void launch_{name}(int gx, int gy, int bx, int by, {given})'
                f" {{ launch({{gx, gy}}, {{bx, by}}, [=] {{ {name}({names}); }}); }}"
            )
    return "\n".join([CUDA.read_text(encoding="utf-8"), kernels, *launches])


class EmulatedKernels(Kernels):
    """Kernels for tensors in main memory."""

    def __init__(self, folder: Path, dtype: torch.dtype, processors: int = 2) -> None:
        """`folder` is for the compiled library. With fewer `processors` a grid has fewer blocks."""
        library = folder / f"kernels_{str(dtype).removeprefix('torch.')}.so"
        if not library.exists():
            options = [option.decode() for option in HALVES[dtype]]
            compiler = ["g++", "-std=c++17", "-O1", "-shared", "-fPIC", "-pthread", "-w", *options]
            subprocess.run([*compiler, "-x", "c++", "-", "-o", library], input=source(), text=True, check=True)
        self._library = ctypes.CDLL(str(library))
        self._processors = processors

    def _launch(
        self, name: str, grid: tuple[int, int], block: tuple[int, int], arguments: Sequence[Argument], shared: int = 0
    ) -> None:
        assert 4 * shared <= 48 * 1024 and block[0] * block[1] <= 1024 and grid[1] < 65536
        values = [kind(value) for value, kind in arguments]
        self._library[f"launch_{name}"](*map(ctypes.c_int, (*grid, *block)), *values)
