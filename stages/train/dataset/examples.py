"""Training examples: clips, prompts and sampler of either kind of artifact, put together into batches of any step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from cache.shard_pool import ShardPool
from stages.errors import UnsupportedModelConfig
from stages.model_config import ModelConfig
from stages.models.load_weights import load_autoencoder
from stages.models.nets.config_checks import damage_in_words
from stages.models.nets.dit.timestep_shift import shifted
from stages.train.dataset.batch import Batch
from stages.train.dataset.clips import Clips, LiveLatents, StoredLatents, excerpt_seconds
from stages.train.dataset.collate import Excerpts, batch_of_step, excerpts_of_step
from stages.train.dataset.prompt_embeddings import PromptEmbeddings, embed_prompts, read_prompt_embeddings
from stages.train.dataset.sampler import FrameBudgetSampler, Sampler, sampler_for
from stages.train.job import Job, network_dtype
from stages.train.rng import StepRng
from stages.train.stage import TrainParams

_SUPPORTED = {
    "diffusion_objective": "rectified_flow",
    "use_effective_length_for_schedule": True,
    "mask_padding_attention": True,
}
"""Options of the config's diffusion section, with the only value that can be trained."""


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Batches of any step; steps may be requested in any order."""

    clips: Clips
    prompts: PromptEmbeddings
    params: TrainParams
    shift_options: Mapping[str, Any] | None

    @property
    def rng(self) -> StepRng:
        """Source of every random draw."""
        return StepRng(self.params.seed)

    @cached_property
    def sampler(self) -> Sampler:
        """Which clips each step sees."""
        return sampler_for(self.clips, self.params, self.rng)

    def batch(self, step: int) -> Batch:
        """The batch of a step, counted from 0: all that one update learns from, in one or several microbatches."""
        return batch_of_step(step, self.clips, self.prompts, self.sampler, self.params, self.rng, self.shift)

    def excerpts(self, step: int) -> Excerpts:
        """Clips and crops of a step's batch, without reading them."""
        return excerpts_of_step(step, self.clips, self.sampler, self.params, self.rng)

    def shift(self, timestep_B: Tensor, num_frames_B: Tensor) -> Tensor:
        """Timesteps moved towards noise for long clips."""
        return shifted(timestep_B, num_frames_B, self.shift_options)

    def clips_and_starts(self, step: int) -> tuple[list[str], list[int]]:
        """Clip ids and first samples of a step's batch, without reading it."""
        excerpts = self.excerpts(step)
        ids = [self.clips.entries[index].clip_id for index in excerpts.clips]
        return ids, [start * self.clips.samples_per_unit for start in excerpts.starts]


def load_examples(job: Job) -> Examples:
    """Examples of the encode artifact, or of prepared audio; prints which params have no effect on them.

    Raises:
        UnsupportedModelConfig: the model's config asks for an objective that cannot be trained here.
    """
    options = shift_options(job.weights.config)
    clips, prompts = load_stored_examples(job) if job.params.pre_encode else load_live_examples(job)
    examples = Examples(clips=clips, prompts=prompts, params=job.params, shift_options=options)
    if isinstance(examples.sampler, FrameBudgetSampler) and (note := examples.sampler.budget_note()):
        job.work.say(note)
    for line in options_without_effect(clips, job.params):
        job.work.say(line)
    return examples


def options_without_effect(clips: Clips, params: TrainParams) -> Iterator[str]:
    """A line for each option that changes nothing with these clips."""
    if params.crops_per_clip > 1 and not bool((clips.sizes > clips.window).any()):
        yield f"crops_per_clip {params.crops_per_clip} has no effect: no clip is longer than the crop length"
    if params.crop_seconds:
        entries = enumerate(clips.entries)
        if not any(excerpt_seconds(clips, index) < entry.seconds_total for index, entry in entries):
            yield "crop_seconds on has no effect: every excerpt is as long as its recording"


def load_stored_examples(job: Job) -> tuple[Clips, PromptEmbeddings]:
    """Stored latents and prompt embeddings: neither autoencoder nor text encoder is loaded."""
    shared, kind = job.work.shared, job.artifact.facts["latent_format"]
    latents, prompts = (ShardPool(shared / name, kind, job.work.say) for name in ("latents", "prompts"))
    return StoredLatents(job.artifact, latents, job.model), read_prompt_embeddings(job.artifact, prompts, job.device)


def load_live_examples(job: Job) -> tuple[Clips, PromptEmbeddings]:
    """Prepared audio, encoded when it is read; prompts are embedded now, and the text encoder is freed."""
    dtype = network_dtype(job, "autoencoder", job.params.autoencoder_precision)
    autoencoder = load_autoencoder(job.weights, job.device, dtype)
    clips = LiveLatents(job.artifact, job.work.shared, job.model, autoencoder)
    return clips, embed_prompts((row.prompt for row in clips.rows), job.weights, job.device)


def shift_options(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The config's shift of training timesteps. Raises: UnsupportedModelConfig for another objective."""
    diffusion = ModelConfig(config).diffusion
    for name, only in _SUPPORTED.items():
        if diffusion.get(name, only) != only:
            raise UnsupportedModelConfig("diffusion", f"{name} is {diffusion[name]!r}, only {only!r} can be trained")
    options: Mapping[str, Any] | None = diffusion.get("distribution_shift_options")
    with damage_in_words("diffusion"):  # of a damaged setting the first step would come to know
        if not shifted(torch.tensor([0.5]), torch.tensor([300]), options).isfinite().all():
            raise ValueError(f"distribution_shift_options = {options} give no finite timestep")
    return options
