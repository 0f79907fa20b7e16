"""Commands and options of `sa3-trainer`; no logic. Light: each command imports what it needs when it runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.cli_errors import JsonErrorGroup, reported_errors
from pipeline.generate.command import add_generate_command
from pipeline.maintenance.commands import add_store_commands
from pipeline.options.field_options import parameter, range_of, with_fields
from pipeline.options.report_options import report_of
from pipeline.options.tiers import FieldCommand
from pipeline.options.version import show_version
from pipeline.path_errors import path_errors
from pipeline.serve.command import add_serve_command
from pipeline.streams import print_document
from stages.train.stage import TrainParams

app = typer.Typer(
    name="sa3-trainer",
    cls=JsonErrorGroup,
    help="A zip of clips and captions in, a small, trustworthy Stable Audio 3 adapter out.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)

_IMPORT_HELP = "a folder of the reference's pre-encoding tool (.npy, .json, silence.npy), in place of DATA"
_EXPORT_HELP = "also write the latents as such a folder, which must be new or empty"
IMPORT = parameter(
    "import_folder", Annotated[Path | None, typer.Option("--import", metavar="DIR", help=_IMPORT_HELP)], None
)
EXPORT = parameter(
    "export_folder", Annotated[Path | None, typer.Option("--export", metavar="DIR", help=_EXPORT_HELP)], None
)


def with_import(command: Callable[..., None]) -> Callable[..., None]:
    """`with_fields`, and --import."""
    return with_fields(command, IMPORT)


TRAIN_DEFAULTS = {"pre_encode": True}
"""`train` ends what `encode` began; `run` has the hosted trainer's default."""


def with_train_defaults(command: Callable[..., None]) -> Callable[..., None]:
    """`with_import`, with the defaults of train."""
    return with_fields(command, IMPORT, defaults=TRAIN_DEFAULTS)


def with_interchange(command: Callable[..., None]) -> Callable[..., None]:
    """`with_fields`, --import and --export."""
    return with_fields(command, IMPORT, EXPORT)


def _run(
    command: str,
    data: str | None,
    recipe: Path | None,
    as_json: bool,
    flags: dict[str, Any],
    defaults: dict[str, Any] | None = None,
) -> None:
    """Run all stages up to the one named like the command; `run` up to train."""
    from pipeline.execution.next_steps import next_steps
    from pipeline.execution.runner import run_until
    from pipeline.request.pre_encoded import check_export, export, import_source
    from pipeline.request.recipe import read_recipe
    from stages.plural import pluralized

    last = "train" if command == "run" else command
    folder, target = flags.pop("import_folder", None), flags.pop("export_folder", None)
    report = report_of(flags)
    with reported_errors(command, as_json=as_json, report=report):
        check_export(target)
        defaults = _import_defaults(folder) | (defaults or {})
        request = read_recipe(
            import_source(data, folder), flags, recipe, defaults, trains=last == "train", check_files=True
        )
        with path_errors({**request.folders, "--export": target}):
            done = run_until(last, request, report, imported=folder is not None, export=target)
            for file in done.files:
                report.made(file)
            for line in next_steps(request, done.files[0]) if done.trained else ():
                report.say(line)
            if target is not None:
                exported = export(done.artifacts["encode"], request, target, report.say)
                report.say(f"{target}  {pluralized(len(exported), 'file')}")
        if as_json:
            facts = {
                name: {"fingerprint": made.fingerprint, "facts": dict(made.facts)}
                for name, made in done.artifacts.items()
            }
            print_document({"artifacts": facts, "files": [str(file) for file in done.files]})


def _import_defaults(folder: Path | None) -> dict[str, Any]:
    """Imported latents are what a training uses."""
    return {} if folder is None else {"pre_encode": True}


@app.command(cls=FieldCommand)
@with_import
def run(data: str | None, recipe: Path | None, as_json: bool, flags: dict[str, Any]) -> None:
    """Ingest, encode and train: the whole main job.

    Results that the store already holds are reused.

    \b
    Examples:
      sa3-trainer run clips.zip --model tiny-base --pre-encode --steps 500
      sa3-trainer run clips.zip --pre-encode --trigger-phrase "dusty tape"
      sa3-trainer run --recipe drums.toml --rank 32
    """
    _run("run", data, recipe, as_json, flags)


