"""What lies beside a clip that has no caption, and what to do about it. Light: standard library only."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from posixpath import basename, dirname

from stages.ingest.caption_template import SIDECAR
from stages.ingest.file_types import ARCHIVES, CAPTION, READABLE, TABLES, UNREADABLE, stem, suffix

_NO_SOUND = {".png", ".jpg", ".jpeg", ".mid", ".pdf", ".asd", ".peak", ".reapeaks"}
_UNFINISHED = {".part", ".partial", ".crdownload", ".download", ".opdownload", ".filepart", ".!ut", ".aria2", ".tmp"}
"""Suffixes that browsers and copying tools add until a file is whole."""
_NO_TEXT = READABLE | UNREADABLE | ARCHIVES | _NO_SOUND


class Surroundings:
    """The files of a dataset by folder and by name, for a hint about each clip without a caption."""

    def __init__(self, names: Iterable[str]) -> None:
        self._folders: dict[str, list[str]] = defaultdict(list)
        self._captions: dict[str, list[str]] = defaultdict(list)
        for name in sorted(names):
            self._folders[dirname(name)].append(name)
            if suffix(name) == CAPTION:
                self._captions[basename(stem(name))].append(name)

    def sound(self, caption: str) -> str:
        """What may be the sound of this caption under a suffix that is not read, and the remedy; else empty."""
        other = _NO_SOUND | ARCHIVES | TABLES | {CAPTION, SIDECAR, ".md"}
        for name in self._folders[dirname(caption)]:
            if suffix(name) in _UNFINISHED and stem(stem(name)) == stem(caption):
                return f" ({name} lies beside it: its download or copy was not finished; finish it, or fetch it again)"
            if stem(name) == stem(caption) and suffix(name) not in {"", *other}:
                convert = f"`ffmpeg -i {name} {stem(name)}.wav`"
                return f" ({name} lies beside it: if it is the sound, convert it, for example with {convert})"
        return ""

    def hint(self, audio: str) -> str:
        """What may be the caption of this audio file, and the remedy; empty if nothing like it is there."""
        wanted = stem(audio) + CAPTION
        beside = [
            name for name in self._folders[dirname(audio)] if name.startswith(f"{stem(audio)}.") and name != audio
        ]
        for name in beside:
            if suffix(name) == SIDECAR and name != f"{stem(audio)}{SIDECAR}":
                own = basename(f"{stem(audio)}{SIDECAR}")
                return f" ({name} lies beside it: renamed to {own}, its keys are used by --caption-template)"
            if suffix(name) == SIDECAR:
                return f" ({name} lies beside it: its key `caption`, say, is used by --caption-template '{{caption}}')"
        for name in beside:
            if suffix(name) not in _NO_TEXT:
                return f" ({name} lies beside it: if it is the caption, rename it to {basename(wanted)})"
        for folder in (dirname(audio), ""):
            for name in self._folders[folder]:
                if suffix(name) in TABLES:
                    return f" ({name} lies there: if it holds the captions, read them with --captions {name})"
        for name in self._captions[basename(stem(audio))]:
            return f" ({name} has its name: if it is the caption, move it to {wanted})"
        return ""
