"""Overlapping chunks of a long signal, joined by hard cuts: which frames of which chunk go where."""

from __future__ import annotations

from dataclasses import dataclass

CHUNK_FRAMES, OVERLAP_FRAMES = 128, 32
"""Chunk and overlap of the published models, in latent frames."""


@dataclass(frozen=True)
class Chunk:
    """One chunk of a long signal; in latent frames unless stated otherwise."""

    start: int
    """First input sample or frame."""
    kept: range
    """Frames of the chunk that are written to the result; later chunks overwrite earlier ones."""
    destination: int
    """Frame of the result where frame 0 of the chunk goes."""


def chunks(total: int, unit: int, chunk_frames: int, overlap_frames: int) -> list[Chunk]:
    """The chunks of a signal.

    The hop is the chunk minus the overlap. If the last regular chunk does not end with the signal, one more is aligned
    to the end: its start need not lie on a frame boundary, its destination does. Half the overlap is dropped at every
    inner edge.

    Args:
        total: length of the signal, in units (samples or frames).
        unit: units per latent frame.

    Raises:
        ValueError: the overlap is not smaller than the chunk, or the signal is shorter than one chunk.
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
