"""Decides what would run for a recipe, and why, from names and receipts alone. Light: no manifest is read."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from cache import run_metadata
from cache.fingerprint import fingerprint
from cache.receipt import Receipt
from cache.registry import Registry
from cache.shards import formats
from cache.store import Store
from pipeline.plan.changed_clips import with_changed_clips
from pipeline.plan.changes import EVICTED, changes, miss_reason, record_of
from pipeline.plan.missing_files import ON_DEMAND_STAGE, with_missing_files, with_prepared_audio
from pipeline.plan.stage_run import Plan, StageRun, State, scratch_folder
from pipeline.request.recipe import Recipe
from pipeline.request.resolve import ResolvedInputs
from stages.contract import Stage
from stages.encode.stage import item_key
from stages.ingest.effective_limits import with_effective_limits
from stages.ingest.file_types import READABLE, suffix
from stages.ingest.stage import audio_params
from stages.plural import moment, pluralized

__all__ = ["Plan", "StageRun", "State", "plan"]

SAVED_LATENTS = "pieces"
"""Folder of `stages.encode.partial_shards.PartialLatents`, whose module imports numpy."""


def plan(recipe: Recipe, store: Store, resolved: ResolvedInputs, last: str = "train") -> Plan:
    """Decide for each stage up to `last`: hit, resume or miss, and the reason."""
    runs: list[StageRun] = []
    upstream: dict[str, str | None] = {"source": resolved.source.fingerprint}
    for name in _stage_names(recipe, last):
        run = stage_run(stage_named(name), recipe, store, resolved, upstream)
        if name == "encode" and run.state is not State.HIT and run.fingerprint:
            run = replace(run, reason=f"{run.reason}; {clips_to_encode(run, recipe, store, resolved)}")
        if name == "ingest":
            run = with_changed_clips(run, recipe, store, resolved)
        runs.append(run)
        upstream = {name: run.fingerprint}
    return Plan(runs=tuple(with_prepared_audio(runs, store, last)))


def _stage_names(recipe: Recipe, last: str) -> list[str]:
    if last != "train":
        return ["ingest", "encode"] if last == "encode" else ["ingest"]
    return ["ingest", "encode", "train"] if recipe.values["pre_encode"] else ["ingest", "train"]


def stage_named(name: str) -> Stage[Any]:
    """A stage's declaration; its code is not imported."""
    declaration: Stage[Any] = import_module(f"stages.{name}.stage").STAGE
    return declaration


def clips_to_encode(run: StageRun, recipe: Recipe, store: Store, resolved: ResolvedInputs) -> str:
    """How many of the clips have no latents in the store yet, nor saved by a stopped run, by content."""
    audio, autoencoder = audio_params(recipe.ingest_params()), run.components["autoencoder"]
    clips = (member for member in resolved.source.members if suffix(member.name) in READABLE)
    digests = {member.digest for member in clips if member.digest}
    keys = {item_key(digest, 0, audio, run.params, autoencoder) for digest in digests}
    wanted = str(run.params.latent_format)
    there = stored_keys(store, keys, wanted)
    others = {key for other in formats() if other != wanted for key in stored_keys(store, keys - there, other)}
    missing = len(keys - there - others - _saved_keys(run, store, keys))
    copied = f", {len(others):,} copied from another format" if others else ""
    return f"{missing:,} of {pluralized(len(keys), 'clip')} to encode{copied}"


def _saved_keys(run: StageRun, store: Store, keys: Collection[str]) -> set[str]:
    """The keys whose latents a stopped run saved one by one: most runs stop before their first shard is full."""
    pieces = scratch_folder(run, store) / SAVED_LATENTS
    return {key for key in keys if (pieces / f"{key}.npy").is_file()}


def stored_keys(store: Store, keys: Collection[str], format: str) -> set[str]:
    """The keys whose latents lie in a shard of this format that is there."""
    latents = store.shared / "latents"
    locations = Registry(latents, format).find(keys) or {}
    exists = {shard: (latents / shard).is_file() for shard in {location.shard for location in locations.values()}}
    return {key for key, location in locations.items() if exists[location.shard]}


def stage_run(
    stage: Stage[Any], recipe: Recipe, store: Store, resolved: ResolvedInputs, upstream: Mapping[str, str | None]
) -> StageRun:
    """One stage of the plan.

    Args:
        upstream: fingerprints of what the stage reads, by name; None where one is unknown.
    """
    digests = resolved.weights.digests if resolved.weights else {}
    components = _components(stage, recipe)
    known = all(upstream.values()) and all(name in digests for name in components)
    known &= not (stage.name == "train" and resolved.why_no_lora)
    run = StageRun(
        stage=stage,
        params=stage_params(stage.name, recipe, resolved),
        inputs={name: value or "" for name, value in upstream.items()},
        components={name: digests.get(name, "") for name in components},
        fingerprint=None,
        identity=None,
        state=State.MISS,
        reason="" if known else _why_unknown(stage.name, resolved, upstream),
    )
    return with_state(run, store) if known else run


