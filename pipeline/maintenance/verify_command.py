"""`verify` as a command: look, repair if asked, say what to type next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cache.store import Store
from pipeline.errors import StoreDamaged
from pipeline.maintenance.repair import repair as repaired
from pipeline.maintenance.verify import Checked, Damage, verify
from pipeline.report import Report
from stages.plural import pluralized

_SHOWN_CLIPS = 5


def check(store: Store, report: Report, *, repair: bool) -> tuple[Checked, list[str]]:
    """What was found, and what was done about it."""
    checked = verify(store, report.progress_of("verify"))
    report.end_progress()
    return checked, repaired(store, checked.damages, report.say) if repair else []


def checked_json(checked: Checked, done: Sequence[str]) -> dict[str, Any]:
    """For programs."""
    return {**checked.as_json(), "repaired": list(done), "next": next_commands(checked)}


def checked_lines(checked: Checked, done: Sequence[str]) -> list[str]:
    """For people: what is damaged and what it means, what was done, what to type next."""
    lines = [line for damage in checked.damages for line in _lines(damage)]
    looked_at = {"artifact": checked.num_artifacts, "shard": checked.num_shards, "prepared clip": checked.num_prepared}
    counts = ", ".join(pluralized(number, thing) for thing, number in looked_at.items())
    num_gone = sum(damage.kind == "gone" for damage in checked.damages)
    numbers = {"damaged": len(checked.damages) - num_gone, "missing": num_gone}
    found = ", ".join(f"{number} {word}" for word, number in numbers.items() if number) or "all whole"
    following = [f"    {command}" for command in next_commands(checked)]
    after = ["then make again what is missing:", *following] if following else []
    return [*lines, f"{counts}: {found}", *(f"repaired {line}" for line in done), *after]


def _lines(damage: Damage) -> list[str]:
    shown = ", ".join(damage.clips[:_SHOWN_CLIPS])
    more = f" and {len(damage.clips) - _SHOWN_CLIPS} more" if len(damage.clips) > _SHOWN_CLIPS else ""
    clips = [f"  clips: {shown}{more}"] if damage.clips else []
    return [f"{damage.kind:<8} {damage.path}: {damage.what}", f"  {damage.meaning}", *clips]


def next_commands(checked: Checked) -> list[str]:
    """What makes the missing things again; DATA is known to the user only."""
    return sorted({_command(damage) for damage in checked.damages})


def _command(damage: Damage) -> str:
    stage = damage.path.partition("/")[0]
    if stage == "train":
        return "sa3-trainer run DATA     (with the flags of that training)"
    if damage.kind == "prepared" or stage == "ingest":
        return "sa3-trainer ingest DATA"
    return "sa3-trainer encode DATA  (with the --model of those clips)"


def finish(checked: Checked, *, repaired: bool) -> None:
    """Raises: StoreDamaged, when something is damaged and stays so."""
    if checked.damages and not repaired:
        raise StoreDamaged(len(checked.damages), sum(damage.kind == "gone" for damage in checked.damages))
