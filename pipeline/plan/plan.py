"""What would run, and why: a recipe and a store in, one line per stage out. Reads names and receipts only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from cache import run_metadata
from cache.fingerprint import fingerprint
from cache.receipt import Receipt
from cache.store import Store
from pipeline.plan.missing_files import ON_DEMAND, mended, with_prepared
from pipeline.plan.stage_run import Plan, StageRun, State, scratch_of
from pipeline.request.recipe import Recipe
from pipeline.request.resolve import ResolvedInputs
from stages.contract import Stage
from stages.ingest.effective_limits import settled
from stages.plural import pluralized

__all__ = ["Plan", "StageRun", "State", "plan"]


def stage(name: str) -> Stage[Any]:
    """A stage's light declaration."""
    declared: Stage[Any] = import_module(f"stages.{name}.stage").STAGE
    return declared


def plan(recipe: Recipe, store: Store, found: ResolvedInputs, last: str = "train") -> Plan:
    """Decide each stage up to `last`: hit, resume or miss, and the reason."""
    names = ["ingest", "encode"] if last == "encode" else ["ingest"] if last == "ingest" else _training_stages(recipe)
    runs: list[StageRun] = []
    upstream: dict[str, str | None] = {"source": found.source.fingerprint}
    for name in names:
        run = stage_run(stage(name), recipe, store, found, upstream)
        if name == "encode" and run.state is not State.HIT and run.fingerprint:
            run = replace(run, reason=f"{run.reason}; {to_encode(run, recipe, store, found)}")
        runs.append(run)
        upstream = {name: run.fingerprint}
    return Plan(runs=tuple(with_prepared(runs, store, last)))


def to_encode(run: StageRun, recipe: Recipe, store: Store, found: ResolvedInputs) -> str:
    """How many of the clips have no latents in the store yet, by content."""
    from cache.registry import Registry
    from stages.encode.stage import item_key
    from stages.ingest.file_types import READABLE, suffix
    from stages.ingest.stage import audio_params

    audio, autoencoder = audio_params(recipe.ingest_params()), run.components["autoencoder"]
    digests = {member.digest for member in found.source.members if suffix(member.name) in READABLE and member.digest}
    keys = [item_key(digest, 0, audio, run.params, autoencoder) for digest in digests]
    latents = store.shared / "latents"
    known = Registry(latents / f"registry-{run.params.latent_format}.sqlite").find(keys) or {}
    here = {name: (latents / name).is_file() for name in {place.shard for place in known.values()}}
    missing = len(keys) - sum(here[place.shard] for place in known.values())
    return f"{missing:,} of {pluralized(len(keys), 'clip')} to encode"


def _training_stages(recipe: Recipe) -> list[str]:
    return ["ingest", "encode", "train"] if recipe.values["pre_encode"] else ["ingest", "train"]


def stage_run(
    declared: Stage[Any], recipe: Recipe, store: Store, found: ResolvedInputs, upstream: Mapping[str, str | None]
) -> StageRun:
    params = stage_params(declared.name, recipe, found)
    digests = found.weights.digests if found.weights else {}
    used = _components(declared, recipe)
    known = all(upstream.values()) and all(name in digests for name in used)
    known &= not (declared.name == "train" and found.why_no_lora)
    inputs = {name: value or "" for name, value in upstream.items()}
    components = {name: digests.get(name, "") for name in used}
    bare = StageRun(
        stage=declared,
        params=params,
        inputs=inputs,
        components=components,
        fingerprint=None,
        identity=None,
        state=State.MISS,
        reason="",
    )
    if not known:
        return replace(bare, reason=_why_unknown(declared.name, found, upstream))
    return looked_up(bare, store)


def _why_unknown(name: str, found: ResolvedInputs, upstream: Mapping[str, str | None]) -> str:
    """What keeps a stage's result from having a name yet."""
    if "source" in upstream and found.why_no_source:
        return found.why_no_source
    lora = found.why_no_lora if name == "train" else ""
    return found.why_no_weights or lora or "an earlier stage must run first"


def _components(declared: Stage[Any], recipe: Recipe) -> tuple[str, ...]:
    """Raw training also reads the autoencoder and the text encoder itself; cached training gets them through encode."""
    if declared.name == "train" and not recipe.values["pre_encode"]:
        return (*declared.components, "autoencoder", "text_encoder")
    return declared.components


def stage_params(name: str, recipe: Recipe, found: ResolvedInputs) -> Any:
    """The params of one stage."""
    if name == "ingest":
        return settled(recipe.ingest_params(), found.source.members)
    return recipe.encode_params() if name == "encode" else recipe.train_params(found.lora_digest)