@app.command(cls=FieldCommand)
@with_fields
def ingest(data: str | None, recipe: Path | None, as_json: bool, flags: dict[str, Any]) -> None:
    """Unpack, pair captions, check clips, find the crop length.

    \b
    Examples:
      sa3-trainer ingest clips.zip
      sa3-trainer ingest my_samples/ --skip-bad
    """
    _run("ingest", data, recipe, as_json, flags)


@app.command(cls=FieldCommand)
@with_interchange
def encode(data: str | None, recipe: Path | None, as_json: bool, flags: dict[str, Any]) -> None:
    """Encode clips to latents and prompts to embeddings.

    Those that the store already holds are reused.

    --import DIR reads latents made by the reference's pre-encoding tool; `train --import DIR` trains on them.

    \b
    Examples:
      sa3-trainer encode clips.zip --model tiny-base --export pre-encoded
    """
    _run("encode", data, recipe, as_json, flags)


@app.command(cls=FieldCommand)
@with_train_defaults
def train(data: str | None, recipe: Path | None, as_json: bool, flags: dict[str, Any]) -> None:
    """Train an adapter on cached latents, encoding missing ones.

    \b
    Examples:
      sa3-trainer train clips.zip --model tiny-base --rank 8
      sa3-trainer train --import pre-encoded --model medium-base --steps 2000
    """
    _run("train", data, recipe, as_json, flags, defaults=TRAIN_DEFAULTS)


@app.command(cls=FieldCommand)
@with_import
def plan(data: str | None, recipe: Path | None, as_json: bool, flags: dict[str, Any]) -> None:
    """Show what `run` would do, and why; changes nothing.

    \b
    Examples:
      sa3-trainer plan clips.zip --model tiny-base --pre-encode --rank 32
    """
    from cache.store import Store
    from pipeline.execution.output_name import output_name
    from pipeline.plan.adapter_values import check_adapter_values
    from pipeline.plan.earlier_weights import earlier_weights_notes
    from pipeline.plan.import_plan import import_plan
    from pipeline.plan.packages import check_packages
    from pipeline.plan.plan import plan as planned
    from pipeline.report import plan_json, plan_lines
    from pipeline.request.notices import data_notices, notices
    from pipeline.request.pre_encoded import import_source
    from pipeline.request.recipe import read_recipe
    from pipeline.request.resolve import resolve_inputs

    folder, report = flags.pop("import_folder"), report_of(flags)
    with reported_errors("plan", as_json=as_json, report=report):
        source, defaults = import_source(data, folder), _import_defaults(folder)
        request = read_recipe(source, flags, recipe, defaults, trains=True, check_files=True)
        decide = planned if folder is None else import_plan
        with path_errors(request.folders):
            phase = report.phase_of("read")
            resolved = resolve_inputs(request, fetch=False, imported=folder is not None, say=report.say, phase=phase)
            report.end_progress()
            decided = decide(request, Store(request.store), resolved)
            earlier = list(earlier_weights_notes(request, Store(request.store)))
        check_packages(request, decided)
        check_adapter_values(decided, resolved.lora_checkpoint)
        named = output_name(request, decided.runs[-1])
        lines = (*notices(request, trains=True), *data_notices(resolved.source), *earlier, *filter(None, [named.note]))
        for line in lines:
            report.say(line)
        print_document(plan_json(decided)) if as_json else print("\n".join(plan_lines(decided)))


CLIP = parameter(
    "clip", Annotated[str | None, typer.Argument(help="one clip, by its path; without it every clip")], None
)


def with_clip(command: Callable[..., None]) -> Callable[..., None]:
    """`with_fields`, and the name of a clip after the data."""
    return with_fields(command, CLIP)


@app.command(cls=FieldCommand)
@with_clip
def explain(data: str | None, recipe: Path | None, as_json: bool, flags: dict[str, Any]) -> None:
    """Show why a clip is a hit or a miss; changes nothing.

    Names the field that changed.

    \b
    Examples:
      sa3-trainer explain clips.zip drums/half_time.ogg --model tiny-base
    """
    from cache.store import Store
    from pipeline.plan.explain import explain as explained
    from pipeline.plan.explain import explained_json, explained_lines
    from pipeline.request.recipe import read_recipe
    from pipeline.request.resolve import resolve_inputs

    clip, report = flags.pop("clip"), report_of(flags)
    with reported_errors("explain", as_json=as_json, report=report):
        request = read_recipe(data, flags, recipe, check_files=True)
        with path_errors(request.folders):
            resolved = resolve_inputs(request, fetch=False, phase=report.phase_of("read"))
            report.end_progress()
            findings = explained(request, Store(request.store), resolved, clip)
        lines = explained_lines(findings)
        print_document(explained_json(findings)) if as_json else print("\n".join(lines))


