"""Every fault and warning ingest knows, by its stable name: what is wrong, what to do. Light: standard library only.

A new check adds its line here and raises `Unfit` (or yields a `Fault`) where it looks.
"""

from __future__ import annotations

from collections.abc import Iterable

from stages.contract import Member
from stages.errors import Fault

MESSAGES = {
    # the archive
    "path_traversal": "its name leads out of the archive. Pack the files again without `..` in their names.",
    "absolute_name": "its name is absolute. Pack the files again with relative names.",
    "symlink": "it is a link, and links are not followed. Put the file itself in its place (cp -L).",
    "not_a_file": "it is neither a file nor a folder. Take it out of the dataset.",
    "name_not_utf8": "its name is not UTF-8. Rename the file, or pack with a tool that writes UTF-8 names.",
    "device_name": "its name is that of a device on Windows. Rename the file.",
    "name_not_printable": "its name holds control characters. Rename the file, and its partner.",
    "compression_method": "it is packed with {method}, which is not read. Pack the files again as an ordinary zip.",
    "overlapping_entries": "it shares bytes with {other}, as only a bomb does; it was not read. Pack the files again.",
    "nested_archive": "it is an archive inside the dataset and is not opened. Unpack it in place, or take it out.",
    "encrypted": "it is encrypted. Pack the files again without a password.",
    "member_unreadable": "it cannot be read ({why}). Copy or pack the file again.",
    "member_changed": "it changed while the dataset was read. Run again once nothing writes to it.",
    "member_too_large": (
        "it is {size:,} bytes when unpacked, over the limit of {limit:,}. Cut it into shorter clips, or raise "
        "max_member_bytes."
    ),
    "archive_too_large": (
        "its files are {size:,} bytes when unpacked, over the limit of {limit:,}; none was read. Split the "
        "dataset, or raise max_total_bytes."
    ),
    "compression_ratio": (
        "it unpacks to {ratio:,.0f} times its packed size, over the limit of {limit:,.0f}; it was not read. If "
        "it is no bomb, pack it without compression, or raise max_compression_ratio."
    ),
    "too_few_clips": (
        "it has {count} usable clips, at least {limit} are needed. Add audio files, each with a caption of the "
        "same name ending in .txt."
    ),
    "too_many_clips": ("it has {count} clips, over the limit of {limit}. Split the dataset, or raise --max-clips."),
    # names and captions
    "duplicate_name": (
        "it has the same name as {others}, apart from suffix or upper and lower case. Rename all but one, with "
        "their captions."
    ),
    "missing_caption": "it has no caption. Write what it sounds like into {wanted}{near}.",
    "missing_audio": (
        "it is a caption without an audio file. Add the audio beside it under the same name, or rename it to end "
        "in .md if it is no caption{near}."
    ),
    "empty_caption": "it holds no text. Write what the clip sounds like into it.",
    "caption_not_utf8": "it is not UTF-8 text{hint}. Save it as UTF-8.",
    "caption_key_missing": (
        "the caption template asks for {key}, which it has not (it has {there}). Add the key to the .json beside it, "
        "or leave it out of --caption-template."
    ),
    "tags_unreadable": "its tags cannot be read ({why}). Write them anew, or put the keys into a .json beside it.",
    "sidecar_invalid": "it is no JSON object ({why}). Mend it, or take it out.",
    # audio
    "unsupported_audio_format": (
        "{suffix} cannot be read here. {remedy}, for example with `ffmpeg -i {name} {stem}.wav`, and take the "
        "original out."
    ),
    "audio_decode_error": "it cannot be decoded ({why}). Export it again, as WAV or FLAC if you can.",
    "audio_truncated": "it is cut short: {why}. Copy or export it again.",
    "sample_rate_unsupported": (
        "its header says {rate:,} Hz; {low:,} to {high:,} Hz can be read. Export it again at a usual rate."
    ),
    "audio_too_short": (
        "it is {count:,} samples long at {rate:,} Hz, shorter than one latent frame ({limit:,}). Use a longer "
        "recording, or pad it."
    ),
    "silent": "it is silent: its peak is below {limit:g} dBFS. Take it out, or record it louder.",
    "not_finite": "it holds NaN or infinite samples. Export it again.",
    "absurd_peak": "it has a peak of {peak:,.3g}, where full scale is 1. Export it again at a normal level.",
}
"""What is wrong with a file, and what to do about it."""

