"""Writes the artifact of a finished training: tables, adapters, config.json and the last checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cache.files.atomic_files import atomic_write_bytes
from cache.manifest import write_rows
from stages.train.dataset.batch import Batch
from stages.train.dataset.examples import Examples
from stages.train.output.adapter_files import EMA, write_adapter_files
from stages.train.output.readback import WrittenFile, velocity_of
from stages.train.record import checkpoint
from stages.train.record.layer_norms import LayerRow, group_names
from stages.train.record.metrics import ClipRow, StepRow, clip_rows, layer_rows, step_rows
from stages.train.training import Training


def write_tables(directory: Path, training: Training, examples: Examples) -> None:
    """Write metrics.parquet, steps.parquet and layers.parquet."""
    history, params = training.history, training.params
    seen = [examples.clips_and_starts(step) for step in range(training.step)]
    write_rows(directory / "metrics.parquet", clip_rows(history, seen, params.mask_loss_weight), ClipRow)
    write_rows(directory / "steps.parquet", step_rows(history, params), StepRow)
    groups = group_names(training.optimizer.stacks)
    write_rows(directory / "layers.parquet", layer_rows(history, groups), LayerRow)


def write_adapters(
    directory: Path, training: Training, metadata: Mapping[str, str], batch: Batch
) -> dict[Path, WrittenFile]:
    """Write the adapter and, if there is one, its average; returns each file with the output of the trained network."""
    network, precision = training.network, training.params.export_precision
    spec, ema = network.adapter.spec, training.optimizer.ema
    files = write_adapter_files(directory, network.adapter.state(), spec, metadata, precision)
    velocity_BCT = velocity_of(network, batch)
    written = {file: WrittenFile(dtype, velocity_BCT) for file, dtype in files.items()}
    if ema is not None:
        with_decay = {**metadata, "ema_decay": str(training.params.ema_decay)}
        files = write_adapter_files(directory, ema.state(), spec, with_decay, precision, EMA)
        with ema.swapped_in():
            velocity_BCT = velocity_of(network, batch)
        written |= {file: WrittenFile(dtype, velocity_BCT) for file, dtype in files.items()}
    return written


def write_config(directory: Path, config: Mapping[str, Any]) -> None:
    """Write config.json."""
    atomic_write_bytes(directory / "config.json", json.dumps(config, indent=2, ensure_ascii=False).encode())


def keep_last_checkpoint(directory: Path, step: int) -> None:
    """Delete all checkpoints but the last, from which a longer training continues."""
    checkpoint.keep_only(directory / checkpoint.FOLDER, step)
