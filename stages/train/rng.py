"""Stateless random numbers: every draw is seeded by (seed, purpose, step), so any step can be drawn again alone.

A resumed run therefore needs no stored generator state: step s is the same whether it was reached at once or after a
stop. Draws are made on the CPU, so the device changes nothing but rounding.

Distributions are those of the reference trainer. Its sequence of numbers (from python's, torch's CPU and the device's
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
    """Random generators of one training, one per (purpose, step)."""

    seed: int

    def generator(self, purpose: str, step: int) -> np.random.Generator:
        """A fresh numpy generator for one purpose at one step; the same arguments give the same numbers.

        Philox (Salmon et al. 2011) is counter-based and takes 128 bits of a digest of the arguments as its key, so two
        (purpose, step) pairs never share a stream.
        """
        return np.random.Generator(np.random.Philox(key=int.from_bytes(self._digest(purpose, step)[:16], "little")))

    def torch_generator(self, purpose: str, step: int) -> torch.Generator:
        """A fresh CPU generator of torch for one purpose at one step."""
        return torch.Generator().manual_seed(int.from_bytes(self._digest(purpose, step)[:8], "little") >> 1)

    def _digest(self, purpose: str, step: int) -> bytes:
        return hashlib.sha256(f"{self.seed}/{purpose}/{step}".encode()).digest()


def standard_normal(generator: np.random.Generator, *shape: int) -> Tensor:
    """Draws from N(0, 1), float32, on the CPU."""
    return torch.from_numpy(generator.standard_normal(shape, dtype=np.float32))


def silence_extensions(generator: np.random.Generator, count: int, mean_frames: float) -> np.ndarray:
    """(count,) int64: frames of silence behind each clip, the floor of an exponential draw of mean `mean_frames`."""
    return np.floor(generator.exponential(mean_frames, count) if mean_frames > 0 else np.zeros(count)).astype(np.int64)


def crop_start(generator: np.random.Generator, size: int, window: int) -> int:
    """Start of a random window: uniform over 0..size - window, 0 when everything fits.

    The reference's draw on stored latents ends one short, so it never trains on the last frame of a longer clip.
    """
    return int(generator.integers(0, size - window, endpoint=True)) if size > window else 0


def bernoulli(generator: np.random.Generator, count: int, probability: float) -> np.ndarray:
    """(count,) bool, True with the given probability."""
    return generator.random(count) < probability
