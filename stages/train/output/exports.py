"""Adapters that leave a training on its way: every so many steps, and where it stops. No part of its result."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from cache.errors import WriteFailed
from stages.adapters import adapter_file
from stages.errors import AdapterNotWritable
from stages.models.device import dtype_named
from stages.train.job import Job
from stages.train.output.adapter_files import adapter_metadata, made_on, verify
from stages.train.training import Training

FOLDER = "exports"
"""Where they are written before they are handed out; empty at any other time."""
STOPPED = "_stopped"


def export(job: Job, training: Training, stopped: bool) -> None:
    """Hand out the adapter as it is after this step, and its moving average if there is one; nothing before step 1.

    What cannot be written (a full disk, values beyond the precision of the export) is said, and ends no training.

    Args:
        stopped: the training ends here before its last step; the file's name and metadata say so.

    Raises:
        AdapterMismatch: a file does not hold what was written.
    """
    for mark, tensors in _adapters(training):
        suffix = f"_{training.step:06d}{STOPPED if stopped else ''}{mark}.safetensors"
        try:
            _hand_out(job, training, tensors, suffix, _metadata(job, training, stopped=stopped))
        except (AdapterNotWritable, WriteFailed) as error:
            job.work.say(f"no adapter was exported at step {training.step}: {error}")
    remove_exports(job.work.directory)


def remove_exports(directory: Path) -> None:
    """Remove what a killed process left, so that it is no part of the artifact."""
    shutil.rmtree(directory / FOLDER, ignore_errors=True)


def _adapters(training: Training) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """(mark in the file's name, tensors) of what is exported."""
    if training.step == 0:
        return
    yield "", training.network.adapter.state()
    if training.optimizer.ema is not None:
        yield "_ema", training.optimizer.ema.state()


def _metadata(job: Job, training: Training, *, stopped: bool) -> dict[str, str]:
    """As that of a finished adapter, with whose it is, and whether it is unfinished."""
    unfinished = {"unfinished": f"stopped at step {training.step} of {training.params.number_of_steps}"}
    return adapter_metadata(job, training.step) | {"identity": job.work.identity} | (unfinished if stopped else {})


def _hand_out(
    job: Job, training: Training, tensors: Mapping[str, Tensor], suffix: str, metadata: Mapping[str, str]
) -> None:
    file = job.work.directory / FOLDER / f"adapter{suffix}"
    file.parent.mkdir(exist_ok=True)
    spec, dtype = training.network.adapter.spec, dtype_named(training.params.export_precision)
    adapter_file.write(file, tensors, spec, metadata, dtype, made_on(metadata))
    verify(file, {key: tensor.to(dtype) for key, tensor in tensors.items()}, spec)
    job.work.hand_out(file, suffix)
