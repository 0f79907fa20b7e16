"""What a finished training leaves in its artifact."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cache.atomic_files import atomic_write_bytes
from cache.manifest import write_rows
from stages.train.dataset.batch import Batch
from stages.train.dataset.examples import Examples
from stages.train.output.adapter_files import AVERAGE, write_adapters
from stages.train.output.readback import Written, outputs
from stages.train.record import checkpoint
from stages.train.record.layer_norms import LayerRow, group_names
from stages.train.record.metrics import ClipRow, StepRow, clip_rows, layer_rows, step_rows
from stages.train.training import Training


def leave_tables(directory: Path, training: Training, examples: Examples) -> None:
    """A row per clip and step, a row per step, a row per look at a group of layers."""
    history, params = training.history, training.params
    seen = [examples.clips_and_starts(step) for step in range(training.step)]
    write_rows(directory / "metrics.parquet", clip_rows(history, seen, params.mask_loss_weight), ClipRow)
    write_rows(directory / "steps.parquet", step_rows(history, params), StepRow)
    groups = group_names(training.optimizer.stacks)
    write_rows(directory / "layers.parquet", layer_rows(history, groups), LayerRow)


def leave_adapters(
    directory: Path, training: Training, metadata: Mapping[str, str], batch: Batch
) -> dict[Path, Written]:
    """The adapter as trained and, if there is one, its average; with what the network computes from each."""
    network, precision = training.network, training.params.export_precision
    spec, average = network.adapter.spec, training.optimizer.ema
    files = write_adapters(directory, network.adapter.state(), spec, metadata, precision)
    velocity_BCT = outputs(network, batch)
    written = {file: Written(dtype, velocity_BCT) for file, dtype in files.items()}
    if average is not None:
        note = {**metadata, "ema_decay": str(training.params.ema_decay)}
        files = write_adapters(directory, average.state(), spec, note, precision, AVERAGE)
        with average.swapped_in():
            velocity_BCT = outputs(network, batch)
        written |= {file: Written(dtype, velocity_BCT) for file, dtype in files.items()}
    return written


def leave_config(directory: Path, config: Mapping[str, Any]) -> None:
    """config.json."""
    atomic_write_bytes(directory / "config.json", json.dumps(config, indent=2, ensure_ascii=False).encode())


def keep_last_checkpoint(directory: Path, step: int) -> None:
    """A longer training goes on from there."""
    checkpoint.keep_only(directory / checkpoint.FOLDER, step)
