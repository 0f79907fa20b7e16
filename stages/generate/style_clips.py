"""Clips of a style from a folder or zip, and the distance of generated sounds to them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stages.contract import Member, Source
from stages.errors import Fault, StyleClipsUnusable
from stages.generate.settings import SHORTEST_COMPARED_SECONDS
from stages.ingest.audio.flac_writer import SILENCE_DBFS
from stages.ingest.audio.mpeg_decoder import end_idle_decoders
from stages.ingest.audio.resample import resample
from stages.ingest.faults import FileRejected, fault_of_member
from stages.ingest.file_types import READABLE, suffix
from stages.ingest.prepare_clip import open_recording
from stages.ingest.source.archive import close_archives, read_member
from stages.judge.log_mel import SAMPLE_RATE_HZ
from stages.judge.style_distance import remoteness

FEWEST_CLIPS = 2
"""A style is as wide as the distances between its clips."""


@dataclass(frozen=True, kw_only=True)
class StyleClips:
    """Clips of a style, all of one length."""

    where: Path
    wanted_BAX: Tensor
    """(clips, 2, samples) at 44.1 kHz."""

    def distances(self, made: Mapping[str, Tensor]) -> dict[str, object]:
        """Remoteness of each sound (2, X) by its name, and what it was compared with.

        Sounds and clips are compared by their beginnings, as long as the shortest of them.
        """
        length = min(self.wanted_BAX.shape[2], *(audio_AX.shape[1] for audio_AX in made.values()))
        wanted_BAX = self.wanted_BAX[..., :length]
        found = {name: remoteness(audio_AX[None, :, :length], wanted_BAX) for name, audio_AX in made.items()}
        seconds = round(length / SAMPLE_RATE_HZ, 3)
        return {"clips": str(self.where), "num_clips": len(wanted_BAX), "compared_seconds": seconds, **found}


def read_style_clips(source: Source, seconds: float) -> StyleClips:
    """The first seconds of every audio file, cut to the length of the shortest; other files are left out.

    Raises:
        StyleClipsUnusable: every clip that cannot be read, is silent or too short, or there are too few.
    """
    members = _audio_members(source)
    clips, faults = [], []
    try:
        for member in members:
            try:
                clips.append(_clip(source, member, seconds))
            except FileRejected as rejection:
                faults.append(rejection.fault(member.name))
            except _Unfit as unfit:
                faults.append(Fault(member=member.name, type="unfit", msg=str(unfit)))
    finally:
        close_archives()
        end_idle_decoders()
    faults += [
        fault for member in source.members if suffix(member.name) in READABLE if (fault := fault_of_member(member))
    ]
    if not faults and len(members) < FEWEST_CLIPS:
        why = f"it holds {len(members)} different clips; at least {FEWEST_CLIPS} are needed. Add clips of the style."
        faults.append(Fault(member="", type="too_few_clips", msg=why))
    if faults:
        raise StyleClipsUnusable(source.path, faults)
    length = min(clip_AX.shape[1] for clip_AX in clips)
    return StyleClips(where=source.path, wanted_BAX=torch.stack([clip_AX[:, :length] for clip_AX in clips]))


class _Unfit(Exception):
    """Why a clip that can be read says nothing of a style."""


def _audio_members(source: Source) -> list[Member]:
    """Audio files that can be read, each content once."""
    readable = (member for member in source.members if suffix(member.name) in READABLE and not member.fault)
    return list({member.digest: member for member in readable}.values())


def _clip(source: Source, member: Member, seconds: float) -> Tensor:
    """(2, X): the beginning of a recording. Raises: FileRejected, _Unfit."""
    recording = open_recording(read_member(source.path, source.kind, member))
    blocks = list(_beginning(recording.blocks(), round(seconds * recording.sample_rate_hz)))
    recording.check()
    audio_AX = np.concatenate(blocks or [np.zeros((2, 0), np.float32)], axis=1)
    if audio_AX.shape[1] < SHORTEST_COMPARED_SECONDS * recording.sample_rate_hz:
        raise _Unfit(
            f"it lasts {audio_AX.shape[1] / recording.sample_rate_hz:.2f} s; clips are compared from "
            f"{SHORTEST_COMPARED_SECONDS:g} s on. Take it out of the folder."
        )
    if np.abs(audio_AX).max() < 10 ** (SILENCE_DBFS / 20):
        raise _Unfit(f"its first {seconds:g} s are silent. Take it out of the folder.")
    return torch.from_numpy(resample(audio_AX, recording.sample_rate_hz, SAMPLE_RATE_HZ))


def _beginning(blocks_AX: Iterator[np.ndarray], num_samples: int) -> Iterator[np.ndarray]:
    """Blocks of the first samples; the rest is read all the same, as the file is checked to its end."""
    for block_AX in blocks_AX:
        yield block_AX[:, : max(num_samples, 0)].copy()
        num_samples -= block_AX.shape[1]
