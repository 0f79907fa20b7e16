"""The `verify` command: check, repair on request, say what to type next. Light: standard library only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cache.store import Store
from pipeline.errors import StoreDamaged
from pipeline.maintenance.damage import Damage, VerifyResult
from pipeline.maintenance.repair import repair as repaired
from pipeline.maintenance.verify import verify
from pipeline.report import Report
from pipeline.store_option import store_option
from stages.plural import pluralized

_SHOWN_CLIPS = 5


def check(store: Store, report: Report, *, repair: bool) -> tuple[VerifyResult, list[str]]:
    """What was found, and one line per repair."""
    result = verify(store, report.progress_of("verify"))
    report.end_progress()
    return result, repaired(store, result.damages, report.say) if repair and result.damages else []


def verify_json(result: VerifyResult, repairs: Sequence[str], store: Path) -> dict[str, Any]:
    """The result for programs."""
    return {**result.as_json(), "repaired": list(repairs), "next": next_commands(result, store)}


def verify_lines(result: VerifyResult, repairs: Sequence[str], store: Path) -> list[str]:
    """The result for people: what is damaged and what that means, what was repaired, what to type next."""
    lines = [line for damage in result.damages for line in _damage_lines(damage)]
    checked = {"artifact": result.num_artifacts, "shard": result.num_shards, "prepared clip": result.num_prepared}
    counts = ", ".join(pluralized(number, thing) for thing, number in checked.items())
    numbers = {"damaged": len(result.damages) - result.num_gone, "missing": result.num_gone}
    found = ", ".join(f"{number} {word}" for word, number in numbers.items() if number) or "all intact"
    commands = [f"    {command}" for command in next_commands(result, store)]
    after = ["to make what is missing again, run:", *commands] if commands else []
    return [*lines, f"{counts}: {found}", *(f"repaired {line}" for line in repairs), *after]


def _damage_lines(damage: Damage) -> list[str]:
    shown = ", ".join(damage.clips[:_SHOWN_CLIPS])
    more = f" and {len(damage.clips) - _SHOWN_CLIPS} more" if len(damage.clips) > _SHOWN_CLIPS else ""
    clips = [f"  clips: {shown}{more}"] if damage.clips else []
    return [f"{damage.kind:<8} {damage.path}: {damage.what}", f"  {damage.meaning}", *clips]


def next_commands(result: VerifyResult, store: Path) -> list[str]:
    """Commands that make the missing parts again; DATA is known to the user only."""
    return sorted({_command(damage, store_option(store)) for damage in result.damages})


def _command(damage: Damage, store: str) -> str:
    stage = damage.path.partition("/")[0]
    if stage == "train":
        return f"sa3-trainer run DATA{store}     (with the flags of that training)"
    if damage.kind == "prepared" or stage == "ingest":
        return f"sa3-trainer ingest DATA{store}"
    return f"sa3-trainer encode DATA{store}  (with the --model of those clips)"


def raise_if_damaged(store: Store, result: VerifyResult, *, repaired: bool) -> None:
    """Raises: StoreDamaged, unless the store is intact or was repaired."""
    if result.damages and not repaired:
        raise StoreDamaged(store.root, len(result.damages), result.num_gone)
