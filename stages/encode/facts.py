"""Facts of an encode artifact, whether its latents are encoded or imported. Light: standard library only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from stages.contract import Weights
from stages.encode.stage import EncodeParams, ImportParams
from stages.records import EncodedClip

if TYPE_CHECKING:
    from cache.location import Location


def facts(
    params: EncodeParams | ImportParams,
    ingested: Mapping[str, object],
    rows: Sequence[EncodedClip],
    silence: Location,
    encoded: set[str],
    num_prompts_encoded: int,
    weights: Weights,
) -> dict[str, object]:
    """Facts of the receipt, which later stages and `status` read without opening the manifest.

    Args:
        ingested: the facts of ingest, or those of an imported folder.
        silence: location of the latents of silence.
        encoded: keys of the latents that this run encoded.
    """
    made = sum(row.item_key in encoded for row in rows)
    kept = (
        *("window_samples", "window_frames", "duration_seconds", "total_seconds", "num_clips", "dataset"),
        *("trigger_phrase", "skipped"),
    )
    return {
        **{name: ingested[name] for name in kept if name in ingested},
        "num_encoded": made,
        "num_reused": len(rows) - made,
        "num_prompts": len({row.prompt_key for row in rows}),
        "num_prompts_encoded": num_prompts_encoded,
        "latent_format": params.latent_format,
        "latent_dtype": params.latent_dtype,
        "latent_channels": weights.sizes.latent_channels,
        "num_frames": sum(row.num_frames for row in rows),
        "silence": asdict(silence),
    }
