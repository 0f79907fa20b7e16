"""Names of files: dot names, encodings of a zip, folders that hold no data, and files beside the clips."""

from __future__ import annotations

import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import pytest

from cache.files.folder_mark import OUTPUT_MARK, STORE_MARK
from stages.errors import SourceUnreadable
from stages.ingest.captions.pairing import other_file_notes, pair
from stages.ingest.source.archive import close_archives
from stages.ingest.source.dataset_files import clip_files
from stages.ingest.source.listing import open_source
from stages.ingest.source.names import has_hidden_part, is_system_file
from tests.small_datasets import clips, folder, run, sound, workspace, zipped


def raw_zip(path: Path, files: Mapping[bytes, bytes]) -> Path:
    """A zip of stored files whose names are these bytes, without the UTF-8 flag."""
    out, directory = b"", b""
    for name, data in files.items():
        sizes = struct.pack("<IIIHH", zlib.crc32(data), len(data), len(data), len(name), 0)
        head = struct.pack("<HHHHH", 20, 0, 0, 0, 0x5A21) + sizes
        rest = struct.pack("<HHHII", 0, 0, 0, 0x20, len(out))
        directory += b"PK\x01\x02" + struct.pack("<H", 20) + head + rest + name
        out += b"PK\x03\x04" + head + name + data
    end = struct.pack("<HHHHIIH", 0, 0, len(files), len(files), len(directory), len(out), 0)
    path.write_bytes(out + directory + b"PK\x05\x06" + end)
    return path


def packed(place: Path, kind: str, files: Mapping[str, bytes]) -> Path:
    place.mkdir(exist_ok=True)
    return zipped(place / "d.zip", files) if kind == "zip" else folder(place / "d", files)


KINDS = pytest.mark.parametrize("kind", ["zip", "folder"])


@KINDS
def test_clips_and_folders_whose_names_begin_with_a_dot_are_clips(tmp_path, kind):
    files = clips(".45 pistol shot", "...And Justice/blackened", "plain", ".hidden/a")
    _, rows = run(packed(tmp_path, kind, files), workspace(tmp_path))
    close_archives()
    assert [row.clip_id for row in rows] == ["...And Justice/blackened", ".45 pistol shot", ".hidden/a", "plain"]


@KINDS
def test_what_systems_write_is_dropped_and_other_dot_files_are_notes(tmp_path, kind):
    system = {"._a.wav": b"x", ".DS_Store": b"x", "__MACOSX/._a.wav": b"x", "Thumbs.db": b"x", "Icon\r": b"x"}
    other = {".gitignore": b"x", ".wav": b"x", ".notes/todo.txt": b"x", ".backup/old.zip": b"x"}
    source = open_source(packed(tmp_path, kind, {**clips("a"), **system, **other}))
    found = pair(source.members)
    assert not found.faults
    assert [(one.member, one.type) for one in found.warnings] == [(name, "other_file") for name in sorted(other)]


@pytest.mark.parametrize(
    "name", [".DS_Store", "a/._b.wav", "__MACOSX/a.wav", "Desktop.ini", "@eaDir/a.wav", ".nfs00000001"]
)
def test_names_that_systems_write_are_known(name):
    assert is_system_file(tuple(name.split("/")))


@pytest.mark.parametrize("name", [".45.wav", "...a/b.wav", ".a", "_a.wav", "Temporary Items/a.wav", "trash/a.wav"])
def test_other_names_are_the_users(name):
    assert not is_system_file(tuple(name.split("/")))
    assert has_hidden_part(name) == any(part.startswith(".") for part in name.split("/"))


def test_a_name_that_is_neither_flagged_nor_utf8_is_read_as_code_page_437_with_a_note(tmp_path):
    stem = "café".encode("cp437")
    data = raw_zip(tmp_path / "d.zip", {stem + b".wav": sound(), stem + b".txt": b"a tone"})
    outcome, rows = run(data, workspace(tmp_path))
    close_archives()
    assert [(row.clip_id, row.prompt) for row in rows] == [("café", "a tone")]
    assert [(one["member"], one["type"]) for one in outcome.facts["warnings"]] == [
        ("café.txt", "name_read_as_cp437"),
        ("café.wav", "name_read_as_cp437"),
    ]


@pytest.mark.parametrize("encoding", ["shift_jis", "gbk", "cp1252", "cp866", "big5"])
def test_audio_and_caption_pair_by_bytes_in_any_encoding(tmp_path, encoding):
    stem = {"shift_jis": "表/ソ", "gbk": "誠/乗", "big5": "功/許", "cp1252": "Größe/ö", "cp866": "Звук/я"}[encoding]
    raw = stem.encode(encoding)
    data = raw_zip(tmp_path / "d.zip", {raw + b".wav": sound(), raw + b".txt": b"a tone"})
    (row,) = run(data, workspace(tmp_path))[1]
    close_archives()
    assert row.clip_id.encode("cp437") == raw, "no byte was taken for a slash"
    assert unicodedata.normalize("NFC", row.clip_id) == row.clip_id


def test_a_backslash_behind_a_plain_letter_is_a_separator_as_old_tools_write_it(tmp_path):
    source = open_source(raw_zip(tmp_path / "d.zip", {"a\\é.wav".encode("cp437"): b"x"}))
    assert [member.name for member in source.members] == ["a/é.wav"]


