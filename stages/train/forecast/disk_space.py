"""The check before a training's first step: its checkpoints, its adapter files and their copies must find room."""

from __future__ import annotations

from stages.disk_space import SpaceNeed, check_space
from stages.models.device import dtype_named
from stages.train.forecast.estimate import MOMENTS
from stages.train.job import Job
from stages.train.record.checkpoint import FOLDER
from stages.train.setup import num_parameters
from stages.train.training import Training


def check_disk_space(job: Job, training: Training) -> None:
    """Compare what is still to be written with what is free in the store and in the output folder.

    Raises:
        InsufficientDiskSpace.
    """
    work, params = job.work, job.params
    fewer = "keep fewer checkpoints (--keep-checkpoints 1)" if work.resources.keep_checkpoints > 1 else ""
    what, num_bytes = "checkpoints and adapter", peak(job, training)
    needs = [SpaceNeed(what=what, folder=work.directory, flag="--store", num_bytes=num_bytes, remedy=fewer)]
    if work.copied_to is not None:
        copies = files_bytes(job, training, dtype_named(params.export_precision).itemsize)
        copies *= 1 + exports_due(job, training.step)
        needs.append(SpaceNeed(what="its copies", folder=work.copied_to, flag="--output", num_bytes=copies))
    check_space("this training", needs)


def peak(job: Job, training: Training) -> int:
    """The most bytes that the workspace grows by: when the last checkpoint is written, or the adapter files after it.

    Tables of metrics are not counted, which are small beside an adapter.
    """
    due, kept = checkpoints_due(job, training.step), job.work.resources.keep_checkpoints
    present = len(list((job.work.directory / FOLDER).glob("step-*")))
    # A checkpoint is complete before an older one goes.
    during = max(1, min(kept, present + due - 1) + 1 - present) if due else 0
    after = min(kept, present + due) - present if due else 0
    one = checkpoint_bytes(job, training)
    adapter = files_bytes(job, training, 4) + files_bytes(
        job, training, dtype_named(job.params.export_precision).itemsize
    )
    return max(during * one, after * one + adapter)


def checkpoints_due(job: Job, step: int) -> int:
    """Checkpoints that a training writes from that step on; not counting one of the step itself."""
    total, every = job.params.number_of_steps, job.work.resources.checkpoint_every
    return total // every - step // every + (total % every > 0) if step < total else 0


def exports_due(job: Job, step: int) -> int:
    """Adapters that are exported on the way from that step on."""
    total, every = job.params.number_of_steps, job.work.resources.save_every
    return 0 if every is None or step >= total else total // every - step // every


def checkpoint_bytes(job: Job, training: Training) -> int:
    """Size of a checkpoint: adapter, moments and average in fp32."""
    averages = job.params.ema_decay is not None
    trained = num_parameters(training.network.adapter)
    return 4 * (num_values(training) + trained * (MOMENTS[job.params.optimizer] + averages))


def files_bytes(job: Job, training: Training, itemsize: int) -> int:
    """Size of the adapter in one precision, and of its moving average where there is one."""
    return itemsize * num_values(training) * (1 + (job.params.ema_decay is not None))


def num_values(training: Training) -> int:
    """Values in an adapter file."""
    return sum(tensor.numel() for tensor in training.network.adapter.state().values())
