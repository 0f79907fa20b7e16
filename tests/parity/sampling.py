"""Cases of sampling: `sample_*`, from recorded noise to latents."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from stages.models.nets.dit.guidance import Guidance, guided_velocity
from stages.models.nets.dit.samplers import SAMPLERS, generation_frames, generation_mask, sampling_schedule
from tests.parity.conditioning import conditioner, conditioning
from tests.parity.frame import Case, Comparison, Family, checks, compare, exact
from tests.parity.transformer import attending, denoiser, negative_context, value_zeroing_attention


@checks(r"sample_.*")
@torch.no_grad()
def sampled(family: Family, case: Case) -> Iterator[Comparison]:
    seconds, noise = case.params["seconds_total"], case.tensors["noise"]
    sizes = family.weights.sizes
    rates = sizes.sample_rate_hz, sizes.downsampling_ratio
    num_frames = generation_frames(seconds, *rates, sizes.max_samples)
    yield exact("noise (frames)", torch.tensor(num_frames), torch.tensor(noise.shape[-1]))
    schedule = sampling_schedule(case.params["steps"], torch.full((len(noise),), num_frames))
    padding = None
    if case.has("padding_mask"):
        padding = generation_mask(seconds, num_frames, *rates)
        yield compare(case, "padding_mask", padding)
        yield compare(case, "schedule", schedule)
    else:
        yield compare(case, "schedule", schedule[0])
    with _adapted(family, case.params), attending(denoiser(family), value_zeroing_attention):
        latents = _latents(family, case, schedule, padding)
    yield compare(case, "latents", latents, where=None if padding is None else padding[:, None])


def _latents(family: Family, case: Case, schedule: Tensor, padding: Tensor | None) -> Tensor:
    made = conditioning(family, case.params["prompts"], case.params["seconds_total"])
    negative = case.params["negative_prompts"]
    negative_context_BSE = negative_context(family, negative, made) if negative else None
    guidance = Guidance(scale=case.params["cfg_scale"])

    def velocity(x: Tensor, timestep: Tensor) -> Tensor:
        return guided_velocity(
            denoiser(family),
            x,
            timestep,
            made,
            guidance,
            negative_context_BSE=negative_context_BSE,
            padding_mask_BT=padding,
        )

    return SAMPLERS[case.params["sampler"]](velocity, case.tensors["noise"], schedule)


@contextmanager
def _attached(family: Family, file: str, strength: float) -> Iterator[None]:
    from stages.adapters.adapter_file import read
    from stages.adapters.attach import attach

    stored = read(family.folder / file)
    adapter = attach((denoiser(family), conditioner(family)), stored.spec)
    try:
        adapter.load(stored.tensors, file)
        adapter.set_strength(strength)
        yield
    finally:
        adapter.detach()


def _adapted(family: Family, params: Any) -> Any:
    if params["adapter_file"] is None:
        return nullcontext()
    return _attached(family, params["adapter_file"], params["strength"])