def test_half_letters_of_an_unknown_encoding_have_no_upper_and_lower_case(tmp_path):
    upper, lower = "ア".encode("shift_jis"), "ヂ".encode("shift_jis")
    assert upper.lower() == lower.lower(), "as if they were A and a"
    files = {stem + ending: b"x" for stem in (upper, lower) for ending in (b".wav", b".txt")}
    assert not pair(open_source(raw_zip(tmp_path / "d.zip", files)).members).faults


def test_appledouble_files_are_known_by_their_decoded_name(tmp_path):
    names = ["__MACOSX/._é.wav".encode("cp437"), "a/._表.wav".encode("shift_jis")]
    assert open_source(raw_zip(tmp_path / "d.zip", dict.fromkeys(names, b"x"))).members == ()


@KINDS
def test_a_folder_of_auxiliary_percussion_is_read_from_a_zip_as_from_a_folder(tmp_path, kind):
    _, rows = run(packed(tmp_path, kind, clips("Aux/shaker", "con")), workspace(tmp_path))
    close_archives()
    assert [row.clip_id for row in rows] == ["Aux/shaker", "con"]


def last_part(path: Path) -> Path:
    path.write_bytes(b"PK\x05\x06" + struct.pack("<HHHHIIH", 1, 0, 1, 2, 46, 0, 0))
    return path


def test_the_parts_of_a_split_zip_are_named_as_such_with_the_command_that_joins_them(tmp_path):
    first, numbered = tmp_path / "my clips.z01", tmp_path / "my clips.zip.001"
    first.write_bytes(b"PK\x07\x08PK\x03\x04")
    numbered.write_bytes(b"PK\x03\x04")
    for part in (last_part(tmp_path / "my clips.zip"), first):
        with pytest.raises(SourceUnreadable, match=r"split zip.*zip -s 0 'my clips'.zip --out 'my clips'-whole.zip"):
            open_source(part)
    with pytest.raises(SourceUnreadable, match=r"split zip.*cat 'my clips'.zip.\* > 'my clips'-whole.zip"):
        open_source(numbered)


STRAYS = {"README.md": b"x", "cover.jpg": b"x", "project/song.als": b"x", "a.json": b"{}", ".gitattributes": b"x"}


@KINDS
def test_files_that_are_no_clips_stay_out_of_the_name_of_the_dataset_and_are_said(tmp_path, kind):
    plain = clip_files(open_source(packed(tmp_path / "plain", kind, clips("a"))), templated=False)
    more = clip_files(open_source(packed(tmp_path / "more", kind, {**clips("a"), **STRAYS})), templated=False)
    assert more.fingerprint == plain.fingerprint
    assert more.members == plain.members
    assert [(one.member, one.type) for one in other_file_notes(more.others)] == [
        (name, "other_file") for name in sorted(STRAYS)
    ]


@pytest.mark.parametrize("name", ["b.wav", "b.txt", "b.ape", "b.zip", "a.flac"])
def test_a_file_that_makes_or_may_hold_a_clip_is_part_of_the_name(tmp_path, name):
    plain = clip_files(open_source(folder(tmp_path / "plain", clips("a"))), templated=False)
    more = clip_files(open_source(folder(tmp_path / "more", {**clips("a"), name: b"x"})), templated=False)
    assert more.fingerprint != plain.fingerprint


def test_a_sidecar_is_part_of_the_name_where_a_template_reads_it(tmp_path):
    source = open_source(folder(tmp_path, {**clips("a"), "a.json": b"{}", "package.json": b"{}"}))
    assert [one.name for one in clip_files(source, templated=True).others] == ["package.json"]


@KINDS
@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({f"artifacts/{STORE_MARK}": b"", "artifacts/shared/prepared/x.wav": b"x"}, "store_folder"),
        ({"artifacts/digests.sqlite": b"", "artifacts/shared/prepared/x.wav": b"x"}, "store_folder"),
        ({f"artifacts/{OUTPUT_MARK}": b"", "artifacts/step 100.wav": b"x"}, "output_folder"),
        ({"artifacts/.git/objects/a.wav": b"x", "artifacts/.git/b.zip": b"x"}, "tool_folder"),
    ],
)
def test_stores_outputs_and_folders_of_tools_inside_the_data_are_notes_and_not_read(tmp_path, kind, files, reason):
    source = clip_files(open_source(packed(tmp_path, kind, {**clips("a"), **files})), templated=False)
    assert [member.name for member in source.members] == ["a.txt", "a.wav"]
    name = "artifacts/.git/" if reason == "tool_folder" else "artifacts/"
    assert [(one.member, one.type) for one in other_file_notes(source.others)] == [(name, reason)]


@KINDS
def test_a_store_given_as_data_is_named_as_such(tmp_path, kind):
    with pytest.raises(SourceUnreadable, match="it is a store of sa3-trainer"):
        open_source(packed(tmp_path, kind, {STORE_MARK: b"", "shared/prepared/x.wav": b"x"}))


def test_an_output_folder_with_clips_that_is_given_as_data_is_read(tmp_path):
    assert len(open_source(folder(tmp_path, {OUTPUT_MARK: b"", **clips("a")})).members) == 3


def test_the_clips_of_a_zip_are_read_by_their_own_names_beside_a_folder_without_data(tmp_path):
    data = zipped(tmp_path / "d.zip", {f"artifacts/{STORE_MARK}": b"", **clips("z")}, zipfile.ZIP_DEFLATED)
    (row,) = run(data, workspace(tmp_path))[1]
    close_archives()
    assert row.clip_id == "z"