def looked_up(bare: StageRun, store: Store) -> StageRun:
    name = bare.stage.name
    full = fingerprint(f"artifact {name}", bare.record)
    left_out = bare.stage.excluded_from_identity(bare.params)
    lasting = {key: value for key, value in bare.record["params"].items() if key not in left_out}
    identity = fingerprint(f"run {name}", {**bare.record, "params": lasting})
    receipt = store.find(name, full)
    if receipt is not None:
        hit = replace(bare, fingerprint=full, identity=identity, state=State.HIT, reason=f"finished {receipt.finished}")
        return hit if name == ON_DEMAND else mended(hit, store)
    scratch = scratch_of(replace(bare, fingerprint=full, identity=identity), store)
    started = any_file(scratch)
    earlier = store.receipts(name)
    shorter = [known for known in earlier if known.identity == identity and _is_no_longer(known, bare)]
    refused = _refused(scratch, store)
    if started or shorter:
        why = refused or "stopped earlier; goes on from there" if started else _continues(shorter, bare)
        return replace(bare, fingerprint=full, identity=identity, state=State.RESUME, reason=why)
    why = refused or reason(bare.record, earlier) + _anew(bare, earlier)
    return replace(bare, fingerprint=full, identity=identity, state=State.MISS, reason=why)


def _refused(scratch: Path, store: Store) -> str:
    """Why there is no result, where the last run ended with problems of the data."""
    problems = run_metadata.read(store, scratch.name).num_problems if scratch.is_dir() else 0
    return (
        f"refused earlier for {pluralized(problems, 'problem')} of its data; what is sound stays prepared"
        if problems
        else ""
    )


def _anew(run: StageRun, earlier: Sequence[Receipt]) -> str:
    """Why more steps do not continue a run that differs in nothing else."""
    if "number_of_steps" not in run.record["params"] or "number_of_steps" in run.stage.excluded_from_identity(
        run.params
    ):
        return ""
    only_steps = any(_only_steps(changes(_record_of(receipt), run.record)) for receipt in earlier)
    return f"; trained anew, as every step of a {run.params.schedule} schedule depends on it" if only_steps else ""


def _only_steps(found: Sequence[str]) -> bool:
    return len(found) == 1 and found[0].startswith("number_of_steps ")


def _is_no_longer(known: Receipt, run: StageRun) -> bool:
    """Whether a finished run of the same identity can be gone on with: a longer one cannot be cut."""
    return bool(known.params.get("number_of_steps", 0) <= getattr(run.params, "number_of_steps", 0))


def _continues(known: Sequence[Receipt], run: StageRun) -> str:
    longest = max(known, key=lambda receipt: int(receipt.params["number_of_steps"]))
    return f"continues the same run ({', '.join(changes(_record_of(longest), run.record))})"


def any_file(directory: Path) -> bool:
    """Whether an unfinished run left anything to go on from."""
    return directory.is_dir() and any(path.is_file() for path in directory.rglob("*"))


def reason(now: Mapping[str, Any], earlier: Sequence[Receipt]) -> str:
    """One line for the plan table, such as `rank 16 -> 32`: what differs from the nearest earlier result."""
    if not earlier:
        return "never run"
    records = [_record_of(receipt) for receipt in earlier]
    nearest = min(records, key=lambda record: (*_distance(record["inputs"], now["inputs"]), len(changes(record, now))))
    return ", ".join(changes(nearest, now)) or "its artifact was evicted"


def _distance(before: Mapping[str, str], now: Mapping[str, str]) -> tuple[bool, bool]:
    """A result from the same inputs explains more than one that happens to share more params.

    After it comes one from the same stages: nobody who always encodes first asks why that is no training without.
    """
    return before != now, before.keys() != now.keys()


def _record_of(receipt: Receipt) -> dict[str, Any]:
    return {
        "version": receipt.version,
        "params": receipt.params,
        "inputs": receipt.inputs,
        "components": receipt.components,
    }


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two records, in words."""
    old, new = dict(leaves(before)), dict(leaves(now))
    names = [name for name in {**old, **new} if old.get(name) != new.get(name) and _tells(name, old, new)]
    return [_change(name, old.get(name), new.get(name)) for name in names]


def _tells(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Inputs and weights that one side does not read at all follow from a param, and params from the version."""
    follows = name.startswith(("inputs.", "components.")) or old.get("version") != new.get("version")
    return not follows or (name in old and name in new)


def _change(name: str, before: Any, now: Any) -> str:
    room, _, leaf = name.partition(".")
    if room == "inputs":
        return f"{leaf} changed"
    if room == "components":
        return f"{leaf} weights {str(before)[:8]} -> {str(now)[:8]}"
    return f"{leaf or room} {_shown(before)} -> {_shown(now)}"


def _shown(value: Any) -> str:
    return "unset" if value is None else str(value)


def leaves(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every field of a record."""
    for key, value in record.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", list(value) if isinstance(value, tuple) else value
