"""Every fault and warning of ingest by its stable name: what is wrong and what to do. Light: standard library only.

A new check adds its message here and raises `FileRejected` (or yields a `Fault`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from stages.contract import Member
from stages.errors import Fault

MESSAGES = {
    # The archive. Do not reword these, nor `unsupported_audio_format`: where a file cannot be read, its message takes
    # the place of its digest in the dataset's fingerprint.
    "path_traversal": "its name leads out of the archive. Pack the files again without `..` in their names.",
    "absolute_name": "its name is absolute. Pack the files again with relative names.",
    "symlink": "it is a link, and links are not followed. Put the file itself in its place (cp -L).",
    "dangling_link": (
        "it is a link to a file that is not there. Put the file itself in its place, or remove the link and its "
        "partner."
    ),
    "link_loop": "it is a link to a folder that it lies in. Remove the link.",
    "not_a_file": "it is neither a file nor a folder. Take it out of the dataset.",
    "device_name": "its name is that of a device on Windows. Rename the file.",
    "name_not_printable": "its name holds control characters. Rename the file, and its partner.",
    "compression_method": "it is packed with {method}, which is not read. Pack the files again as an ordinary zip.",
    "overlapping_entries": "it shares bytes with {other}, as only a bomb does; it was not read. Pack the files again.",
    "nested_archive": "it is an archive inside the dataset and is not opened. Unpack it in place, or remove it.",
    "not_downloaded": (
        "it is not here: iCloud keeps it elsewhere and left a placeholder. Download it (in Finder: Download Now) and "
        "run again."
    ),
    "encrypted": "it is encrypted. Pack the files again without a password.",
    "member_unreadable": "it cannot be read ({why}). Copy or pack the file again.",
    "member_changed": "it changed while the dataset was read. Run again when nothing else writes to it.",
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
    # Folders that hold no data. Inside a dataset they are notes.
    "store_folder": "it is a store of sa3-trainer and is not read as data. Move clips that lie in it elsewhere.",
    "output_folder": "it is an output folder of sa3-trainer and not read as data. Move clips that lie in it elsewhere.",
    "tool_folder": "it belongs to a tool such as git and is not read as data. Move clips that lie in it elsewhere.",
    # The dataset as a whole.
    "too_few_clips": (
        "it has {count} usable clips, fewer than the {limit} that it takes. Add audio files, each with a caption of "
        "the same name ending in .txt."
    ),
    "too_many_clips": ("it has {count} clips, over the limit of {limit}. Split the dataset, or raise --max-clips."),
    # names and captions
    "duplicate_name": (
        "it has the same name as {others}, apart from the suffix, upper and lower case or the form of accents. Rename "
        "all but one, and their captions."
    ),
    "missing_caption": "it has no caption. Write what it sounds like into {wanted}{near}.",
    "caption_row_missing": "{table} has no row for it. Add one, or leave --captions out and write {wanted}.",
    "caption_table_missing": (
        "the dataset holds no {name}{near}. Put the .csv, .tsv or .jsonl file into the data, and give --captions its "
        "path there."
    ),
    "caption_table_invalid": "it is no table of files and captions ({why}). Correct it, or leave --captions out.",
    "caption_row_invalid": "{where} {why}. Correct the row, or take it out of the table.",
    "missing_audio": (
        "it is a caption without an audio file. Add the audio file under the same name, or rename it to end in .md if "
        "it is not a caption{near}."
    ),
    "empty_caption": "it contains no text. Write what the clip sounds like into it.",
    "lfs_pointer": "it is a Git LFS pointer, not the file itself. Fetch the file with `git lfs pull` and run again.",
    "caption_not_text": "it {what}; a caption is plain text. Write it again, and save it as UTF-8.",
    "caption_not_utf8": "it is not UTF-8 text{hint}. Save it as UTF-8.",
    "caption_key_missing": (
        "the caption template needs {key}, which this clip does not have (it has {there}). Add it to the .json file "
        "next to the audio, or leave it out of --caption-template."
    ),
    "caption_made_no_text": (
        "the caption that the template makes of it (from {where}) {what}; a caption is plain text. Correct the values."
    ),
    "tags_unreadable": (
        "its tags cannot be read ({why}). Write them again, or put the values into a .json file next to it."
    ),
    "sidecar_invalid": "it does not contain a JSON object ({why}). Correct it, or remove it.",
    # audio
    "unsupported_audio_format": (
        "{suffix} cannot be read here. {remedy}, for example with `ffmpeg -i {name} {stem}.wav`, and take the "
        "original out."
    ),
    "audio_decode_error": "it cannot be decoded ({why}). Export it again, as WAV or FLAC if you can.",
    "audio_needs_pyav": (
        "by its content it is {kind}, whatever its name says, which only PyAV can read. Install PyAV with `pip install "
        "av`, or convert it, for example with `ffmpeg -i FILE NEW.flac`, and take the original out."
    ),
    "audio_truncated": "it is cut short: {why}. Copy or export it again.",
    "sample_rate_unsupported": (
        "its header says {rate:,} Hz; {low:,} to {high:,} Hz can be read. Export it again at a usual rate."
    ),
    "audio_not_there": "it is empty: 0 bytes. Copy or download it again.",
    "audio_empty": "it holds no sound: its length is 0 samples. Export it again, or take it and its caption out.",
    "silent": "it is silent: its peak is below {limit:g} dBFS. Remove it, or use a louder recording.",
    "used_channels_silent": (
        "the channels that are used are silent (peak below {limit:g} dBFS), and others of its {count} channels, which "
        "hold sound, are left out. Mix it down to stereo, and use that."
    ),
    "not_finite": "it contains NaN or infinite samples. Export it again.",
    "absurd_peak": "its peak is {peak:,.3g}, where full scale is 1. Export it again at a normal level.",
}
"""What is wrong with a file, and what to do about it."""

WARNINGS = {
    "name_read_as_cp437": (
        "its name is not UTF-8 and nothing says how it is encoded; it was read as code page 437, the default of zips, "
        "and may look wrong. Audio and captions are paired all the same."
    ),
    "other_file": "by its name it is neither audio nor a caption, and is not used.",
    "unread_file": "by its name it is neither audio nor a caption, and could not be read ({why}).",
    "channels_dropped": (
        "it has {count} channels, and it is not known which loudspeakers they are for; only the first two are used."
    ),
    "channels_mixed": (
        "its {count} channels ({layout}) are mixed down to two, at a level {db:.1f} dB lower so that nothing clips; an "
        "LFE channel is left out."
    ),
    "sound_left_out": (
        "{percent:.0f} % of its sound is in channels that are left out. Mix it down to stereo yourself if you need it."
    ),
    "cropped_to_native": (
        "it is {seconds:,.1f} s long; only the first {kept:,.1f} s are used, which is the model's native length; "
        "--long-clips split makes clips of all of it."
    ),
    "same_sound": ("it has the same bytes as {others}, so that sound counts {count} times. Remove what is not meant."),
    "shorter_than_frame": (
        "it is {samples} long, less than one latent frame ({limit:,} samples, {ms:.0f} ms); it is used, followed by "
        "silence as every short clip is."
    ),
    "window_silent": "the part from {start:,.1f} to {stop:,.1f} s is silent and is left out.",
    "rest_dropped": "its end is left out: {samples}, less than one latent frame.",
    "caption_in_table": "it is not used: the captions are those of {table}.",
    "caption_unused": "{by} does not use it; {use}.",
    "codec_delay_unknown": "it does not say how much silence its encoder added before the sound; all of it is kept.",
    "codec_padding": "{samples} that its encoder added at the end {are} left out.",
    "leading_bytes": "{count:,} bytes before its first frame are no sound that can be decoded, and are left out.",
    "stray_bytes": "{count:,} bytes after the end that its header declares are not read.",
    "sound_unread": (
        "it also holds {what}; this is noted, not read. Split it into files of their own to use that as well."
    ),
    "header_contradiction": (
        "fields of its header disagree ({facts}); the redundant ones are not believed. Listen whether its pitch and "
        "length are right."
    ),
    "dropouts": "{stretches} of exact silence {begin} abruptly: parts of the file may be missing. Listen to it.",
    "decoder_complaints": "its decoder reported damage {times} ({complaint}). Listen to it, or export it again.",
    "clipping": "it is clipped: {count:,} samples in {runs} are at full scale. It was recorded or mastered too loud.",
    "dc_offset": "it has a DC offset of {offset:.3f} of full scale. A high-pass filter would remove it.",
    "clamped": "{samples} {are} beyond full scale (peak {peak:.3f}) and {are} clamped.",
    "length_unknown": "its header does not say how long it is, so missing audio could not be detected.",
}
"""Worth knowing, but no reason to stop."""

NOT_DATA = frozenset({"store_folder", "output_folder", "tool_folder"})
"""What keeps a folder from being read as data: no fault of the dataset."""

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
"""Faults that leaving out clips does not solve: they end the run even with skip_bad."""


class FileRejected(Exception):
    """Raised by a check that finds a fault in one file; turned into a `Fault` where the file's name is known."""

    def __init__(self, type: str, **facts: object) -> None:
        super().__init__(type)
        self.type, self.facts = type, facts

    def fault(self, member: str) -> Fault:
        """The fault of the file with that name."""
        return fault(member, self.type, **self.facts)


