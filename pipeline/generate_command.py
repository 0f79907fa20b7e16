"""The command generate: its options. Light: standard library and Typer only."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.cli_errors import reported_errors
from pipeline.options.report_options import PROGRESS, QUIET, VERBOSE, report_in
from pipeline.streams import print_document

_DEFAULT = "unset: 50 euler steps and cfg 7 on base models, 8 pingpong steps and cfg 1 on inference models"


def generate(
    prompt: Annotated[str, typer.Argument(help="what to hear")],
    adapter: Annotated[
        list[str] | None, typer.Option(metavar="FILE[:STRENGTH]", help="adapter to use; repeat for several")
    ] = None,
    model: Annotated[
        str, typer.Option(help="medium, small-music, small-sfx, tiny, or a base model such as medium-base")
    ] = "medium",
    seconds: Annotated[float, typer.Option(help="duration")] = 10.0,
    seed: Annotated[int | None, typer.Option(help="of the noise; unset: drawn, and named")] = None,
    steps: Annotated[int | None, typer.Option(help=f"sampler steps; {_DEFAULT}", show_default=False)] = None,
    cfg: Annotated[float | None, typer.Option(help="scale of classifier-free guidance", show_default=False)] = None,
    sampler: Annotated[str | None, typer.Option(help="euler, rk4, dpmpp or pingpong", show_default=False)] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="what to move away from")] = None,
    out: Annotated[Path | None, typer.Option(help=".wav or .flac file; unset: a free name in output/")] = None,
    weights: Annotated[Path | None, typer.Option(help="folder with the model's weights")] = None,
    store: Annotated[Path, typer.Option(help="folder of bundled weights and remembered digests")] = Path("artifacts"),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps")] = "auto",
    base_precision: Annotated[
        str | None, typer.Option(help="fp32, bf16 or fp16; unset: fp16 on CUDA, else fp32", show_default=False)
    ] = None,
    threads: Annotated[int, typer.Option(help="CPU threads; 0: torch's default")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON document on stdout")] = False,
    progress: PROGRESS = "auto",
    quiet: QUIET = False,
    verbose: VERBOSE = False,
) -> None:
    """Generate a sound from a prompt, with any number of adapters.

    Example: sa3-trainer generate "warm pluck, c minor" --model tiny --adapter output/example.safetensors:0.8 --seed 7
    """
    from pipeline.generation import check_objective, checked, found_weights, free_name
    from pipeline.plan.packages import check_interpreter

    asked = {"prompt": prompt, "negative_prompt": negative_prompt, "seconds": seconds, "seed": seed}
    asked |= {"steps": steps, "cfg": cfg, "sampler": sampler}
    where: dict[str, Any] = {"device": device, "threads": threads, "base_precision": base_precision}
    report = report_in(progress, quiet=quiet, verbose=verbose)
    with reported_errors("generate", as_json=as_json, report=report):
        check_interpreter()
        spec, clip, uses = checked(model, asked, adapter or [], where, out)
        found = found_weights(spec, weights, store, report.say)
        check_objective(spec, clip, found)
        target = out or free_name(Path("output"), clip.prompt, clip.seed)
        report.phase_of("generate")("loading libraries")
        from stages.generate.run import generate_file  # deferred: torch

        report.phase_of("generate")(f"loading {spec.name}")
        evaluated = report.progress_of("generate")
        facts = generate_file(found, clip, uses, target, **where, say=report.say, progress=evaluated)
        report.end_progress()
        settings = f"{facts['sampler']}, {facts['steps']} steps, cfg {facts['cfg']:g}"
        report.say(f"{target}  seed {clip.seed}, {settings}, {facts['took_seconds']:.1f} s")
        if as_json:
            print_document(facts)


def add_generate_command(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(generate)
