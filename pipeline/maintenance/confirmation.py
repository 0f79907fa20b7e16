"""Asks before trainings are removed, finished or stopped: nothing else in a store cannot be made again in minutes.

Light: standard library only.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from pipeline.errors import NotConfirmed
from pipeline.maintenance.gc_policy import RemovalPlan
from stages.plural import moment, pluralized


def confirm_removal(decide: Callable[[], RemovalPlan], *, yes: bool) -> None:
    """Ask y/N on a terminal where a removal takes trainings; elsewhere it needs --yes.

    Args:
        decide: what would be removed, without removing it; not called where `yes` is given.

    Raises:
        NotConfirmed: nothing was removed.
    """
    if yes or not (trainings := trainings_in(decide())):
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise NotConfirmed(trainings, "add --yes to remove them without being asked, or --dry-run to see all of it")
    lines = "\n".join(f"  {line}" for line in trainings)
    print(f"this removes {pluralized(len(trainings), 'training')}:\n{lines}", file=sys.stderr)
    print("remove? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise NotConfirmed


def trainings_in(plan: RemovalPlan) -> list[str]:
    """One line for each training that a plan removes: its name, and what is known of it."""
    finished = [
        f"{one.name}  finished {moment(one.receipt.finished)}, {one.receipt.facts.get('steps_done', '?')} steps"
        for one, _ in plan.artifacts
        if one.receipt.stage == "train"
    ]
    return finished + [f"{name[:18]}  stopped" for name, _, _ in plan.unfinished if name.startswith("train-")]
