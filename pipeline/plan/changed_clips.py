"""Which clips and captions of a dataset differ from the last time. Light: the manifest reader is imported on use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from cache.errors import CacheError
from cache.receipt import Receipt
from cache.store import Store
from pipeline.plan.current_clips import CurrentClip, clips_of_data, manifest_rows
from pipeline.plan.stage_run import StageRun, State
from pipeline.request.recipe import Recipe
from pipeline.request.resolve import ResolvedInputs
from stages.plural import pluralized
from stages.records import Clip

MOST_NAMED = 3
MOST_COMPARED = 8
"""Earlier ingests that are looked into, the newest first."""
MAKE_CAPTIONS = ("trigger_phrase", "caption", "caption_template", "captions")
"""Params that make prompts of captions: where they differ, all prompts do."""
SOURCE_CHANGED = "source changed"
"""The words of `pipeline.plan.changes` for other data."""


def with_changed_clips(run: StageRun, recipe: Recipe, store: Store, resolved: ResolvedInputs) -> StageRun:
    """An ingest whose data changed, with the clips and captions that did; one of clips never seen before is new."""
    if run.state is not State.MISS or SOURCE_CHANGED not in (parts := run.reason.split(", ")):
        return run
    earlier = [found for receipt in store.receipts("ingest")[:MOST_COMPARED] if (found := _clips_of(store, receipt))]
    if not earlier:
        return run
    now, params = {clip.clip_id: clip for clip in clips_of_data(recipe, resolved)}, run.record["params"]
    nearest = max(earlier, key=lambda one: (_num_common(one.clips, now), one.receipt.params == params))
    if not _num_common(nearest.clips, now):
        return replace(run, changed=False, reason="never run on these clips")
    same_making = all(nearest.receipt.params.get(name) == params[name] for name in MAKE_CAPTIONS)
    words = "; ".join(_differences(nearest.clips, now, captions=same_making)) or SOURCE_CHANGED
    return replace(run, reason=", ".join(words if part == SOURCE_CHANGED else part for part in parts))


@dataclass(frozen=True)
class _Earlier:
    """An earlier ingest and its clips by id."""

    receipt: Receipt
    clips: Mapping[str, Clip]


def _clips_of(store: Store, receipt: Receipt) -> _Earlier | None:
    """None where its manifest is lost or damaged: what changed is then not said, and verify reports the damage."""
    try:
        return _Earlier(receipt, {row.clip_id: row for row in manifest_rows(store, receipt) if "#" not in row.clip_id})
    except (CacheError, OSError):
        return None


def _num_common(old: Mapping[str, Clip], now: Mapping[str, CurrentClip]) -> int:
    """Clips of the same name or the same bytes."""
    digests = {clip.digest for clip in old.values()}
    return sum(name in old or clip.digest in digests for name, clip in now.items())


def _differences(old: Mapping[str, Clip], now: Mapping[str, CurrentClip], *, captions: bool) -> Iterator[str]:
    both = [name for name in now if name in old]
    yield from _named("clip", "new", [name for name in now if name not in old])
    yield from _named("clip", "gone", [name for name in old if name not in now])
    yield from _named("clip", "changed", [name for name in both if old[name].digest != now[name].digest])
    if captions:
        yield from _named("caption", "changed", [name for name in both if old[name].prompt != now[name].prompt])


def _named(what: str, how: str, names: Sequence[str]) -> Iterator[str]:
    if names:
        more = f" and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else ""
        yield f"{pluralized(len(names), what)} {how}: {', '.join(sorted(names)[:MOST_NAMED])}{more}"
