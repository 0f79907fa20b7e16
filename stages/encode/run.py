"""Stage `encode`: prepared audio and prompts in, latents and prompt embeddings out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from cache.location import Location
from cache.manifest import read_rows, write_rows
from cache.shard_pool import ShardPool
from stages.contract import Inputs, Outcome, Weights, Workspace
from stages.encode.encode_latents import EncodeTask, encode_latents, silence_task
from stages.encode.facts import facts
from stages.encode.prompts import embed_prompts, prompt_keys
from stages.encode.stage import EncodeParams, item_key
from stages.models.device import set_threads
from stages.prepared_audio import read_prepared_into
from stages.records import Clip, EncodedClip, PromptRow


def encode(inputs: Inputs, params: EncodeParams, work: Workspace) -> Outcome:
    """Encode each clip and each prompt that the store does not hold yet, and list them in a manifest.

    Raises:
        Stopped: a stop was requested; what is encoded is kept.
        LatentsNotFinite, PreparedAudioMissing: a clip could not be encoded.
    """
    set_threads(work.resources.threads)
    ingest, weights = inputs.artifacts["ingest"], _present(inputs.weights)
    clips = read_rows(ingest.directory / "manifest.parquet", Clip)
    keys = [
        item_key(clip.digest, clip.crop_start, ingest.facts["audio_params"], params, weights.digests["autoencoder"])
        for clip in clips
    ]
    latents = ShardPool(work.shared / "latents", params.latent_format, work.say)
    tasks = [silence_task(params, weights), *clip_tasks(clips, keys, weights, work)]
    located, encoded = encode_latents(latents, tasks, params, weights, work)
    pool = ShardPool(work.shared / "prompts", params.latent_format, work.say)
    prompts = embed_prompts(pool, (clip.prompt for clip in clips), weights, work)
    rows = [
        manifest_row(clip, located[key], prompt_keys(weights)(clip.prompt), weights)
        for clip, key in zip(clips, keys, strict=True)
    ]
    write_rows(work.directory / "manifest.parquet", rows, EncodedClip)
    write_rows(work.directory / "prompts.parquet", prompts.rows, PromptRow)
    return Outcome(
        facts=facts(params, ingest.facts, rows, located[tasks[0].key], encoded, prompts.num_encoded, weights)
    )


def clip_tasks(clips: Sequence[Clip], keys: Sequence[str], weights: Weights, work: Workspace) -> list[EncodeTask]:
    """One task per distinct key: two files with the same bytes are encoded once."""
    ratio = weights.sizes.downsampling_ratio
    tasks: dict[str, EncodeTask] = {}
    for clip, key in zip(clips, keys, strict=True):
        tasks[key] = tasks.get(key) or EncodeTask(
            key=key,
            clip_id=clip.clip_id,
            num_frames=-(-clip.num_samples // ratio),
            shape=(clip.num_samples, 2),
            fill=partial(read_prepared_into, work.shared / clip.audio),
        )
    return list(tasks.values())


def manifest_row(clip: Clip, location: Location, prompt: str, weights: Weights) -> EncodedClip:
    """A clip's row of manifest.parquet. Only valid frames are stored."""
    return EncodedClip(
        clip_id=clip.clip_id,
        item_key=location.item_key,
        prompt_key=prompt,
        shard=location.shard,
        row=location.row,
        num_frames=location.num_frames,
        num_valid_frames=location.num_frames,
        seconds_start=clip.crop_start // weights.sizes.sample_rate_hz,
        seconds_total=clip.seconds_total,
        prompt=clip.prompt,
        checksum=location.checksum,
    )


def _present(weights: Weights | None) -> Weights:
    assert weights is not None, "encode is planned with weights"
    return weights
