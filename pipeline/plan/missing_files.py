"""Finished results whose shared files are missing: the stage runs again and makes only those.

Light: standard library only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cache.shared_files import missing_shared_files
from cache.store import Store
from pipeline.plan.stage_run import StageRun, State

ON_DEMAND_STAGE = "ingest"
"""The stage whose shared files (prepared audio) may be removed by `gc --prepared` and are made again when read."""


def with_missing_files(run: StageRun, store: Store) -> StageRun:
    """The run, as a resume if it is a hit whose shared files are missing."""
    if run.state is not State.HIT or not (missing := missing_files(run, store)):
        return run
    return replace(run, state=State.RESUME, reason=_reason(missing))


def missing_files(run: StageRun, store: Store) -> list[str]:
    """Shared files that the finished result of a run references and that are missing."""
    assert run.fingerprint is not None, "only finished results have files"
    return missing_shared_files(store.directory(run.stage.name, run.fingerprint), store.shared)


def _reason(missing: Sequence[str]) -> str:
    """Such as `shard latents/1db6….parquet is gone`, or how many are."""
    kind = "prepared clip" if missing[0].startswith("prepared/") else "shard"
    which = f"{kind} {missing[0]} is gone or of another size; only what it held is made again"
    if len(missing) > 1:
        first = f"({missing[0]} is the first)"
        which = f"{len(missing)} {kind}s are gone or of another size {first}; only what they held is made again"
    return which


def with_prepared_audio(runs: Sequence[StageRun], store: Store, last: str) -> list[StageRun]:
    """The runs, with ingest as a resume where prepared audio is missing that a later stage, or the user, asks for."""
    readers = [run for run in runs if run.stage.name != ON_DEMAND_STAGE and ON_DEMAND_STAGE in run.inputs]
    if last != ON_DEMAND_STAGE and all(run.state is State.HIT for run in readers):
        return list(runs)
    return [with_missing_files(run, store) if run.stage.name == ON_DEMAND_STAGE else run for run in runs]
