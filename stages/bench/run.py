"""The grid: every combination asked for, a line as each is measured, a table and a JSON file at the end."""

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
from stages.bench.measuring import Place, measure
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
    """Every combination of these is measured."""

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
        """In the order of the table."""
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
    apart: bool = True,
) -> str:
    """Measure, write `target` as JSON after every row, and return the table with what it says of the estimates.

    Args:
        apart: on the CPU, in new processes, so that memory is that of one case alone.
    """
    set_threads(threads)
    device = pick_device(device_name)
    rows: list[dict[str, Any]] = []
    limits: dict[str, float] = {}
    with TemporaryDirectory() as caches:
        memory = PeakMemory(device)
        place = Place(device=device, memory=memory, say=say, steps=grid.steps, caches=Path(caches), apart=apart)
        for case in grid.cases():
            dtype = usable_dtype(dtype_named(case.base_precision), device, say)
            if case.base_precision not in limits:
                limits[case.base_precision] = product_flops_per_second(device, dtype)
            say(f"measuring {case.model}, {case.num_frames} frames, {case.adapter_type}, batch {case.batch_size}")
            rows.append(measure(case, place, dtype, limits[case.base_precision]))
            if target is not None:
                target.write_text(json.dumps(report(device, limits, rows), indent=1), encoding="utf-8")
    return "\n".join([table(rows), *checked(rows)])


def checked(rows: Sequence[dict[str, Any]]) -> list[str]:
    """How far the estimates lie from what was measured, over all rows."""
    said = []
    for way in ("plain", "fast"):
        ratios = [row[f"{way}_gib_estimated"] / row[f"{way}_peak_gib"] for row in rows if row[f"{way}_peak_gib"]]
        if ratios:
            said.append(f"memory estimated, {way}: {min(ratios):.2f} to {max(ratios):.2f} of what was measured")
    return said


def report(device: torch.device, limits: dict[str, float], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """All that was measured, and on what."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "limit_tflops_per_second": {name: limit / 1e12 for name, limit in limits.items()},
        "rows": rows,
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Aligned columns with a heading."""
    lines = [[heading for heading, _, _ in COLUMNS]]
    lines += [["-" if row[key] is None else form.format(row[key]) for _, key, form in COLUMNS] for row in rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
