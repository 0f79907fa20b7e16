"""Finished results whose shared files are gone: the stage runs again, and makes only what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cache.shared_files import missing_shared_files
from cache.store import Store
from pipeline.plan.stage_run import StageRun, State

ON_DEMAND = "ingest"
"""Its prepared audio may be dropped (`gc --prepared`) and is only missed when somebody reads it."""


def mended(run: StageRun, store: Store) -> StageRun:
    """A hit that names shared files which are gone becomes a resume; any other stays as it is."""
    if run.state is not State.HIT or not (gone := lost_files(run, store)):
        return run
    return replace(run, state=State.RESUME, reason=in_words(gone))


def lost_files(run: StageRun, store: Store) -> list[str]:
    """Shared files that the finished result of a run names and that are gone."""
    assert run.fingerprint is not None, "asked about finished results only"
    return missing_shared_files(store.directory(run.stage.name, run.fingerprint), store.shared)


def in_words(gone: Sequence[str]) -> str:
    """`shard latents/1db6….parquet is gone`, or how many are."""
    kind = "prepared clip" if gone[0].startswith("prepared/") else "shard"
    if len(gone) == 1:
        return f"{kind} {gone[0]} is gone or of another size; only what it held is made again"
    return (
        f"{len(gone)} {kind}s are gone or of another size ({gone[0]} is the first); only what they held is made again"
    )


def with_prepared(runs: Sequence[StageRun], store: Store, last: str) -> list[StageRun]:
    """Have ingest make prepared audio again where a later stage will read it, or where ingest itself is asked for."""
    reads = [run for run in runs if run.stage.name != ON_DEMAND and ON_DEMAND in run.inputs]
    if last != ON_DEMAND and all(run.state is State.HIT for run in reads):
        return list(runs)
    return [mended(run, store) if run.stage.name == ON_DEMAND else run for run in runs]
