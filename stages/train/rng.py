"""StepRng, without state: every draw of a step is named by (seed, purpose, step), so any step can be drawn again alone.

A resumed run therefore needs no stored generator: step s is the same whether it was reached at once or after a stop.
Draws are made on the CPU, so that the device changes nothing but rounding.

In distribution they are the reference trainer's; its sequence of numbers (python's, torch's CPU and the device's
generators, in the order of its code) is not reproduced, as it depends on workers, device and library versions.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class StepRng:
    """The random numbers of one training."""

    seed: int

    def generator(self, purpose: str, step: int) -> np.random.Generator:
        """A fresh generator for one purpose at one step; the same arguments give the same numbers.

        The counter-based generator (Salmon et al. 2011) takes 128 bits of the name's digest as its key, so that two
        names never share a stream.
        """
        return np.random.Generator(np.random.Philox(key=int.from_bytes(self._name(purpose, step)[:16], "little")))

    def torch_generator(self, purpose: str, step: int) -> torch.Generator:
        """The same for what asks for torch's CPU generator."""
        return torch.Generator().manual_seed(int.from_bytes(self._name(purpose, step)[:8], "little") >> 1)

    def _name(self, purpose: str, step: int) -> bytes:
        return hashlib.sha256(f"{self.seed}/{purpose}/{step}".encode()).digest()


def standard_normal(generator: np.random.Generator, *shape: int) -> Tensor:
    """Unit standard_normal, float32, on the CPU."""
    return torch.from_numpy(generator.standard_normal(shape, dtype=np.float32))


def silence_extensions(generator: np.random.Generator, count: int, mean_frames: float) -> np.ndarray:
    """(count,) int64: whole frames of silence behind each clip, floor of an exponential draw of mean `mean_frames`."""
    return np.floor(generator.exponential(mean_frames, count) if mean_frames > 0 else np.zeros(count)).astype(np.int64)


def crop_start(generator: np.random.Generator, size: int, window: int) -> int:
    """Where a window begins in something of `size`: uniform over 0..size - window, 0 when it fits.

    The reference's draw on stored latents ends one short, so the last frame of a longer clip is never trained on there.
    """
    return int(generator.integers(0, size - window, endpoint=True)) if size > window else 0


def bernoulli(generator: np.random.Generator, count: int, probability: float) -> np.ndarray:
    """(count,) bool, True with the given probability."""
    return generator.random(count) < probability
