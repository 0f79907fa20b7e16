"""The commands that look after a store: verify, evict, gc, doctor. Options only, no logic."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli_errors import reported_errors

StoreOption = Annotated[Path, typer.Option(help="folder of finished artifacts and latents")]
JsonOption = Annotated[bool, typer.Option("--json", help="one JSON document on stdout")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="show exactly what would go; touch nothing")]


def verify(
    store: StoreOption = Path("artifacts"),
    repair: Annotated[bool, typer.Option("--repair", help="remove exactly what is damaged, save what is not")] = False,
    as_json: JsonOption = False,
) -> None:
    """Read every byte of a store and compare it with its checksum; name the clips that damage concerns.

    Example: sa3-trainer verify --repair
    """
    from pipeline.maintenance.gc import root_of
    from pipeline.maintenance.verify_command import check, checked_json, checked_lines, finish
    from pipeline.report import Report

    with reported_errors("verify", as_json=as_json):
        checked, done = check(root_of(store), Report(), repair=repair)
        print(json.dumps(checked_json(checked, done)) if as_json else "\n".join(checked_lines(checked, done)))
        finish(checked, repaired=repair)


def evict(
    names: Annotated[list[str] | None, typer.Argument(help="artifacts as `status` prints them: 0a810e2ef096")] = None,
    stage: Annotated[str | None, typer.Option(help="all of ingest, encode or train")] = None,
    older_than: Annotated[str | None, typer.Option(metavar="AGE", help="finished longer ago: 30d, 12h, 2w")] = None,
    model: Annotated[str | None, typer.Option(help="all made for this model")] = None,
    store: StoreOption = Path("artifacts"),
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Remove finished artifacts, and the shared files that only they named; never what a kept run needs.

    Example: sa3-trainer evict --stage train --older-than 30d --dry-run
    """
    from pipeline.maintenance.gc import Choice, decision_json, decision_lines, root_of
    from pipeline.maintenance.gc import evict as evicted
    from pipeline.report import Report

    with reported_errors("evict", as_json=as_json):
        choice = Choice(names=names or (), stage=stage, older_than=older_than, model=model)
        decision = evicted(root_of(store), choice, Report().say, dry_run=dry_run)
        lines = decision_lines(decision, dry_run=dry_run)
        print(json.dumps(decision_json(decision, dry_run=dry_run)) if as_json else "\n".join(lines))


def gc(
    older_than: Annotated[
        str | None, typer.Option(metavar="AGE", help="leave unfinished and unread things younger than this [7d]")
    ] = None,
    max_bytes: Annotated[
        str | None, typer.Option(metavar="SIZE", help="make the store this small, oldest unread things first: 50G")
    ] = None,
    prepared: Annotated[
        bool, typer.Option("--prepared", help="all prepared audio; made again when it is read")
    ] = False,
    store: StoreOption = Path("artifacts"),
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Remove what no kept run needs: old unfinished runs, shards that nobody names, temporaries of dead writers.

    Example: sa3-trainer gc --prepared --max-bytes 50G --dry-run
    """
    from pipeline.errors import OverBudget
    from pipeline.maintenance.gc import bytes_of, decision_json, decision_lines, root_of
    from pipeline.maintenance.gc import gc as collected
    from pipeline.report import Report

    with reported_errors("gc", as_json=as_json):
        wanted = {"older_than": older_than, "max_bytes": max_bytes}
        place = root_of(store)
        decision, met = collected(place, Report().say, dry_run=dry_run, prepared=prepared, **wanted)
        lines = decision_lines(decision, dry_run=dry_run)
        print(json.dumps(decision_json(decision, dry_run=dry_run)) if as_json else "\n".join(lines))
        if not met:
            left = place.sizes().total - (decision.num_bytes if dry_run else 0)
            raise OverBudget(bytes_of(str(max_bytes)), left, decision.needed_bytes, decision.needed_by)


def doctor(store: StoreOption = Path("artifacts"), as_json: JsonOption = False) -> None:
    """Check versions, devices, weights and the store's folder; say what will not work and what to do.

    Example: sa3-trainer doctor
    """
    from pipeline.maintenance.doctor import examined, examined_json, examined_lines, finish

    with reported_errors("doctor", as_json=as_json):
        checks = examined(store)
        print(json.dumps(examined_json(checks)) if as_json else "\n".join(examined_lines(checks)))
        finish(checks)


def add_store_commands(app: typer.Typer) -> None:
    """Give the command line these commands."""
    for command in (verify, evict, gc, doctor):
        app.command()(command)
