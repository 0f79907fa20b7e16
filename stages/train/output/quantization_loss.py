"""What storing the base in 8 bits does to the loss: the same adapter, clips, noise and timesteps on both bases."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from stages.models.device import explain_out_of_memory
from stages.models.quantized_linear import NONE, usable_quantization
from stages.train.dataset.examples import Examples
from stages.train.determinism import deterministic_algorithms
from stages.train.job import Job
from stages.train.model.evaluation import Evaluation, evaluate
from stages.train.setup import new_network

UNQUANTIZED = "unquantized"


def unquantized_loss(job: Job, examples: Examples, notes: Mapping[str, Any]) -> Evaluation | None:
    """Of the new adapter on the base as it is; None where nothing is rounded, or the notes of this training have it.

    To be called before the stored base is loaded: the two never lie side by side, so that storing the base in 8 bits
    needs no more memory than not doing so.

    Raises:
        OutOfMemory, PackageMissing.
    """
    how = usable_quantization(job.params.base_quantization, job.device, lambda line: None)
    if how == NONE or UNQUANTIZED in notes:
        return None
    with explain_out_of_memory("loading the unquantised base", job.device):
        network = new_network(unquantized(job))
    with deterministic_algorithms(job.device, job.params.deterministic):
        found = evaluate(network, examples, job.device)
    del network
    gc.collect()  # adapter and base refer to each other
    return found


def unquantized(job: Job) -> Job:
    """The same training on the base as it is before it is rounded, and nothing said about it."""
    params = replace(job.params, base_quantization=NONE)
    return replace(job, params=params, work=replace(job.work, say=lambda line: None))


def rounding_line(how: str, exact: Evaluation, stored: Evaluation) -> str:
    """For people."""
    change = stored.loss / exact.loss - 1
    return f"loss before training: {stored.loss:.4f} on the {how} base, {exact.loss:.4f} unquantised ({change:+.2%})"
