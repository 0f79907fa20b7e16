"""Prompt and noise to audio: conditioning, sampler, decoder.

B clips, C latent channels, T frames, X samples: the legend of ARCHITECTURE.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from stages.generate.adapted_model import LoadedModel
from stages.generate.settings import Generation, SamplerSettings
from stages.models.nets.dit.conditioning import Conditioning
from stages.models.nets.dit.guidance import Guidance, guided_velocity
from stages.models.nets.dit.samplers import (
    SAMPLERS,
    Sampler,
    generation_frames,
    generation_mask,
    ping_pong,
    sampling_schedule,
)

Progress = Callable[[int, int], None]
"""Called after each step with the steps done and their number."""


@torch.no_grad()
def generate(
    model: LoadedModel, wanted: Sequence[Generation], progress: Progress = lambda done, total: None
) -> list[Tensor]:
    """Audio (2, X_i) of each clip, float32 on the CPU, in [-1, 1]; one batch.

    A clip's noise comes from its own seed and does not depend on the rest of the batch, but its length in frames does:
    the longest clip decides. Source of lengths, masks and schedule: the public inference code's recorded behaviour.

    Args:
        wanted: clips with the same sampler, steps and cfg.

    Raises:
        KeyError: the model's objective is neither of the two that are known.
        ValueError: clips whose sampler settings differ.
    """
    settings = {clip.sampling(model.objective) for clip in wanted}
    if len(settings) != 1:
        raise ValueError("clips of one batch must have the same sampler, steps and cfg")
    sizes, seconds = model.weights.sizes, [clip.seconds for clip in wanted]
    rates = sizes.sample_rate_hz, sizes.downsampling_ratio
    num_frames = generation_frames(seconds, *rates, sizes.max_samples)
    generators = [torch.Generator().manual_seed(clip.seed) for clip in wanted]
    mask_BT = generation_mask(seconds, num_frames, *rates)
    latents_BCT = _latents(model, wanted, settings.pop(), mask_BT, generators, progress)
    return [
        _audio(model, latents_CT, mask_T, clip.seconds, generator)
        for latents_CT, mask_T, clip, generator in zip(latents_BCT, mask_BT, wanted, generators, strict=True)
    ]


def _latents(
    model: LoadedModel,
    wanted: Sequence[Generation],
    settings: SamplerSettings,
    mask_BT: Tensor,
    generators: Sequence[torch.Generator],
    progress: Progress,
) -> Tensor:
    """(B, C, T) float32, sampled from each clip's own noise."""
    conditioning, negative_BSE = conditioning_of(model, wanted)
    mask_BT = mask_BT.to(model.device)
    done = 0

    def velocity(noised_BCT: Tensor, timestep_B: Tensor) -> Tensor:
        nonlocal done
        predicted = guided_velocity(
            model.denoiser,
            noised_BCT,
            timestep_B,
            conditioning,
            Guidance(scale=settings.cfg),
            negative_context_BSE=negative_BSE,
            padding_mask_BT=mask_BT,
        )
        done += 1
        progress(done, settings.steps * EVALUATIONS.get(settings.sampler, 1))
        return predicted.float()

    num_frames_B = torch.full((len(wanted),), mask_BT.shape[1], device=model.device)
    schedule = sampling_schedule(settings.steps, num_frames_B)
    noise_BCT = _normal((model.weights.sizes.latent_channels, mask_BT.shape[1]), generators).to(model.device)
    return _sampler(settings.sampler, generators)(velocity, noise_BCT, schedule)


EVALUATIONS = {"rk4": 4}
"""Evaluations of the network in a step, where that is not one."""


def _sampler(name: str, generators: Sequence[torch.Generator]) -> Sampler:
    """The sampler; noise that it adds itself comes from each clip's generator."""
    if name != "pingpong":
        return SAMPLERS[name]
    return partial(ping_pong, fresh_noise=lambda like_BCT: _normal(like_BCT.shape[1:], generators).to(like_BCT))


def conditioning_of(model: LoadedModel, wanted: Sequence[Generation]) -> tuple[Conditioning, Tensor | None]:
    """Conditioning of the prompts and durations, and the context of the negative prompts if there are any."""
    seconds_B = torch.tensor([clip.seconds for clip in wanted], dtype=torch.float32)
    conditioning = _conditioned(model, [clip.prompt for clip in wanted], seconds_B, learned_padding=True)
    if all(clip.negative_prompt is None for clip in wanted):
        return conditioning, None
    negative = _conditioned(model, [clip.negative_prompt or "" for clip in wanted], seconds_B, learned_padding=False)
    return conditioning, negative.context_BSE


def _conditioned(
    model: LoadedModel, prompts: Sequence[str], seconds_B: Tensor, *, learned_padding: bool
) -> Conditioning:
    hidden = [states.to(model.device) for states in model.text_encoder.hidden_states(prompts)]
    prompts_BPE = model.conditioner.padded_prompts(hidden, learned_padding=learned_padding)
    return model.conditioner(prompts_BPE, seconds_B)


def _normal(shape_CT: Sequence[int], generators: Sequence[torch.Generator]) -> Tensor:
    """(B, C, T) standard normal values, drawn on the CPU so that a seed means the same on every device."""
    return torch.stack([torch.randn(tuple(shape_CT), generator=generator) for generator in generators])


def _audio(
    model: LoadedModel, latents_CT: Tensor, mask_T: Tensor, seconds: float, generator: torch.Generator
) -> Tensor:
    """(2, X): silent beyond the valid frames, clamped, cut to the duration."""
    sizes = model.weights.sizes
    audio_AX = model.decoded(latents_CT[None], generator)[0].cpu()
    mask_X = mask_T.repeat_interleave(sizes.downsampling_ratio)
    length = min(int(seconds * sizes.sample_rate_hz), len(mask_X))
    return (audio_AX[:, :length] * mask_X[:length]).clamp(-1, 1)
