"""Bounds on what a dataset's archive may ask of this machine. Light: standard library only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ArchiveLimits:
    """Checked against what the archive declares before anything of it is unpacked."""

    max_member_bytes: int = 2 << 30
    """Unpacked size of one file: three hours of 16 bit stereo. A file is read whole into memory."""
    max_total_bytes: int = 64 << 30
    """Unpacked size of all files."""
    max_compression_ratio: float = 200.0
    """Unpacked over packed size of one file of a zip; sound hardly packs, a bomb packs a thousandfold."""

    ratio_floor_bytes = 1 << 20
    """Files smaller than this when unpacked are let through at any ratio: a second of silence packs as well as a bomb."""
