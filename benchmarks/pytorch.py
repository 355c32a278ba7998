"""PyTorch's side of the benchmarks."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import measure
from benchmarks.measure import CALLS

DEVICES = {"cpu": "cpu", "gpu": "cuda"}
VARIANTS = ("eager", "sdpa", "channels_last", "compile", "compile_blocks")


class Memory:
    """Peak memory of one of several users of a device; make it before what it is to count."""

    def __init__(self, device: str):
        self.device = device
        self.before = self._allocated()

    def _allocated(self) -> int:
        return torch.cuda.memory_allocated() if self.device == "gpu" else 0

    def built(self) -> None:
        """Notes how much is there for good, such as parameters."""
        self.own = self._allocated() - self.before

    def peak(self, call: Callable[[], Any]) -> int:
        """Peak bytes so far of the process on a CPU; of what is there and a call on a GPU."""
        if self.device == "cpu":
            return measure.process_peak()
        torch.cuda.reset_peak_memory_stats()
        others = self._allocated() - self.own
        call()
        return torch.cuda.max_memory_allocated() - others


class Forward:
    """A module's forward pass on fixed images.

    Args:
        module: Takes (b, 3, H, W) and returns one map or several, (b, c, h, w).
        images: (b, H, W, 3).
        device: "cpu" or "gpu".
        dtype: "float32" or "bfloat16", for parameters and activations.
        variant: One of `VARIANTS`. "sdpa" is as "eager"; the others have channels-last parameters
            and images, "compile" compiles the module, and "compile_blocks" each block of a ViT,
            which is faster to compile because blocks of one kind are compiled once.
    """

    def __init__(
        self, module: torch.nn.Module, images: np.ndarray, device: str, dtype: str, variant: str
    ):
        set_up()
        layout = torch.contiguous_format if variant in ("eager", "sdpa") else torch.channels_last
        to: Any = {
            "device": DEVICES[device],
            "dtype": getattr(torch, dtype),
            "memory_format": layout,
        }
        self.device = device
        self.memory = Memory(device)
        self.images = torch.from_numpy(images).permute(0, 3, 1, 2).to(**to)
        self.eager = module.eval().requires_grad_(False).to(**to)
        self.module: Callable[..., Any] = self.eager
        if variant == "compile":
            self.module = torch.compile(self.eager)
        elif variant == "compile_blocks":
            for block in self.eager.blocks:  # pyright: ignore[reportGeneralTypeIssues]
                block.compile()
        self.memory.built()

    @torch.inference_mode()
    def outputs(self) -> list[np.ndarray]:
        """The maps as (b, h, w, c) in float32."""
        found = self.module(self.images)
        maps: Sequence[torch.Tensor] = found if isinstance(found, tuple) else [found]
        return [x.permute(0, 2, 3, 1).float().cpu().numpy() for x in maps]

    def timing(self) -> measure.Timing:
        """Time of a forward pass."""
        return measure.timed(self._forward, CALLS[self.device])

    @torch.inference_mode()
    def _forward(self) -> None:
        self.module(self.images)
        _wait(self.device)

    def flops(self) -> int:
        """Matrix product and convolution operations; a multiplication and addition are 2."""
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            self.eager(self.images)
        return counter.get_total_flops()

    def peak(self) -> int:
        """See `Memory`."""
        return self.memory.peak(self._forward)


def set_up(*, tf32: bool = False) -> None:
    """Uses all cores of the process; float32 is computed in full precision or in TF32."""
    torch.set_num_threads(measure.cores())
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32


def matmul(device: str, dtype: str, size: int = 4096, count: int = 1) -> Callable[[], float]:
    """`measure.matmul` in PyTorch."""
    set_up()
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(size, size, generator=generator).to(DEVICES[device], getattr(torch, dtype))
    b = a / size**0.5  # keeps the scale of the products

    @torch.inference_mode()
    def rate() -> float:
        _wait(device)
        start, x = time.perf_counter(), a
        for _ in range(count):
            x = x @ b
        _wait(device)
        return 2 * count * size**3 / (time.perf_counter() - start)

    rate()
    return rate


def _wait(device: str) -> None:
    if device == "gpu":
        torch.cuda.synchronize()