def fault(member: str, type: str, **facts: object) -> Fault:
    """A fault of one file, or of the whole dataset if `member` is empty."""
    return Fault(member=member, type=type, msg=MESSAGES[type].format(**facts))


def warning(member: str, type: str, **facts: object) -> Fault:
    """A warning, in the same form as a fault."""
    return Fault(member=member, type=type, msg=WARNINGS[type].format(**facts))


def as_line(found: Fault) -> str:
    """The fault in one line, as `Member.fault` holds it."""
    return f"{found.type}: {found.msg}"


def fault_of_member(member: Member) -> Fault | None:
    """The fault a member has, if any; a fault of the whole dataset is not repeated for each file."""
    if member.fault is None:
        return None
    type, _, msg = member.fault.partition(": ")
    return Fault(member="" if type == "archive_too_large" else member.name, type=type, msg=msg)


def sorted_faults(faults: Iterable[Fault]) -> list[Fault]:
    """Each fault once, sorted by file and type; those of the whole dataset first."""
    return sorted(set(faults), key=lambda found: (found.member, found.type, found.msg))


def fault_lines(label: str, faults: Sequence[Fault]) -> Iterator[str]:
    """One line per type of fault or note, with the files it is about and the sentence about the first of them."""
    by_type: dict[str, list[Fault]] = defaultdict(list)
    for one in faults:
        by_type[one.type].append(one)
    for type, alike in sorted(by_type.items()):
        if len(alike) == 1:
            yield f"{label}: {alike[0].member}: {alike[0].msg}"
            continue
        shown = ", ".join(one.member for one in alike[:5]) + (f" and {len(alike) - 5} more" if len(alike) > 5 else "")
        first = alike[0].msg if len({one.msg for one in alike}) == 1 else f"{alike[0].member}: {alike[0].msg}"
        yield f"{label}: {len(alike)} files, {type.replace('_', ' ')}: {shown}; {first}"


def as_record(found: Fault) -> dict[str, str]:
    """A fault or warning as the receipt records it."""
    return {"member": found.member, "type": found.type, "msg": found.msg}
