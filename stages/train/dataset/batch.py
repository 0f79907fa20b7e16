"""One batch of training examples, and its division into microbatches."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.train.dataset.ot_coupling import pairing

# B clips, C latent channels, T frames: the legend of ARCHITECTURE.md.

_FRAME_TENSORS = ("latents_BCT", "noise_BCT", "real_BT", "given_BT")


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Examples of one step."""

    clip_ids: tuple[str, ...]
    crop_starts: tuple[int, ...]
    """First sample of each excerpt inside its clip."""
    latents_BCT: Tensor
    """float32; silence behind each clip."""
    noise_BCT: Tensor
    """float32, before it is paired with clips."""
    timestep_B: Tensor
    """float32, after the shift for length."""
    real_BT: Tensor
    """bool, True for the clip and its extension into silence: attended to and trained on."""
    given_BT: Tensor
    """bool, True where the network is given the latents as context (inpainting)."""
    dropped_B: Tensor
    """bool, True where the prompt is withheld (classifier-free guidance)."""
    seconds_total_B: Tensor
    """float32, duration that the network is conditioned on: of whole recordings unless `crop_seconds` is on.

    No model is conditioned on where an excerpt starts: none has a conditioner for seconds_start.
    """
    hidden: tuple[Tensor, ...]
    """Prompt hidden states of each item, (tokens, width)."""
    all_real: bool
    """No padding at all; known without a read from the device."""
    microbatch_sizes: tuple[int, ...] = ()
    """How many consecutive clips go through the network at a time; empty: all at once."""

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        return replace(self, **{name: value.to(device) for name, value in tensor_fields(self).items()})


def tensor_fields(batch: Batch) -> dict[str, Any]:
    """Fields of a batch that are tensors; prompts, a tuple of tensors, are not among them."""
    held: dict[str, Any] = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return {name: value for name, value in held.items() if isinstance(value, Tensor)}


def padded_to(batch: Batch, num_frames: int, all_real: bool = False) -> Batch:
    """The batch with padding behind its longest clip, up to `num_frames`."""
    missing = num_frames - batch.latents_BCT.shape[-1]
    longer: dict[str, Any] = {name: F.pad(getattr(batch, name), (0, missing)) for name in _FRAME_TENSORS}
    return replace(batch, **longer, all_real=all_real)


def microbatches(batch: Batch, *, paired: bool) -> list[Batch]:
    """The microbatches of a batch, each no longer than its own clips need; the batch itself if there is only one.

    Args:
        batch: on the CPU.
        paired: pair noise with clips by optimal transport. With several microbatches that is done here, over the whole
            batch that they stand for; a single one is paired later, on the device.
    """
    if len(batch.microbatch_sizes) < 2:
        return [batch]
    whole = with_paired_noise(batch) if paired else batch
    ends = [sum(batch.microbatch_sizes[: index + 1]) for index in range(len(batch.microbatch_sizes))]
    return [trimmed(clips(whole, end - count, end)) for count, end in zip(batch.microbatch_sizes, ends, strict=True)]


def with_paired_noise(batch: Batch) -> Batch:
    """The batch with its noise permuted so that noise and clips are close (see `ot_coupling`)."""
    return replace(batch, noise_BCT=batch.noise_BCT[pairing(batch.latents_BCT, batch.noise_BCT)])


def clips(batch: Batch, start: int, stop: int) -> Batch:
    """Clips `start` to `stop` of a batch."""
    held: dict[str, Any] = {field.name: getattr(batch, field.name) for field in fields(batch)}
    per_clip = {name: value for name, value in held.items() if isinstance(value, Tensor | tuple)}
    pieces: dict[str, Any] = {name: value[start:stop] for name, value in per_clip.items()}
    return replace(batch, **{**pieces, "microbatch_sizes": ()})


def trimmed(batch: Batch) -> Batch:
    """The batch without frames behind its longest clip."""
    longest = int(batch.real_BT.sum(dim=1).max())
    shorter: dict[str, Any] = {name: getattr(batch, name)[..., :longest] for name in _FRAME_TENSORS}
    return replace(batch, **shorter, all_real=bool(batch.real_BT[:, :longest].all()))
