"""What storing the base in 8 bits does to the loss: the same adapter, clips, noise and timesteps on both bases."""

from __future__ import annotations

from dataclasses import replace

from stages.models._quantized import NONE, quantization_of
from stages.train.evaluation import Evaluation, evaluate
from stages.train.examples import Examples
from stages.train.job import Job
from stages.train.loop import Training
from stages.train.start import new_network

UNQUANTIZED = "unquantized"


def note_rounding(job: Job, training: Training, examples: Examples) -> None:
    """Note the loss of the unquantised base beside that of the stored one, and say both; once in a training.

    The unquantised base is loaded for this and let go of. `training.notes["before"]` must be there.
    """
    how = quantization_of(training.network.denoiser)
    if how == NONE or UNQUANTIZED in training.notes:
        return
    network = new_network(unquantized(job))
    exact = evaluate(network, examples, job.device)
    training.notes[UNQUANTIZED] = list(exact.by_timestep)
    job.work.say(rounding_line(how, exact, Evaluation(tuple(training.notes["before"]))))


def unquantized(job: Job) -> Job:
    """The same training on the base as it is before it is rounded, and nothing said about it."""
    params = replace(job.params, base_quantization=NONE)
    return replace(job, params=params, work=replace(job.work, say=lambda line: None))


def rounding_line(how: str, exact: Evaluation, stored: Evaluation) -> str:
    """For people."""
    change = stored.loss / exact.loss - 1
    return f"loss before training: {stored.loss:.4f} on the {how} base, {exact.loss:.4f} unquantised ({change:+.2%})"