@app.command()
def status(
    store: Annotated[Path, typer.Option(readable=False, help="folder of finished artifacts and latents")] = Path(
        "artifacts"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="one JSON document on stdout")] = False,
) -> None:
    """List artifacts, their sizes, and what each run used.

    Example: sa3-trainer status --json
    """
    from cache.store import Store
    from pipeline.maintenance.status import status_json, status_lines

    with reported_errors("status", as_json=as_json), path_errors({"--store": store}):
        opened = Store(store)
        print_document(status_json(opened)) if as_json else print("\n".join(status_lines(opened)))


@app.command()
def example(
    out: Annotated[Path, typer.Argument(help="where to write the zip")],
    held_out: Annotated[Path | None, typer.Option(help="also write further clips of its style to this folder")] = None,
) -> None:
    """Write the example dataset: synthesised clips with captions.

    They are short, and in a style that tiny-base does not know.

    Example: sa3-trainer example example.zip
    """
    from pipeline.example_dataset import write_example, write_held_out

    with reported_errors("example"), path_errors({"OUT.zip": out.parent, "--held-out": held_out}):
        print(write_example(out), file=sys.stderr)
        if held_out is not None:
            print(write_held_out(held_out), file=sys.stderr)


@app.command()
def bench(
    model: Annotated[list[str], typer.Option(help="base model; repeat for several")] = ["tiny-base"],  # noqa: B006
    frames: Annotated[list[int], typer.Option(help="latent frames of a batch; repeat for several")] = [108],  # noqa: B006
    adapter_type: Annotated[list[str], typer.Option(help="adapter kind; repeatable")] = ["dora-rows"],  # noqa: B006
    base_precision: Annotated[list[str], typer.Option(help="bf16, fp16 or fp32; repeatable")] = ["fp32"],  # noqa: B006
    batch_size: Annotated[list[int], typer.Option(help=f"{range_of('batch_size')}; repeatable")] = [1],  # noqa: B006
    gradient_checkpointing: Annotated[list[str], typer.Option(help="off or on; repeatable")] = ["off"],  # noqa: B006
    deterministic: Annotated[list[str], typer.Option(help="on or off; repeatable")] = ["on"],  # noqa: B006
    rank: Annotated[int, typer.Option(help=f"adapter rank, {range_of('rank')}")] = TrainParams.rank,
    steps: Annotated[int, typer.Option(help="timed steps per case")] = 10,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps")] = "auto",
    threads: Annotated[int, typer.Option(help="CPU threads; 0: torch's default")] = 0,
    out: Annotated[Path, typer.Option(help="JSON file with all figures")] = Path("bench.json"),
) -> None:
    """Time training steps on this machine, with random weights.

    The compiled and the uncompiled path side by side; measured memory beside a training's own estimate.

    Example: sa3-trainer bench --model medium-base --frames 108 --frames 1024 --base-precision bf16
    """
    from pipeline.bench_grid import checked_grid

    axes: dict[str, list[Any]] = {"model": model, "frames": frames, "adapter_type": adapter_type}
    axes |= {"base_precision": base_precision, "batch_size": batch_size, "rank": [rank], "steps": [steps]}
    axes |= {"gradient_checkpointing": gradient_checkpointing, "deterministic": deterministic, "threads": [threads]}
    with reported_errors("bench"), path_errors({"--out": out.parent}):
        asked = checked_grid(axes, out)
        from stages.bench.run import bench as measured  # deferred: torch

        print(measured(asked, device, threads, out, lambda line: print(line, file=sys.stderr)))


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=show_version, help="Show the version and exit.")
    ] = False,
) -> None:
    """A zip of clips and captions in, a small, trustworthy Stable Audio 3 adapter out."""


add_generate_command(app)
add_store_commands(app)
add_serve_command(app)
