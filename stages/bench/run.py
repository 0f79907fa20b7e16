"""Measures every case of a grid; writes the results as a table and as JSON."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from stages.bench.cases import Case
from stages.bench.measure import BenchEnvironment, measure
from stages.bench.memory import PeakMemory
from stages.bench.timing import product_flops_per_second
from stages.models.device import dtype_named, pick_device, set_threads, usable_dtype

COLUMNS = (
    ("model", "model", "{}"),
    ("frames", "num_frames", "{}"),
    ("adapter", "adapter_type", "{}"),
    ("precision", "base_precision", "{}"),
    ("batch", "batch_size", "{}"),
    ("recompute", "checkpointing", "{}"),
    ("repeatable", "deterministic", "{}"),
    ("plain ms", "plain_ms", "{:.1f}"),
    ("fast ms", "fast_ms", "{:.1f}"),
    ("ratio", "ratio", "{:.1f}"),
    ("frames/s", "frames_per_second", "{:,.0f}"),
    ("TFLOP/s", "tflops_per_second", "{:.2f}"),
    ("of limit", "share_of_limit", "{:.0%}"),
    ("plain GiB", "plain_peak_gib", "{:.2f}"),
    ("estimate", "plain_gib_estimated", "{:.2f}"),
    ("fast GiB", "fast_peak_gib", "{:.2f}"),
    ("estimate", "fast_gib_estimated", "{:.2f}"),
    ("first s", "first_step_seconds", "{:.0f}"),
    ("loss differs", "largest_loss_difference", "{:.0e}"),
)


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The values of each setting; every combination of them is a case."""

    models: Sequence[str]
    frames: Sequence[int]
    adapter_types: Sequence[str] = ("dora-rows",)
    precisions: Sequence[str] = ("bf16",)
    batch_sizes: Sequence[int] = (1,)
    checkpointing: Sequence[bool] = (False,)
    deterministic: Sequence[bool] = (True,)
    rank: int = 16
    steps: int = 10

    def cases(self) -> list[Case]:
        """All cases, in the order of the table."""
        axes = product(
            *(self.models, self.frames, self.adapter_types, self.precisions, self.batch_sizes),
            *(self.checkpointing, self.deterministic),
        )
        return [
            Case(
                model=model,
                num_frames=frames,
                adapter_type=kind,
                rank=self.rank,
                base_precision=precision,
                batch_size=batch_size,
                checkpointing=checkpointing,
                deterministic=deterministic,
            )
            for model, frames, kind, precision, batch_size, checkpointing, deterministic in axes
        ]


def bench(
    grid: Grid,
    device_name: str,
    threads: int,
    target: Path | None,
    say: Callable[[str], None],
    *,
    isolated: bool = True,
) -> str:
    """Measures every case; returns the table, with a line on the accuracy of the memory estimate.

    Args:
        target: a JSON file that is written after every case.
        isolated: on the CPU, measure each case in a new process, so that its memory is that of one case.
    """
    set_threads(threads)
    device = pick_device(device_name)
    rows: list[dict[str, Any]] = []
    limits: dict[str, float] = {}
    with TemporaryDirectory() as caches:
        memory = PeakMemory(device)
        environment = BenchEnvironment(
            device=device, memory=memory, say=say, steps=grid.steps, caches=Path(caches), isolated=isolated
        )
        for case in grid.cases():
            dtype = usable_dtype(dtype_named(case.base_precision), device, say)
            if case.base_precision not in limits:
                limits[case.base_precision] = product_flops_per_second(device, dtype)
            say(f"measuring {case.model}, {case.num_frames} frames, {case.adapter_type}, batch {case.batch_size}")
            rows.append(measure(case, environment, dtype, limits[case.base_precision]))
            if target is not None:
                target.write_text(json.dumps(report(device, limits, rows), indent=1), encoding="utf-8")
    return "\n".join([table(rows), *estimate_accuracy(rows)])


def estimate_accuracy(rows: Sequence[dict[str, Any]]) -> list[str]:
    """One line per path: the range, over all rows, of estimated memory over measured memory."""
    lines = []
    for path in ("plain", "fast"):
        ratios = [row[f"{path}_gib_estimated"] / row[f"{path}_peak_gib"] for row in rows if row[f"{path}_peak_gib"]]
        if ratios:
            lines.append(f"memory estimated, {path}: {min(ratios):.2f} to {max(ratios):.2f} of the memory measured")
    return lines


def report(device: torch.device, limits: dict[str, float], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The JSON document: device, versions and all rows."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "limit_tflops_per_second": {name: limit / 1e12 for name, limit in limits.items()},
        "rows": rows,
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as aligned columns with headings."""
    lines = [[heading for heading, _, _ in COLUMNS]]
    lines += [["-" if row[key] is None else form.format(row[key]) for _, key, form in COLUMNS] for row in rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
