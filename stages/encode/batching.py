"""Batches of clips for the autoencoder, by length and device memory.

Batches follow from the shard group and the device alone, so a run that was stopped encodes the rest in the same
batches. Silence follows every clip, so latents depend on the other clips of a batch by rounding only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from stages.models.nets.autoencoder.autoencoder import Autoencoder

MAX_BATCH_FRAMES = 4096
"""Most latent frames of a batch, padding included: enough to keep a large device busy. More is no faster."""
MIN_BATCH_FRAMES = 128
"""Least limit of a batch, however small the memory."""
DEFAULT_BATCH_FRAMES = 1024
"""Limit on a device whose memory is unknown: some 3 GiB with the largest autoencoder."""
MEMORY_SHARE = 0.4
"""Share of the device's total memory for one batch. Free memory would differ between runs."""
FUSED_TOKEN_BYTES, PLAIN_TOKEN_BYTES = 50, 120
"""Peak bytes of a token per unit of width; measured 42 to 50 in 16 bits, and 60 without fused kernels, twice that in
float32."""


def batches_of(num_frames: Sequence[int], max_frames: int = MAX_BATCH_FRAMES) -> list[list[int]]:
    """Indices of clips by batch, of similar lengths, at most `max_frames` padded; a longer clip is a batch alone."""
    batches: list[list[int]] = []
    for index in sorted(range(len(num_frames)), key=lambda index: (num_frames[index], index)):
        if batches and (len(batches[-1]) + 1) * num_frames[index] <= max_frames:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def max_batch_frames(encoder: Autoencoder, device: torch.device, *, fused: bool) -> int:
    """Most latent frames of a batch for this autoencoder on this device."""
    if device.type != "cuda":
        return DEFAULT_BATCH_FRAMES
    memory = torch.cuda.get_device_properties(device).total_memory
    return batch_frames_for_memory(int(MEMORY_SHARE * memory), encoder, fused=fused)


def batch_frames_for_memory(num_bytes: int, encoder: Autoencoder, *, fused: bool) -> int:
    """Most latent frames of a batch in this much memory, between MIN_BATCH_FRAMES and MAX_BATCH_FRAMES."""
    config = encoder.encoder.downsampling.config
    frame_bytes = config.group * config.width * (FUSED_TOKEN_BYTES if fused else PLAIN_TOKEN_BYTES)
    return max(MIN_BATCH_FRAMES, min(MAX_BATCH_FRAMES, num_bytes // frame_bytes))
