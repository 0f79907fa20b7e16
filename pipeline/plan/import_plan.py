"""The plan of an import: encode reads a pre-encoded folder in place of prepared audio. Light: standard library only."""

from __future__ import annotations

from dataclasses import replace

from cache.store import Store
from pipeline.plan.changes import miss_reason
from pipeline.plan.plan import Plan, StageRun, State, stage_named, stage_run, with_state
from pipeline.request.pre_encoded import check_import_fields, import_params
from pipeline.request.recipe import Recipe
from pipeline.request.resolve import ResolvedInputs
from stages.encode.stage import IMPORT


def import_plan(recipe: Recipe, store: Store, resolved: ResolvedInputs, last: str = "train") -> Plan:
    """Decide for encode (reading the folder) and train: hit, resume or miss, and the reason.

    Raises:
        RecipeError: a field is set that could have no effect on a pre-encoded folder.
    """
    check_import_fields(recipe, last)
    digests = resolved.weights.digests if resolved.weights else {}
    run = StageRun(
        stage=IMPORT,
        params=import_params(recipe),
        inputs={"source": resolved.source.fingerprint},
        components={name: digests.get(name, "") for name in IMPORT.components},
        fingerprint=None,
        identity=None,
        state=State.MISS,
        reason=resolved.why_no_weights,
    )
    encode = _with_reason(with_state(run, store), store) if digests else run
    if last == "encode":
        return Plan(runs=(encode,))
    train = stage_run(stage_named("train"), recipe, store, resolved, {"encode": encode.fingerprint})
    return Plan(runs=(encode, train))


def _with_reason(run: StageRun, store: Store) -> StageRun:
    """A miss is explained by comparison with earlier imports, not with encodings of clips."""
    if run.state is not State.MISS:
        return run
    imports = [receipt for receipt in store.receipts("encode") if "source" in receipt.inputs]
    return replace(run, reason=f"reads a pre-encoded folder; {miss_reason(run.record, imports)}")
