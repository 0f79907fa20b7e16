"""The commands verify, evict, gc and doctor: their options.

Light: standard library and Typer only.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli_errors import reported_errors
from pipeline.options.report_options import PROGRESS, QUIET, VERBOSE, report_in
from pipeline.path_errors import path_errors
from pipeline.streams import print_document

# readable=False: the parser would refuse what it may not read in words of its own, and `path_errors` says more.
StoreOption = Annotated[Path, typer.Option(readable=False, help="folder of finished artifacts and latents")]
JsonOption = Annotated[bool, typer.Option("--json", help="one JSON document on stdout")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="list exactly what would be removed; change nothing")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="remove trainings without asking; for scripts")]


def verify(
    store: StoreOption = Path("artifacts"),
    repair: Annotated[bool, typer.Option("--repair", help="remove what is damaged, keep what is intact")] = False,
    as_json: JsonOption = False,
    progress: PROGRESS = "auto",
    quiet: QUIET = False,
    verbose: VERBOSE = False,
) -> None:
    """Check every byte of a store against its checksums.

    Damage is listed with the clips it affects and what to type next.

    Example: sa3-trainer verify --repair
    """
    from pipeline.maintenance.gc import existing_store
    from pipeline.maintenance.verify_command import check, raise_if_damaged, verify_json, verify_lines

    report = report_in(progress, quiet=quiet, verbose=verbose)
    with reported_errors("verify", as_json=as_json, report=report), path_errors({"--store": store}):
        existing = existing_store(store)
        result, repairs = check(existing, report, repair=repair)
        shown = (result, repairs, store)
        print_document(verify_json(*shown)) if as_json else print("\n".join(verify_lines(*shown)))
        raise_if_damaged(existing, result, repaired=repair)


def evict(
    names: Annotated[
        list[str] | None, typer.Argument(help="artifacts as `status` prints them, such as 0a810e2ef096")
    ] = None,
    stage: Annotated[str | None, typer.Option(help="all artifacts of ingest, encode or train")] = None,
    older_than: Annotated[
        str | None, typer.Option(metavar="AGE", help="artifacts finished longer ago than this: 30d, 12h, 2w")
    ] = None,
    model: Annotated[str | None, typer.Option(help="all artifacts made for this model")] = None,
    store: StoreOption = Path("artifacts"),
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Remove finished artifacts that no kept run needs.

    The shared files that only they use are removed with them. Trainings are removed after a question, or with --yes.

    Example: sa3-trainer evict --stage train --older-than 30d --dry-run
    """
    from pipeline.maintenance.confirmation import confirm_removal
    from pipeline.maintenance.gc import Selection, existing_store, removal_json, removal_lines
    from pipeline.maintenance.gc import evict as evicted
    from pipeline.report import Report

    with reported_errors("evict", as_json=as_json), path_errors({"--store": store}):
        selection = Selection(names=names or (), stage=stage, older_than=older_than, model=model)
        existing, say = existing_store(store), Report().say
        confirm_removal(lambda: evicted(existing, selection, say, dry_run=True), yes=yes or dry_run)
        plan = evicted(existing, selection, say, dry_run=dry_run)
        lines = removal_lines(plan, dry_run=dry_run)
        print_document(removal_json(plan, dry_run=dry_run)) if as_json else print("\n".join(lines))


def gc(
    older_than: Annotated[
        str | None, typer.Option(metavar="AGE", help="keep unfinished and unread things younger than this [7d]")
    ] = None,
    max_bytes: Annotated[
        str | None, typer.Option(metavar="SIZE", help="shrink the store to this size, oldest unread things first: 50G")
    ] = None,
    prepared: Annotated[
        bool, typer.Option("--prepared", help="also remove all prepared audio, which is made again when it is read")
    ] = False,
    store: StoreOption = Path("artifacts"),
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Remove everything that no kept run needs.

    That is: old unfinished runs, unread ingests, unused shards, leftover temporary files. A stopped training is removed
    after a question, or with --yes.

    Example: sa3-trainer gc --prepared --max-bytes 50G --dry-run
    """
    from pipeline.errors import OverBudget
    from pipeline.maintenance.confirmation import confirm_removal
    from pipeline.maintenance.gc import existing_store, removal_json, removal_lines
    from pipeline.maintenance.gc import gc as collected
    from pipeline.maintenance.quantities import bytes_of
    from pipeline.report import Report

    with reported_errors("gc", as_json=as_json), path_errors({"--store": store}):
        existing, limits = existing_store(store), {"older_than": older_than, "max_bytes": max_bytes}
        would = partial(collected, existing, Report().say, dry_run=True, prepared=prepared, **limits)
        confirm_removal(lambda: would()[0], yes=yes or dry_run)
        plan, fits = collected(existing, Report().say, dry_run=dry_run, prepared=prepared, **limits)
        lines = removal_lines(plan, dry_run=dry_run)
        print_document(removal_json(plan, dry_run=dry_run)) if as_json else print("\n".join(lines))
        if not fits:
            left = existing.sizes().total - (plan.num_bytes if dry_run else 0)
            raise OverBudget(store, bytes_of(str(max_bytes)), left, plan.needed_bytes, plan.needed_by)


def doctor(store: StoreOption = Path("artifacts"), as_json: JsonOption = False) -> None:
    """Check packages, devices, weights and the store's folder.

    What will not work is reported with what to do about it.

    Example: sa3-trainer doctor
    """
    from pipeline.maintenance.doctor import checks_json, checks_lines, raise_if_failed, run_checks

    with reported_errors("doctor", as_json=as_json), path_errors({"--store": store}):
        checks = run_checks(store)
        print_document(checks_json(checks)) if as_json else print("\n".join(checks_lines(checks)))
        raise_if_failed(checks)


def add_store_commands(app: typer.Typer) -> None:
    """Give the command line these commands."""
    for command in (verify, evict, gc, doctor):
        app.command()(command)
