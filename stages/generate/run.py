"""One generation from files to a file: load, attach, sample, write."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from stages.contract import Weights
from stages.generate.adapted_model import LoadedModel, add_adapters, load_model
from stages.generate.audio_file import write_audio
from stages.generate.sampling import generate
from stages.generate.settings import AdapterUse, Generation
from stages.models.device import dtype_named, explain_out_of_memory, pick_device, set_threads, usable_dtype


def generate_file(
    weights: Weights,
    wanted: Generation,
    adapters: Sequence[AdapterUse],
    target: Path,
    *,
    device: str = "auto",
    base_precision: str | None = None,
    threads: int = 0,
    say: Callable[[str], None] = lambda line: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, object]:
    """Generate one clip into `target`; return the facts of it.

    Args:
        base_precision: of the networks; None: fp16 on CUDA, as the public inference code, else fp32.

    Raises:
        StageError: weights, adapters or the device do not fit, or memory ran out.
        cache.errors.WriteFailed: the file cannot be written.
    """
    set_threads(threads)
    place = pick_device(device)
    dtype = dtype_named(base_precision or ("fp16" if place.type == "cuda" else "fp32"))
    start = time.monotonic()
    with explain_out_of_memory("generating", place):
        model = load_model(weights, place, usable_dtype(dtype, place, say))
        add_adapters(model, adapters, say)
        _report_long_prompts(model, wanted, say)
        (audio_AX,) = generate(model, [wanted], progress)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_audio(target, audio_AX, weights.sizes.sample_rate_hz)
    return _facts(model, wanted, adapters) | {"file": str(target), "took_seconds": round(time.monotonic() - start, 2)}


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
