"""Encodes batches of clips on a device without waiting for it, while this process reads and writes.

B clips, T latent frames, C latent channels, A audio channels, X samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stages.models.device import dtype_named, is_out_of_memory
from stages.models.nets.autoencoder.autoencoder import Autoencoder


@dataclass(frozen=True, kw_only=True)
class PendingBatch:
    """A batch that is being encoded; its latents are copied to host memory asynchronously."""

    latents_BTC: Tensor
    num_frames: tuple[int, ...]
    arrived: torch.cuda.Event | None
    """Event after the copy; None on the CPU, where nothing is asynchronous."""

    def latents(self) -> list[np.ndarray]:
        """Latents of each clip, (T_i, C) in the storage precision; waits for the copy."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return [
            latents_TC[:frames].numpy() for latents_TC, frames in zip(self.latents_BTC, self.num_frames, strict=True)
        ]


class DeviceEncoder:
    """Encodes batches of clips asynchronously.

    Audio is copied to the device on a stream of its own while the batch before is encoded.

    Args:
        stored: storage precision of the latents, `float16` or `float32`.
        max_frames: limit of a batch; a longer clip is encoded in chunks of that many frames, equal up to rounding.
        say: called with a message when memory does not suffice.
    """

    def __init__(self, encoder: Autoencoder, stored: str, max_frames: int, say: Callable[[str], None]) -> None:
        self.encoder, self.stored, self.max_frames, self.say = encoder, dtype_named(stored), max_frames, say
        self.device = next(encoder.parameters()).device
        self._copying = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None

    def host_buffer(self, shape: tuple[int, int]) -> Tensor:
        """(X, A) float32 for a clip's samples, in pinned memory where the device copies from it.

        torch reuses the memory of clips that are encoded.
        """
        return torch.empty(shape, dtype=torch.float32, pin_memory=self._copying is not None)

    @torch.inference_mode()
    def launch(self, audios: Sequence[Tensor]) -> list[PendingBatch]:
        """Start to encode clips (X_i, A) in one batch, or in several (and report that) where memory is short."""
        try:
            return [self._launch(audios)]
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or (len(audios) == 1 and self.max_frames <= self._smallest_chunk()):
                raise
        torch.cuda.empty_cache()
        if len(audios) > 1:
            self.say(f"{len(audios)} clips at once do not fit into device memory: encoding them in two batches")
            half = len(audios) // 2
            return self.launch(audios[:half]) + self.launch(audios[half:])
        self.max_frames //= 2
        self.say(f"a whole clip does not fit into device memory: encoding in chunks of {self.max_frames} frames")
        return self.launch(audios)

    def _launch(self, audios: Sequence[Tensor]) -> PendingBatch:
        latents_BCT, num_frames = self.encoder.encode_batch(self._moved(audios), chunk_frames=self._chunk(audios))
        latents_BTC = latents_BCT.transpose(1, 2).float().to(self.stored).contiguous()
        if self._copying is None:
            return PendingBatch(latents_BTC=latents_BTC.cpu(), num_frames=tuple(num_frames), arrived=None)
        host_BTC = torch.empty(latents_BTC.shape, dtype=self.stored, pin_memory=True)
        host_BTC.copy_(latents_BTC, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record(torch.cuda.current_stream(self.device))
        return PendingBatch(latents_BTC=host_BTC, num_frames=tuple(num_frames), arrived=arrived)

    def _moved(self, audios: Sequence[Tensor]) -> list[Tensor]:
        """(A, X_i) on the device; the copies are finished before the work that is launched next."""
        copy_stream: Any = nullcontext() if self._copying is None else torch.cuda.stream(self._copying)
        with copy_stream:
            moved = [audio.to(self.device, non_blocking=True) for audio in audios]
        if self._copying is not None:
            encode_stream = torch.cuda.current_stream(self.device)
            encode_stream.wait_stream(self._copying)
            for audio in moved:
                audio.record_stream(encode_stream)  # or its memory could be reused before it is read
        return [audio.T for audio in moved]

    def _chunk(self, audios: Sequence[Tensor]) -> int | None:
        """Frames per chunk for a clip that is too long for one batch; None for clips that fit."""
        frames = max(self.encoder.num_frames(len(audio)) for audio in audios)
        if frames <= self.max_frames:
            return None
        return max(self._smallest_chunk(), self.max_frames // self.encoder.frame_unit * self.encoder.frame_unit)

    def _smallest_chunk(self) -> int:
        return 4 * self.encoder.silence_frames
