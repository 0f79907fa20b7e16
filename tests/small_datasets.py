"""Small datasets of real audio files, and runs of ingest on them."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from cache.manifest import read_rows
from stages.contract import Inputs, Outcome, Resources, Workspace
from stages.errors import DatasetFaults
from stages.ingest.run import MANIFEST, ingest
from stages.ingest.source.listing import open_source
from stages.ingest.stage import IngestParams
from stages.records import Clip

RATE = 44100
PARAMS = IngestParams(native_samples=4 * RATE)
"""A model of four seconds."""


def tone(
    seconds: float = 0.5, *, hz: float = 440.0, rate: int = RATE, level: float = 0.3, channels: int = 2
) -> np.ndarray:
    """(X, A) float32: a sine whose level falls from channel to channel."""
    time_X = np.arange(round(seconds * rate)) / rate
    sine_X = level * np.sin(2 * np.pi * hz * time_X)
    return np.stack([sine_X / (1 + channel) for channel in range(channels)], axis=1).astype(np.float32)


def sound(audio: np.ndarray | None = None, rate: int = RATE, form: str = "WAV", subtype: str | None = None) -> bytes:
    """The bytes of an audio file."""
    buffer, audio = io.BytesIO(), tone() if audio is None else audio
    with soundfile.SoundFile(buffer, "w", rate, audio.shape[1], subtype, format=form) as file:
        step = 4096 if subtype in ("VORBIS", "OPUS") or form == "OGG" else 1 << 20
        for start in range(0, len(audio), step):  # libsndfile's Vorbis encoder overflows the stack on long blocks
            file.write(audio[start : start + step])
    return buffer.getvalue()


def clips(*names: str, **tone_settings: Any) -> dict[str, bytes]:
    """Files of a valid dataset: one tone per name, each of its own pitch, with its caption."""
    files: dict[str, bytes] = {}
    for number, name in enumerate(names):
        files[f"{name}.wav"] = sound(tone(hz=300.0 + 50 * number, **tone_settings))
        files[f"{name}.txt"] = f"tone number {number}\n".encode()
    return files


def folder(root: Path, files: Mapping[str, bytes]) -> Path:
    """A folder of the files."""
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def zipped(path: Path, files: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    """A zip of the files."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def workspace(place: Path, resources: Resources | None = None, **changes: Any) -> Workspace:
    """A workspace with its shared folder next to it; ingest runs in this process."""
    directory = place / "scratch"
    directory.mkdir(parents=True, exist_ok=True)
    return Workspace(
        directory=directory, shared=place / "shared", resources=resources or Resources(workers=1), **changes
    )


def run(data: Path, work: Workspace, **params: Any) -> tuple[Outcome, list[Clip]]:
    """The outcome of ingest and the rows of its manifest."""
    outcome = ingest(Inputs(source=open_source(data)), replace(PARAMS, **params), work)
    return outcome, read_rows(work.directory / MANIFEST, Clip)


def faults(data: Path, place: Path, **params: Any) -> list[tuple[str, str]]:
    """(member, type) of every fault ingest finds; fails when it finds none."""
    work = workspace(place)
    (work.directory / MANIFEST).unlink(missing_ok=True)
    try:
        run(data, work, **params)
    except DatasetFaults as error:
        assert not list(work.directory.iterdir()), "a refused dataset leaves nothing in the workspace"
        return [(fault.member, fault.type) for fault in error.faults]
    raise AssertionError("ingest found nothing wrong")


def counted(function: Callable[..., Any], seen: list[Any]) -> Callable[..., Any]:
    """The function, recording its first argument at every call."""

    def noting(first: Any, *rest: Any) -> Any:
        seen.append(first)
        return function(first, *rest)

    return noting
