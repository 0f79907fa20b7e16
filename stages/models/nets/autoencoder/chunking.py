"""Long signals in overlapping chunks, joined by hard cuts: which part of which chunk goes where."""

from __future__ import annotations

from dataclasses import dataclass

CHUNK_FRAMES, OVERLAP_FRAMES = 128, 32
"""Defaults of the published models."""


@dataclass(frozen=True)
class Chunk:
    """One chunk of a long signal. Starts are in input units (samples or frames), the rest in latent frames."""

    start: int
    kept: range
    """Local frames that are written; later chunks overwrite earlier ones."""
    destination: int
    """Frame of the result that local frame 0 stands for."""


def chunks(total: int, unit: int, chunk_frames: int, overlap_frames: int) -> list[Chunk]:
    """The chunks of a signal of `total` units, at `unit` units per latent frame; `total` holds at least one chunk.

    A hop is a chunk less the overlap. When the last regular chunk does not end with the signal, one more is laid
    against the end: its start need not lie on a frame, its destination does. Half the overlap is dropped at every
    inner edge.

    Raises:
        ValueError: an overlap that is not smaller than the chunk, or a signal shorter than a chunk.
    """
    if not 0 <= overlap_frames < chunk_frames:
        raise ValueError(
            f"overlap must be at least 0 and below the chunk ({chunk_frames} frames); got {overlap_frames}"
        )
    last_start = total - chunk_frames * unit
    if last_start < 0:
        raise ValueError(f"a signal of {total} is shorter than a chunk of {chunk_frames} x {unit}")
    starts = list(range(0, last_start + 1, (chunk_frames - overlap_frames) * unit))
    if starts[-1] != last_start:
        starts.append(last_start)
    edge = overlap_frames // 2
    return [
        Chunk(
            start=start,
            kept=range(0 if start == 0 else edge, chunk_frames if start == last_start else chunk_frames - edge),
            destination=total // unit - chunk_frames if start == last_start else start // unit,
        )
        for start in starts
    ]
