"""One generation from files to files: load, attach, sample, write."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from stages.contract import Source, Weights
from stages.generate.adapted_model import LoadedModel, add_adapters, load_model
from stages.generate.audio_file import write_audio
from stages.generate.sampling import Progress, generate
from stages.generate.settings import AdapterUse, Generation, Version
from stages.generate.style_clips import read_style_clips
from stages.models.device import (
    dtype_named,
    explain_out_of_memory,
    pick_device,
    set_threads,
    training_threads,
    usable_dtype,
)

NEARLY_SILENT_DB = -40.0
"""Peak of a sound below which it is said to be so."""


def generate_files(
    weights: Weights,
    wanted: Generation,
    versions: Sequence[Version],
    *,
    like: Source | None = None,
    device: str = "auto",
    base_precision: str | None = None,
    threads: int = 0,
    say: Callable[[str], None] = lambda line: None,
    progress: Progress = lambda done, total: None,
) -> dict[str, object]:
    """Generate each version of a clip, all from the same noise; return the facts of them.

    Nothing is written before all of them are made.

    Args:
        versions: at least one; facts name the adapters of the last.
        like: clips of a style, whose distance to each version is among the facts.
        base_precision: of the networks; None: fp16 on CUDA, as the public inference code, else fp32.

    Raises:
        StageError: weights, adapters, clips or the device do not fit, or memory ran out.
        cache.errors.WriteFailed: a file cannot be written.
    """
    set_threads(training_threads(threads, weights.sizes.transformer_width))
    place = pick_device(device)
    dtype = dtype_named(base_precision or ("fp16" if place.type == "cuda" else "fp32"))
    start = time.monotonic()
    style = read_style_clips(like, wanted.seconds) if like else None
    with explain_out_of_memory("generating", place):
        model = load_model(weights, place, usable_dtype(dtype, place, say))
        _report_long_prompts(model, wanted, say)
        made = dict(_sounds(model, wanted, versions, say, progress))
    for version in versions:
        _report_silence(version, made[version.name], say)
    facts = _facts(model, wanted, versions[-1].adapters)
    if style:
        facts["style_distance"] = style.distances(made)
    for version in versions:
        version.file.parent.mkdir(parents=True, exist_ok=True)
        write_audio(version.file, made[version.name], weights.sizes.sample_rate_hz)
    files = {version.name: str(version.file) for version in versions}
    return facts | {"files": files, "took_seconds": round(time.monotonic() - start, 2)}


def _sounds(
    model: LoadedModel,
    wanted: Generation,
    versions: Sequence[Version],
    say: Callable[[str], None],
    progress: Progress,
) -> Iterator[tuple[str, Tensor]]:
    """Name of each version and its audio (2, X)."""
    for number, version in enumerate(versions):

        def counted(done: int, total: int, before: int = number) -> None:
            progress(before * total + done, len(versions) * total)

        attached = add_adapters(model, version.adapters, say)
        (audio_AX,) = generate(model, [wanted], counted)
        for adapter in reversed(attached):
            adapter.detach()
        yield version.name, audio_AX


def _report_silence(version: Version, audio_AX: Tensor, say: Callable[[str], None]) -> None:
    """Say when hardly anything can be heard, which a listener would take for a fault."""
    peak_db = 20 * math.log10(max(float(audio_AX.abs().max()), 1e-9))
    if peak_db < NEARLY_SILENT_DB:
        say(
            f"{version.file} is nearly silent: its peak is {-peak_db:.0f} dB below full scale. "
            "Try another seed or prompt."
        )


def _report_long_prompts(model: LoadedModel, wanted: Generation, say: Callable[[str], None]) -> None:
    for text in filter(None, (wanted.prompt, wanted.negative_prompt)):
        count, most = model.text_encoder.num_tokens(text), model.text_encoder.max_length
        if count > most:
            say(f"the prompt is too long: only the first {most} of {count} tokens are used: {text!r}")


def _facts(model: LoadedModel, wanted: Generation, adapters: Sequence[AdapterUse]) -> dict[str, object]:
    """What the audio was made of: enough to make it again."""
    settings = wanted.sampling(model.objective)
    return {
        "model": model.weights.model,
        "prompt": wanted.prompt,
        "negative_prompt": wanted.negative_prompt,
        "seconds": wanted.seconds,
        "seed": wanted.seed,
        "sampler": settings.sampler,
        "steps": settings.steps,
        "cfg": settings.cfg,
        "adapters": [{"file": str(use.file), "strength": use.strength} for use in adapters],
        "device": str(model.device),
        "precision": str(model.denoiser.dtype).removeprefix("torch."),
        "torch": torch.__version__,
    }
