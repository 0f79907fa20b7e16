"""Tags of an audio file: title, genre, tempo and the like, by lower-case key."""

from __future__ import annotations

import io
from collections.abc import Mapping

import soundfile

from stages.errors import PackageMissing
from stages.ingest.audio.mpeg_decoder import may_be_mpeg, mpeg_tags
from stages.ingest.audio.mpeg_process import DECODE_ERRORS, FileInMemory
from stages.ingest.faults import FileRejected


def read_tags(data: bytes) -> dict[str, str]:
    """The tags that mutagen reads (ID3, Vorbis comments, MP4) and those that libsndfile reads (RIFF, some of ID3).

    Raises:
        PackageMissing: mutagen is not installed. (Not a fault of the clip: results must not depend on it.)
        FileRejected: `tags_unreadable`.
    """
    try:
        import mutagen  # deferred: an optional package
    except ImportError as error:
        raise PackageMissing("a caption template over tags", "mutagen") from error
    try:
        found = mutagen.File(io.BytesIO(data), easy=True)
    except (mutagen.MutagenError, ValueError, IndexError, KeyError, OverflowError, EOFError) as error:
        raise FileRejected("tags_unreadable", why=type(error).__name__) from error
    return _libsndfile_tags(data) | _texts(getattr(found, "tags", None) or {})


def _libsndfile_tags(data: bytes) -> dict[str, str]:
    try:
        return {key.casefold(): value for key, value in _sound_file_tags(data).items()}
    except (FileRejected, *DECODE_ERRORS):
        return {}  # libsndfile cannot open it: whether it is audio at all is found when it is decoded


def _sound_file_tags(data: bytes) -> dict[str, str]:
    if may_be_mpeg(data):
        return mpeg_tags(data)
    with soundfile.SoundFile(FileInMemory(data)) as file:
        return {key: str(value) for key, value in file.copy_metadata().items()}


def _texts(tags: Mapping[str, object]) -> dict[str, str]:
    """The text of each tag, several values joined; pictures and other values that are not text are left out."""
    texts = {}
    for key in list(tags.keys()):
        value = tags[key]
        parts = value if isinstance(value, list) else getattr(value, "text", [value])
        words = [str(part) for part in parts if isinstance(part, str | int | float)]
        if words:
            texts[str(key).casefold()] = ", ".join(words)
    return texts
