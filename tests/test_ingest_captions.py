"""Pairing of audio and captions, and the prompts that captions give."""

from __future__ import annotations

import unicodedata
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.contract import Member
from stages.ingest.captions.pairing import caption_text, pair
from stages.ingest.captions.trigger_phrase import contains_phrase, with_trigger_phrase
from stages.ingest.faults import FileRejected
from stages.ingest.file_types import READABLE, UNREADABLE, suffix


@given(st.text("aB./é ", min_size=1, max_size=12))
def test_a_suffix_is_that_of_the_path_in_lower_case(name):
    path = PurePosixPath(name)
    if str(path) == name and not path.name.startswith("."):  # as members are named; dot files are never listed
        assert suffix(name) == PurePosixPath(name).suffix.lower()


def members(*names: str, **faults: str) -> list[Member]:
    return [Member(name=name, num_bytes=1, digest=f"sha256:{name}") for name in names]


def unreadable(name: str, fault: str) -> Member:
    return Member(name=name, num_bytes=1, digest=None, fault=f"{fault}: so it is.")


def types(names: list[Member]) -> list[tuple[str, str]]:
    return sorted((fault.member, fault.type) for fault in pair(names).faults)


@given(
    stems=st.sets(
        st.text(st.characters(categories=["Ll", "Nd", "Lo"]), min_size=1, max_size=8).map(
            lambda text: unicodedata.normalize("NFC", text)
        ),
        min_size=1,
        max_size=6,
    ).filter(lambda stems: len({stem.casefold() for stem in stems}) == len(stems)),
    folder=st.sampled_from(["", "a/", "a b/c/"]),
    suffix=st.sampled_from(sorted(READABLE)),
)
def test_every_audio_gets_the_caption_of_its_own_name_in_its_own_folder(stems, folder, suffix):
    names = [f"{folder}{stem}{ending}" for stem in stems for ending in (suffix.upper(), ".txt")]
    found = pair(members(*names))
    assert [(one.clip_id, one.audio.name, one.caption.name) for one in found.pairs] == [
        (f"{folder}{stem}", f"{folder}{stem}{suffix.upper()}", f"{folder}{stem}.txt") for stem in sorted(stems)
    ]
    assert not found.faults and not found.warnings


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.wav"], [("a.wav", "missing_caption")]),
        (["a.txt"], [("a.txt", "missing_audio")]),
        (["a/k.wav", "b/k.txt"], [("a/k.wav", "missing_caption"), ("b/k.txt", "missing_audio")]),
        (["a.wav", "A.txt"], [("A.txt", "missing_audio"), ("a.wav", "missing_caption")]),
        (["k.wav", "k.flac", "k.txt"], [("k.flac", "duplicate_name"), ("k.wav", "duplicate_name")]),
        (
            ["k.wav", "k.txt", "K.wav", "K.txt"],
            [(name, "duplicate_name") for name in ("K.txt", "K.wav", "k.txt", "k.wav")],
        ),
        (["k.wav", "k.wav", "k.txt"], [("k.wav", "duplicate_name")] * 2),
        (["a/k.wav", "a/k.txt", "b/k.wav", "b/k.txt"], []),
        (["song.tak", "song.txt"], [("song.tak", "unsupported_audio_format")]),
        (["song.mpc"], [("song.mpc", "missing_caption"), ("song.mpc", "unsupported_audio_format")]),
    ],
)
def test_files_that_belong_to_no_clip_are_faults(names, expected):
    assert types(members(*names)) == expected


@pytest.mark.parametrize("suffix", sorted(UNREADABLE))
def test_an_unsupported_format_comes_with_the_command_that_converts_it(suffix):
    (fault,) = pair(members(f"a/song{suffix}", "a/song.txt")).faults
    assert f"ffmpeg -i a/song{suffix} a/song.wav" in fault.msg


def test_a_caption_that_differs_only_in_case_is_named():
    faults = pair(members("Kick.wav", "kick.txt")).faults
    assert all("differs in upper and lower case" in fault.msg for fault in faults)


def test_composed_and_decomposed_accents_are_one_name():
    names = [unicodedata.normalize("NFD", "é.wav"), unicodedata.normalize("NFC", "é.txt")]
    assert len(pair(members(*names)).pairs) == 1


def test_other_files_are_warnings_and_hostile_ones_are_faults():
    found = pair(
        [*members("a.wav", "a.txt", "notes.md"), unreadable("x.bin", "encrypted"), unreadable("../y", "path_traversal")]
    )
    assert [(one.member, one.type) for one in found.warnings] == [("notes.md", "other_file"), ("x.bin", "unread_file")]
    assert [(fault.member, fault.type) for fault in found.faults] == [("../y", "path_traversal")]


