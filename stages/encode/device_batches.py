"""The autoencoder on a device that works while this process reads and writes.

B clips of a batch, T frames, C latent channels, A audio channels, L samples.
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
class Launched:
    """A batch the device was given; its latents are on their way to this process's memory."""

    latents_BTC: Tensor
    num_frames: tuple[int, ...]
    arrived: torch.cuda.Event | None
    """None where nothing is under way: the device is the CPU."""

    def latents(self) -> list[np.ndarray]:
        """(frames, channels) of each clip, in the storage precision; waits for them."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return [
            latents_TC[:frames].numpy() for latents_TC, frames in zip(self.latents_BTC, self.num_frames, strict=True)
        ]


class OnDevice:
    """Takes batches of clips and hands back latents, without waiting for the device in between.

    Audio goes there on a stream of its own, beside the batch that is being encoded.

    Args:
        stored: storage precision of the latents, `float16` or `float32`.
        most_frames: of a batch; a longer clip is encoded in chunks of that many frames, equal up to rounding.
        say: told when memory does not suffice.
    """

    def __init__(self, encoder: Autoencoder, stored: str, most_frames: int, say: Callable[[str], None]) -> None:
        self.encoder, self.stored, self.most_frames, self.say = encoder, dtype_named(stored), most_frames, say
        self.device = next(encoder.parameters()).device
        self._copying = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None

    def room(self, shape: tuple[int, int]) -> Tensor:
        """Where to put a clip's samples (L, A), float32, so that the device can fetch them by itself.

        Memory of clips that are through is used again.
        """
        return torch.empty(shape, dtype=torch.float32, pin_memory=self._copying is not None)

    @torch.inference_mode()
    def launch(self, audios: Sequence[Tensor]) -> list[Launched]:
        """Begin to encode clips (L_i, A) in one batch; in several, which is said, where memory does not suffice."""
        try:
            return [self._launch(audios)]
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or (len(audios) == 1 and self.most_frames <= self._smallest_chunk()):
                raise
        torch.cuda.empty_cache()
        if len(audios) > 1:
            self.say(f"device memory is short for {len(audios)} clips at once: encoding them in two batches")
            half = len(audios) // 2
            return self.launch(audios[:half]) + self.launch(audios[half:])
        self.most_frames //= 2
        self.say(f"device memory is short for a whole clip: encoding in chunks of {self.most_frames} frames")
        return self.launch(audios)

    def _launch(self, audios: Sequence[Tensor]) -> Launched:
        latents_BCT, num_frames = self.encoder.encode_batch(self._moved(audios), chunk_frames=self._chunk(audios))
        latents_BTC = latents_BCT.transpose(1, 2).float().to(self.stored).contiguous()
        if self._copying is None:
            return Launched(latents_BTC=latents_BTC.cpu(), num_frames=tuple(num_frames), arrived=None)
        held_BTC = torch.empty(latents_BTC.shape, dtype=self.stored, pin_memory=True)
        held_BTC.copy_(latents_BTC, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record(torch.cuda.current_stream(self.device))
        return Launched(latents_BTC=held_BTC, num_frames=tuple(num_frames), arrived=arrived)

    def _moved(self, audios: Sequence[Tensor]) -> list[Tensor]:
        """(A, L_i) on the device, once what is launched next gets there."""
        beside: Any = nullcontext() if self._copying is None else torch.cuda.stream(self._copying)
        with beside:
            moved = [audio.to(self.device, non_blocking=True) for audio in audios]
        if self._copying is not None:
            here = torch.cuda.current_stream(self.device)
            here.wait_stream(self._copying)
            for audio in moved:
                audio.record_stream(here)  # or its memory would be given away before it is read
        return [audio.T for audio in moved]

    def _chunk(self, audios: Sequence[Tensor]) -> int | None:
        """Frames to encode a clip in that is too long for one batch; None for clips that fit whole."""
        frames = max(self.encoder.num_frames(len(audio)) for audio in audios)
        if frames <= self.most_frames:
            return None
        return max(self._smallest_chunk(), self.most_frames // self.encoder.frame_unit * self.encoder.frame_unit)

    def _smallest_chunk(self) -> int:
        return 4 * self.encoder.silence_frames
