"""Which clips go through the autoencoder together.

It follows from the shard group and the device alone, so a run that was stopped encodes what is left in the same
company; and a clip's latents depend on its company by rounding only, as silence follows every clip.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from stages.models.nets.autoencoder.autoencoder import Autoencoder

MOST_FRAMES = 4096
"""Of a batch, padding included: what keeps a large device busy. More is no faster."""
LEAST_FRAMES = 128
"""Of a batch, however small the memory."""
UNKNOWN_FRAMES = 1024
"""Of a batch on a device that does not say how much memory it has: some 3 GiB with the largest autoencoder."""
MEMORY_SHARE = 0.4
"""Of the device's whole memory, for one batch: the free part would differ from one start to the next."""
FUSED_BYTES, PLAIN_BYTES = 50, 120
"""Of a token per unit of width, at the peak; measured 42 to 50 in 16 bits, and 60 without fused kernels, which float32
doubles."""


def batches_of(num_frames: Sequence[int], most_frames: int = MOST_FRAMES) -> list[list[int]]:
    """Places of clips by batch, like with like, at most `most_frames` together; a longer clip is a batch of its own."""
    batches: list[list[int]] = []
    for place in sorted(range(len(num_frames)), key=lambda place: (num_frames[place], place)):
        if batches and (len(batches[-1]) + 1) * num_frames[place] <= most_frames:
            batches[-1].append(place)
        else:
            batches.append([place])
    return batches


def frames_at_once(encoder: Autoencoder, device: torch.device, *, fused: bool) -> int:
    """How many frames of this autoencoder a batch may hold on this device."""
    if device.type != "cuda":
        return UNKNOWN_FRAMES
    memory = torch.cuda.get_device_properties(device).total_memory
    return frames_within(int(MEMORY_SHARE * memory), encoder, fused=fused)


def frames_within(num_bytes: int, encoder: Autoencoder, *, fused: bool) -> int:
    """The same for so much memory, between LEAST_FRAMES and MOST_FRAMES."""
    config = encoder.encoder.downsampling.config
    frame_bytes = config.group * config.width * (FUSED_BYTES if fused else PLAIN_BYTES)
    return max(LEAST_FRAMES, min(MOST_FRAMES, num_bytes // frame_bytes))