def test_a_clip_with_an_unreadable_file_is_left_out_and_the_file_is_not_reported_missing():
    found = pair(
        [*members("a.wav", "b.txt"), unreadable("a.txt", "encrypted"), unreadable("b.wav", "member_unreadable")]
    )
    assert not found.pairs
    assert sorted(fault.type for fault in found.faults) == ["encrypted", "member_unreadable"]


@pytest.mark.parametrize(
    ("data", "prompt"),
    [
        (b"a drum loop", "a drum loop"),
        (b"\xef\xbb\xbf a drum loop\r\n", "a drum loop"),
        ("Gitarre, schön\n\nzweite Zeile ".encode(), "Gitarre, schön\n\nzweite Zeile"),
    ],
)
def test_a_caption_is_its_text_without_byte_order_mark_and_surrounding_space(data, prompt):
    assert with_trigger_phrase(caption_text(data), None) == prompt


@pytest.mark.parametrize("data", [b"", b" \r\n\t", b"\xef\xbb\xbf", "\u200b\u2060 \ufeff".encode(), b"\x00\x00"])
def test_a_caption_without_visible_text_is_empty(data):
    with pytest.raises(FileRejected, match="empty_caption"):
        with_trigger_phrase(caption_text(data), None)


@pytest.mark.parametrize("data", ["schön".encode("latin-1"), "drums".encode("utf-16-le"), b"\xc3", b"\xff\xfea"])
def test_a_caption_in_another_encoding_is_refused(data):
    with pytest.raises(FileRejected, match="caption_not_utf8") as caught:
        with_trigger_phrase(caption_text(data), None)
    assert ("UTF-16" in caught.value.fault("a.txt").msg) == (b"\0" in data or data.startswith(b"\xff\xfe"))


@pytest.mark.parametrize(
    ("caption", "prompt"),
    [("a loop", "zxq style, a loop"), ("a loop, ZXQ style", "a loop, ZXQ style")],
)
def test_the_trigger_phrase_is_put_before_captions_that_do_not_contain_it(caption, prompt):
    assert with_trigger_phrase(caption_text(caption.encode()), " zxq style ") == prompt


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_caption_with_a_byte_order_mark_is_read(encoding):
    assert caption_text("ein schöner Klang\r\n".encode(encoding)) == "ein schöner Klang"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"warm pad" + bytes(500), "NUL, as files do after a crash"),
        (b"warm\x1bpad", "U+001B"),
        ("warm\x85 pad".encode(), "U+0085"),
        ("warm\ufffd pad".encode(), "a letter that was lost"),
        ("warm\0pad".encode("utf-16"), "NUL"),
        (b"{\\rtf1\\ansi warm pad}", "an RTF document"),
        (b"\xef\xbb\xbf {\\rtf1 warm pad}", "an RTF document"),
        (b"%PDF-1.4 ...", "a PDF document"),
        (b"PK\x03\x04docx", "a zip"),
        (b"<!DOCTYPE html><p>warm pad", "a web page"),
    ],
)
def test_what_is_no_text_is_no_caption(data, said):
    with pytest.raises(FileRejected, match="caption_not_text") as caught:
        caption_text(data)
    assert said in caught.value.fault("a.txt").msg


@pytest.mark.parametrize("order", ["le", "be"])
def test_utf16_without_its_mark_is_recognised_by_its_nuls(order):
    with pytest.raises(FileRejected, match="caption_not_utf8") as caught:
        caption_text("warm analog pad, für später".encode(f"utf-16-{order}"))
    assert f"UTF-16 ({'little' if order == 'le' else 'big'}-endian)" in caught.value.fault("a.txt").msg


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("a drum loop", "drum"),
        ("Drum-machine", "drum"),
        ("loop (DRUM)", "drum"),
        ("warm\n pad", "warm pad"),
        ("Überklang, tief", "überklang"),
        ("u\u0308ber alles", "über"),
        ("STRASSE am Meer", "straße"),
        ("[sks]x", "[sks]"),
        ("drumming on a drum", "drum"),
        ("激しいドラムの音", "ドラム"),
    ],
)
def test_a_phrase_is_found_as_whole_words(text, phrase):
    assert contains_phrase(text, phrase)


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("drumming", "drum"),
        ("a snaredrum", "drum"),
        ("drum2", "drum"),
        ("drum_loop", "drum"),
        ("überklangen", "überklang"),
        ("Größenwahn", "größe"),
        ("барабанщик", "барабан"),
        ("cafe\u0301", "cafe"),
        ("कि", "क"),
    ],
)
def test_a_phrase_inside_a_longer_word_is_not_the_phrase(text, phrase):
    assert with_trigger_phrase(text, phrase) == f"{phrase}, {text}"
