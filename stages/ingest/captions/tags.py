"""What a sound file says about itself: title, genre, tempo and the like, by lower-case key."""

from __future__ import annotations

import io
from collections.abc import Mapping

import soundfile

from stages.errors import PackageMissing
from stages.ingest.audio.mpeg_decoder import may_be_mpeg, mpeg_tags
from stages.ingest.faults import Unfit


def read_tags(data: bytes) -> dict[str, str]:
    """Tags of any kind that mutagen reads (ID3, Vorbis comments, MP4), and the RIFF ones that libsndfile reads.

    Raises:
        PackageMissing: mutagen is not installed. (Not a fault of the clip: results must not depend on it.)
        Unfit: `tags_unreadable`.
    """
    try:
        import mutagen  # deferred: an optional package
    except ImportError as error:
        raise PackageMissing("a caption template over tags", "mutagen") from error
    try:
        found = mutagen.File(io.BytesIO(data), easy=True)
    except (mutagen.MutagenError, ValueError, IndexError, KeyError, OverflowError, EOFError) as error:
        raise Unfit("tags_unreadable", why=type(error).__name__) from error
    return _riff_tags(data) | _texts(getattr(found, "tags", None) or {})


def _riff_tags(data: bytes) -> dict[str, str]:
    try:
        return {key.casefold(): value for key, value in _sound_file_tags(data).items()}
    except (Unfit, soundfile.LibsndfileError, RuntimeError, TypeError):
        return {}  # libsndfile cannot open it: whether it is audio at all is found when it is decoded


def _sound_file_tags(data: bytes) -> dict[str, str]:
    if may_be_mpeg(data):
        return mpeg_tags(data)
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        return {key: str(value) for key, value in file.copy_metadata().items()}


def _texts(tags: Mapping[str, object]) -> dict[str, str]:
    """Each key's first value, or all of them joined; pictures and the like are no text."""
    texts = {}
    for key in list(tags.keys()):
        value = tags[key]
        parts = value if isinstance(value, list) else getattr(value, "text", [value])
        words = [str(part) for part in parts if isinstance(part, str | int | float)]
        if words:
            texts[str(key).casefold()] = ", ".join(words)
    return texts