NOTES = {
    "other_file": "it is neither audio nor a caption and is not used.",
    "unread_file": "it is neither audio nor a caption, and could not be read ({why}).",
    "channels_dropped": "it has {count} channels; the first two are kept.",
    "cropped_to_native": "it is {seconds:,.1f} s long; the first {kept:,.1f} s are kept, the model's native length.",
    "window_silent": "its part from {start:,.1f} to {stop:,.1f} s is silent and makes no clip.",
    "rest_dropped": "its last {count:,} samples are less than one latent frame, and make no clip.",
    "caption_unused": "the caption template does not use it; {{caption}} would.",
    "codec_delay_unknown": "it does not say how much silence its encoder put before the sound; all of it is kept.",
    "codec_padding": "{samples} that its encoder added to the end {are} left out.",
    "stray_bytes": "{count:,} bytes lie behind the end that its header declares, and are not read.",
    "dropouts": "{stretches} of exact silence {begin} abruptly in it: parts of the file may be missing.",
    "decoder_complaints": "its decoder reported damage {times} ({complaint}): listen to it, or export it anew.",
    "clipping": "{count:,} samples in {runs} stand at full scale: it was recorded or mastered too loud.",
    "dc_offset": "it is off centre by {offset:.3f} of full scale. A high-pass filter would mend it.",
    "clamped": "{samples} {are} beyond full scale (peak {peak:.3f}) and {are} clamped to it.",
    "length_unknown": ("it does not say how long it is, so that a cut could not be noticed."),
}
"""Worth knowing, but no reason to stop."""

ARCHIVE_WIDE = frozenset(
    {
        "path_traversal",
        "absolute_name",
        "symlink",
        "overlapping_entries",
        "archive_too_large",
        "compression_ratio",
        "too_few_clips",
        "too_many_clips",
    }
)
"""Faults that leaving out clips does not mend: they end the run even with skip_bad."""


class Unfit(Exception):
    """Raised by whoever looks at one file and finds a fault; turned into a `Fault` where the file's name is known."""

    def __init__(self, type: str, **facts: object) -> None:
        super().__init__(type)
        self.type, self.facts = type, facts

    def fault(self, member: str) -> Fault:
        """The fault with its file."""
        return fault(member, self.type, **self.facts)


def fault(member: str, type: str, **facts: object) -> Fault:
    """A fault of one file; of the whole dataset if `member` is empty."""
    return Fault(member=member, type=type, msg=MESSAGES[type].format(**facts))


def note(member: str, type: str, **facts: object) -> Fault:
    """A warning, in the same form as a fault."""
    return Fault(member=member, type=type, msg=NOTES[type].format(**facts))


def as_text(found: Fault) -> str:
    """A fault in one line, as `Member.fault` carries it."""
    return f"{found.type}: {found.msg}"


def of_member(member: Member) -> Fault | None:
    """The fault a member carries; one of the whole dataset is not repeated for each file."""
    if member.fault is None:
        return None
    type, _, msg = member.fault.partition(": ")
    return Fault(member="" if type == "archive_too_large" else member.name, type=type, msg=msg)


def in_order(faults: Iterable[Fault]) -> list[Fault]:
    """Each fault once, sorted by file and name; those of the whole dataset first."""
    return sorted(set(faults), key=lambda found: (found.member, found.type, found.msg))


def as_record(found: Fault) -> dict[str, str]:
    """A fault or warning as the receipt keeps it."""
    return {"member": found.member, "type": found.type, "msg": found.msg}
