"""The command generate: its options. Light: standard library and Typer only."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from pipeline.cli_errors import reported_errors
from pipeline.options.report_options import PROGRESS, QUIET, VERBOSE, report_in
from pipeline.path_errors import path_errors
from pipeline.streams import print_document

if TYPE_CHECKING:
    from pipeline.report import Report
    from stages.contract import Source, Weights
    from stages.generate.settings import AdapterUse, Generation, Version

_DEFAULT = (
    "unset: 50 euler steps and cfg 7 on base models (tiny: cfg 3), 8 pingpong steps and cfg 1 on inference models"
)


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
    compare: Annotated[
        bool, typer.Option("--compare", help="the base beside the adapters: NAME_base.wav and NAME_adapted.wav")
    ] = False,
    like: Annotated[
        Path | None, typer.Option(metavar="DIR", help="clips of a style; prints how far from them the sound is")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="folder with the model's weights")] = None,
    store: Annotated[Path, typer.Option(help="folder of remembered digests")] = Path("artifacts"),
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
    from pipeline.generate.comparison import style_line
    from pipeline.generate.request import check_objective, checked, found_weights, style_source
    from pipeline.plan.packages import check_interpreter

    asked = {"prompt": prompt, "negative_prompt": negative_prompt, "seconds": seconds, "seed": seed}
    asked |= {"steps": steps, "cfg": cfg, "sampler": sampler}
    where: dict[str, Any] = {"device": device, "threads": threads, "base_precision": base_precision}
    report = report_in(progress, quiet=quiet, verbose=verbose)
    folders = {"--out": out and out.parent, "--like": like}
    with reported_errors("generate", as_json=as_json, report=report), path_errors(folders):
        check_interpreter()
        spec, clip, uses = checked(model, asked, adapter or [], where, out, compare=compare, like=like)
        found = found_weights(spec, weights, store)
        check_objective(spec, clip, found)
        wanted = _Wanted(found, clip, uses, style_source(like, store) if like else None, where)
        facts = _compared(wanted, out, report) if compare else _generated(wanted, out, report)
        settings = f"{facts['sampler']}, {facts['steps']} steps, cfg {facts['cfg']:g}"
        for file in facts["files"].values():
            report.made(Path(file))
        report.say(f"seed {clip.seed}, {settings}, {facts['took_seconds']:.1f} s")
        if line := style_line(facts):
            report.say(line)
        if as_json:
            print_document(facts)


class _Wanted(NamedTuple):
    weights: Weights
    clip: Generation
    adapters: list[AdapterUse]
    like: Source | None
    where: dict[str, Any]

    def made(self, versions: list[Version], report: Report) -> dict[str, Any]:
        """Generate the versions; the facts of them."""
        report.phase_of("generate")("loading libraries")
        from stages.generate.run import generate_files  # deferred: torch

        report.phase_of("generate")(f"loading {self.weights.model}")
        told: dict[str, Any] = {"say": report.say, "progress": report.progress_of("generate")}
        facts = generate_files(self.weights, self.clip, versions, like=self.like, **self.where, **told)
        report.end_progress()
        return facts


def _generated(wanted: _Wanted, out: Path | None, report: Report) -> dict[str, Any]:
    """One sound, under a name of its own if none is given."""
    from pipeline.generate.request import free_name
    from stages.generate.settings import Version

    target = out or free_name(Path("output"), wanted.clip.prompt, wanted.clip.seed)
    facts = wanted.made([Version(name="generated", file=target, adapters=wanted.adapters)], report)
    return {**facts, "file": str(target)}


def _compared(wanted: _Wanted, out: Path | None, report: Report) -> dict[str, Any]:
    """The base beside the adapters; nothing is made where the same command has made it."""
    from pipeline.generate.comparison import comparison, request_fingerprint
    from pipeline.generate.request import candidate_names

    weights, clip, adapters, like, where = wanted
    names = candidate_names(Path("output"), clip.prompt, clip.seed)
    files = comparison(out, names, request_fingerprint(weights, clip, adapters, like, where))
    if (facts := files.earlier_facts()) is not None:
        report.say("nothing to do: the same command has made these")
        return facts
    facts = wanted.made(files.versions(adapters), report)
    files.remember(facts)
    return facts


def add_generate_command(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(generate)
