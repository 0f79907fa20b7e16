"""Effect of quantising the base on the loss: the same adapter, clips, noise and timesteps on both bases."""

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
    """Evaluation of the new adapter on the unquantised base; None where params do not quantise, or notes have it.

    To be called before the quantised base is loaded: the two are never in memory together, so quantising needs no more
    memory than not doing so.

    Raises:
        OutOfMemory, PackageMissing.
    """
    scheme = usable_quantization(job.params.base_quantization, job.device, lambda line: None)
    if scheme == NONE or UNQUANTIZED in notes:
        return None
    with explain_out_of_memory("loading the unquantised base", job.device):
        network = new_network(unquantized(job))
    with deterministic_algorithms(job.device, job.params.deterministic):
        found = evaluate(network, examples, job.device)
    del network
    gc.collect()  # adapter and base refer to each other
    return found


def unquantized(job: Job) -> Job:
    """The same job without quantisation, printing nothing."""
    params = replace(job.params, base_quantization=NONE)
    return replace(job, params=params, work=replace(job.work, say=lambda line: None))


def quantization_note(scheme: str, unquantized: Evaluation, quantized: Evaluation) -> str:
    """One line on what quantising the base changes, for people."""
    change = quantized.loss / unquantized.loss - 1
    return (
        f"loss before training: {quantized.loss:.4f} with the base model in {scheme}, "
        f"{unquantized.loss:.4f} unquantised ({change:+.2%})"
    )
