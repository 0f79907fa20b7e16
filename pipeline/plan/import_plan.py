"""The plan of a training that starts from a pre-encoded folder."""

from __future__ import annotations

from dataclasses import replace

from cache.store import Store
from pipeline.plan import plan as planning
from pipeline.plan.plan import Plan, StageRun, State
from pipeline.request.pre_encoded import _refuse_without_effect, import_params
from pipeline.request.recipe import Recipe
from pipeline.request.resolve import ResolvedInputs
from stages.encode.stage import IMPORT


def import_plan(recipe: Recipe, store: Store, found: ResolvedInputs, last: str = "train") -> Plan:
    """encode reads the folder instead of prepared audio, and train follows as ever.

    Raises:
        RecipeError: a field is set that could have no effect on a pre-encoded folder.
    """
    _refuse_without_effect(recipe, last)
    digests = found.weights.digests if found.weights else {}
    bare = StageRun(
        stage=IMPORT,
        params=import_params(recipe),
        inputs={"source": found.source.fingerprint},
        components={name: digests.get(name, "") for name in IMPORT.components},
        fingerprint=None,
        identity=None,
        state=State.MISS,
        reason=found.why_no_weights,
    )
    encode = _with_reason(planning.looked_up(bare, store), store) if digests else bare
    if last == "encode":
        return Plan(runs=(encode,))
    train = planning.stage_run(planning.stage("train"), recipe, store, found, {"encode": encode.fingerprint})
    return Plan(runs=(encode, train))


def _with_reason(run: StageRun, store: Store) -> StageRun:
    """A miss explained against earlier imports, not against encodings of clips."""
    if run.state is not State.MISS:
        return run
    imports = [receipt for receipt in store.receipts("encode") if "source" in receipt.inputs]
    return replace(run, reason=f"reads a pre-encoded folder; {planning.reason(run.record, imports)}")