def _why_unknown(name: str, resolved: ResolvedInputs, upstream: Mapping[str, str | None]) -> str:
    """Why a stage's result has no fingerprint yet."""
    if "source" in upstream and resolved.why_no_source:
        return resolved.why_no_source
    lora = resolved.why_no_lora if name == "train" else ""
    return resolved.why_no_weights or lora or "an earlier stage must run first"


def _components(stage: Stage[Any], recipe: Recipe) -> tuple[str, ...]:
    """The weights a stage reads; a training on prepared audio reads the encoders too, which encode does otherwise."""
    if stage.name == "train" and not recipe.values["pre_encode"]:
        return (*stage.components, "autoencoder", "text_encoder")
    return stage.components


def stage_params(name: str, recipe: Recipe, resolved: ResolvedInputs) -> Any:
    """The params of one stage."""
    if name == "ingest":
        return with_effective_limits(recipe.ingest_params(), resolved.source.members)
    return recipe.encode_params() if name == "encode" else recipe.train_params(resolved.lora_digest)


def with_state(run: StageRun, store: Store) -> StageRun:
    """The run with its fingerprint, identity, state and reason, from what the store holds."""
    name, record = run.stage.name, run.record
    left_out = run.stage.excluded_from_identity(run.params)
    kept = {key: value for key, value in record["params"].items() if key not in left_out}
    run = replace(
        run,
        fingerprint=fingerprint(f"artifact {name}", record),
        identity=fingerprint(f"run {name}", {**record, "params": kept}),
    )
    receipt = store.find(name, str(run.fingerprint))
    if receipt is not None:
        hit = replace(run, state=State.HIT, reason=f"finished {moment(receipt.finished)}")
        return hit if name == ON_DEMAND_STAGE else with_missing_files(hit, store)
    return _unfinished(run, store)


def _unfinished(run: StageRun, store: Store) -> StageRun:
    """The run as a resume where an interrupted or a shorter finished run can be continued, else as a miss."""
    scratch, earlier = scratch_folder(run, store), store.receipts(run.stage.name)
    interrupted = has_files(scratch)
    shorter = [one for one in earlier if one.identity == run.identity and _can_be_extended(one, run)]
    refused = _refusal(scratch, store)
    if interrupted:
        return replace(run, state=State.RESUME, reason=refused or "stopped earlier; continues from there")
    if shorter:
        return replace(run, state=State.RESUME, reason=_continuation(shorter, run))
    reason = refused or miss_reason(run.record, earlier) + _retraining(run, earlier)
    return replace(run, state=State.MISS, reason=reason, changed=bool(earlier) and reason != EVICTED)


def _refusal(scratch: Path, store: Store) -> str:
    """Why there is no result, if the last run stopped because of problems in the data."""
    problems = run_metadata.read(store, scratch.name).num_problems if scratch.is_dir() else 0
    if not problems:
        return ""
    return f"refused earlier for {pluralized(problems, 'problem')} in its data; the other clips stay prepared"


def _retraining(run: StageRun, earlier: Sequence[Receipt]) -> str:
    """Why a training cannot continue one that differs in its number of steps alone."""
    if "number_of_steps" not in run.record["params"]:
        return ""
    if "number_of_steps" in run.stage.excluded_from_identity(run.params):
        return ""
    only_steps = any(_only_steps(changes(record_of(receipt), run.record)) for receipt in earlier)
    return f"; trained anew, as every step of a {run.params.schedule} schedule depends on it" if only_steps else ""


def _only_steps(found: Sequence[str]) -> bool:
    return len(found) == 1 and found[0].startswith("number_of_steps ")


def _can_be_extended(receipt: Receipt, run: StageRun) -> bool:
    """Whether a finished run of the same identity has no more steps than this one."""
    return bool(receipt.params.get("number_of_steps", 0) <= getattr(run.params, "number_of_steps", 0))


def _continuation(shorter: Sequence[Receipt], run: StageRun) -> str:
    longest = max(shorter, key=lambda receipt: int(receipt.params["number_of_steps"]))
    return f"continues the same run ({', '.join(changes(record_of(longest), run.record))})"


def has_files(directory: Path) -> bool:
    """Whether an unfinished run left anything to continue from."""
    return directory.is_dir() and any(path.is_file() for path in directory.rglob("*"))
