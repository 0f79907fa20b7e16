"""The listing of a zip or folder: fingerprint by content, and a fault for each unreadable member."""

from __future__ import annotations

import os
import stat
import struct
import unicodedata
import zipfile
import zlib
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from cache.fingerprint import digest_bytes
from stages.errors import SourceUnreadable
from stages.ingest.faults import FileRejected
from stages.ingest.source import limits
from stages.ingest.source import listing as source_module
from stages.ingest.source.archive import close_archives, read_member
from stages.ingest.source.limits import ArchiveLimits
from stages.ingest.source.listing import open_source
from stages.ingest.source.names import path_in_folder
from tests.small_datasets import counted, folder, zipped

FILES = {"b.txt": b"caption", "a/one.wav": b"\x00" * 40, "a/two.wav": b"\x01" * 50}
JUNK = {
    "__MACOSX/a/._one.wav": b"x",
    "a/._one.wav": b"x",
    ".DS_Store": b"x",
    ".Spotlight-V100/store.txt": b"x",
    ".Trash-1000/files/one.wav": b"x",
    "a/Thumbs.db": b"x",
    "desktop.ini": b"x",
}


class DictDigestCache:
    """A digest cache that never forgets."""

    def __init__(self) -> None:
        self.notes: dict[tuple[Path, str], str] = {}

    def get(self, path: Path, what: str) -> str | None:
        return self.notes.get((path, what))

    def put(self, path: Path, what: str, value: str) -> None:
        self.notes[path, what] = value

    def prefetch(self, folder: Path, what: str) -> None:
        """Everything is at hand already."""


def odd_zip(path: Path, entry: zipfile.ZipInfo, content: bytes = b"content") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(entry, content)
    return path


def fault_types(path: Path, **limits) -> dict[str, str | None]:
    members = open_source(path, limits=ArchiveLimits(**limits)).members
    return {member.name: member.fault.partition(":")[0] if member.fault else None for member in members}


@pytest.mark.parametrize("pack", ["zip", "folder"])
def test_members_are_listed_in_order_with_the_digest_of_their_bytes(tmp_path, pack):
    path = zipped(tmp_path / "d.zip", FILES) if pack == "zip" else folder(tmp_path / "d", FILES)
    source = open_source(path)
    assert source.kind == pack
    assert [(member.name, member.num_bytes, member.digest) for member in source.members] == [
        (name, len(FILES[name]), digest_bytes(FILES[name])) for name in sorted(FILES)
    ]


def test_a_zip_and_the_folder_it_was_made_from_have_one_fingerprint(tmp_path):
    packed = zipped(tmp_path / "elsewhere.zip", FILES, zipfile.ZIP_DEFLATED)
    assert open_source(packed).fingerprint == open_source(folder(tmp_path / "d", FILES)).fingerprint


def test_neither_path_nor_date_nor_order_nor_system_files_change_the_fingerprint(tmp_path):
    plain = zipped(tmp_path / "a.zip", FILES)
    other = zipped(tmp_path / "b.zip", {**JUNK, **dict(reversed(FILES.items()))})
    os.utime(other, (1, 1))
    assert open_source(plain).fingerprint == open_source(other).fingerprint
    assert len(open_source(folder(tmp_path / "d", {**FILES, **JUNK})).members) == len(FILES)


@pytest.mark.parametrize("change", [{"b.txt": b"Caption"}, {"c.txt": b"caption"}], ids=["content", "one more"])
def test_other_content_has_another_fingerprint(tmp_path, change):
    before = open_source(zipped(tmp_path / "a.zip", FILES)).fingerprint
    assert open_source(zipped(tmp_path / "b.zip", {**FILES, **change})).fingerprint != before


def test_a_zip_that_is_remembered_is_not_read(tmp_path, monkeypatch):
    path, digest_cache, read = zipped(tmp_path / "d.zip", FILES), DictDigestCache(), []
    monkeypatch.setattr(source_module, "digest_entry", counted(source_module.digest_entry, read))
    first = open_source(path, digest_cache)
    assert len(read) == len(FILES)
    assert open_source(path, digest_cache) == first
    assert len(read) == len(FILES)
    assert len(digest_cache.notes) == 1, "one list for the whole zip"


def test_only_the_files_of_a_folder_that_are_not_remembered_are_read(tmp_path, monkeypatch):
    path, digest_cache, read = folder(tmp_path / "d", FILES), DictDigestCache(), []
    monkeypatch.setattr(source_module, "digest_file", counted(source_module.digest_file, read))
    first = open_source(path, digest_cache)
    del digest_cache.notes[path / "b.txt", "bytes"]
    assert open_source(path, digest_cache) == first
    assert [file.name for file in read] == ["one.wav", "two.wav", "b.txt", "b.txt"]


def test_a_list_remembered_under_other_limits_is_not_used(tmp_path):
    path, digest_cache = zipped(tmp_path / "d.zip", FILES), DictDigestCache()
    assert all(member.digest for member in open_source(path, digest_cache).members)
    assert any(member.fault for member in open_source(path, digest_cache, ArchiveLimits(max_member_bytes=45)).members)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("../out.wav", "path_traversal"),
        ("a/../../out.wav", "path_traversal"),
        ("a\\..\\..\\out.wav", "path_traversal"),
        ("/etc/out.wav", "absolute_name"),
        ("C:\\out.wav", "absolute_name"),
        ("\\\\server\\out.wav", "absolute_name"),
    ],
)
def test_names_that_lead_out_of_the_archive_are_faults(tmp_path, name, fault):
    members = open_source(odd_zip(tmp_path / "d.zip", zipfile.ZipInfo(name))).members
    assert [(member.digest, member.fault.partition(":")[0]) for member in members] == [(None, fault)]


def test_a_link_in_a_zip_is_not_followed(tmp_path):
    entry = zipfile.ZipInfo("link.wav")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    assert fault_types(odd_zip(tmp_path / "d.zip", entry, b"/etc/hostname")) == {"link.wav": "symlink"}


def test_links_in_a_folder_are_followed_and_dangling_ones_are_faults(tmp_path):
    root = folder(tmp_path / "d", FILES)
    (root / "c.wav").symlink_to(root / "a" / "one.wav")
    (root / "gone.wav").symlink_to(root / "nowhere.wav")
    (root / "itself.wav").symlink_to(root / "itself.wav")
    folder(tmp_path / "elsewhere", {"three.wav": b"3"})
    (root / "more").symlink_to(tmp_path / "elsewhere")
    assert fault_types(root) == {
        **dict.fromkeys(("a/one.wav", "a/two.wav", "b.txt", "c.wav", "more/three.wav")),
        **dict.fromkeys(("gone.wav", "itself.wav"), "dangling_link"),
    }
    digests = {member.name: member.digest for member in open_source(root).members}
    assert digests["c.wav"] == digests["a/one.wav"]


def test_a_folder_that_is_linked_into_itself_is_listed_once(tmp_path):
    root = folder(tmp_path / "d", FILES)
    (root / "a" / "back").symlink_to(root)
    (root / "z").symlink_to(root / "a")
    found = fault_types(root)
    assert found["a/back"] == found["z/back"] == "link_loop" and found["z/one.wav"] is None
    assert not [name for name in found if "back/" in name]


def test_a_pipe_is_not_opened(tmp_path):
    os.mkfifo(folder(tmp_path / "d", FILES) / "pipe.wav")
    assert fault_types(tmp_path / "d")["pipe.wav"] == "not_a_file"


def test_an_encrypted_member_is_a_fault(tmp_path):
    path = zipped(tmp_path / "d.zip", {"a.wav": b"content"})
    content = bytearray(path.read_bytes())
    for signature, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + place] |= 1
    path.write_bytes(content)
    assert fault_types(path) == {"a.wav": "encrypted"}


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_flipped_byte_in_one_member_leaves_the_others(tmp_path, compression):
    files = {"a.wav": os.urandom(5000), "b.wav": b"whole"}
    path = zipped(tmp_path / "d.zip", files, compression)
    content = bytearray(path.read_bytes())
    content[2500] ^= 0x40
    path.write_bytes(content)
    assert fault_types(path) == {"a.wav": "member_unreadable", "b.wav": None}


def test_sizes_are_checked_before_anything_is_read(tmp_path, monkeypatch):
    read: list[object] = []
    monkeypatch.setattr(source_module, "digest_entry", counted(source_module.digest_entry, read))
    monkeypatch.setattr(limits, "RATIO_FLOOR_BYTES", 1 << 20)
    path = zipped(tmp_path / "d.zip", {"bomb.wav": bytes(4 << 20), "a.txt": b"x" * 60}, zipfile.ZIP_DEFLATED)
    assert fault_types(path) == {"a.txt": None, "bomb.wav": "compression_ratio"}
    assert fault_types(path, max_member_bytes=100) == {"a.txt": None, "bomb.wav": "member_too_large"}
    assert len(read) == 2
    assert fault_types(path, max_total_bytes=100)["a.txt"] == "archive_too_large"
    assert len(read) == 2


def test_a_member_with_a_false_size_is_not_unpacked_beyond_it(tmp_path):
    path = zipped(tmp_path / "d.zip", {"a.wav": bytes(1 << 20)}, zipfile.ZIP_DEFLATED)
    content = bytearray(path.read_bytes())
    for signature, place in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        struct.pack_into("<I", content, content.index(signature) + place, 1000)
    path.write_bytes(content)
    assert fault_types(path) == {"a.wav": "member_unreadable"}


def test_a_name_is_read_as_its_writer_meant_it(tmp_path):
    name = "Größe.wav"
    flagged = odd_zip(tmp_path / "flagged.zip", zipfile.ZipInfo(name))
    bare = tmp_path / "bare.zip"
    bare.write_bytes(unflagged(zipped(bare, {name: b"content"}).read_bytes()))
    assert [member.name for member in open_source(flagged).members] == [name]
    assert [member.name for member in open_source(bare).members] == [name]


def test_the_unicode_path_field_of_info_zip_is_understood(tmp_path):
    entry = zipfile.ZipInfo("Gr_e.wav")
    body = b"\x01" + struct.pack("<I", zlib.crc32(b"Gr_e.wav")) + "Größe.wav".encode()
    entry.extra = struct.pack("<HH", 0x7075, len(body)) + body
    assert [member.name for member in open_source(odd_zip(tmp_path / "d.zip", entry)).members] == ["Größe.wav"]


def test_a_file_name_that_is_not_utf8_is_read_as_a_zip_reads_it(tmp_path, monkeypatch):
    """Some systems refuse to write such a name, so the listing is given one."""
    root = folder(tmp_path / "d", {"plain.wav": b"x"})
    with os.scandir(root) as scanned:
        plain = next(scanned)
    odd = SimpleNamespace(name=os.fsdecode(b"Gr\xf6\xdfe.wav"), path=plain.path)
    odd.is_dir, odd.is_symlink, odd.stat = plain.is_dir, plain.is_symlink, plain.stat
    monkeypatch.setattr(os, "scandir", lambda folder: nullcontext([odd]))
    (member,) = open_source(root).members
    assert (member.name.encode("cp437"), member.name_encoding) == (b"Gr\xf6\xdfe.wav", "cp437")
    assert path_in_folder(root, member.name, member.name_encoding).name == odd.name


@pytest.mark.parametrize("pack", [folder, zipped])
@pytest.mark.parametrize(("placeholder", "meant"), [("a/.b.wav.icloud", "a/b.wav"), (".b.txt.icloud", "b.txt")])
def test_a_placeholder_of_icloud_stands_for_a_file_that_is_not_downloaded(tmp_path, pack, placeholder, meant):
    assert fault_types(pack(tmp_path / "d", {placeholder: b"bplist00"})) == {meant: "not_downloaded"}


def test_a_placeholder_of_icloud_for_another_file_is_no_clip(tmp_path):
    assert fault_types(folder(tmp_path / "d", {".notes.md.icloud": b"bplist00"})) == {".notes.md.icloud": None}


@pytest.mark.parametrize("name", ["a\\b.wav", "./a/b.wav", "a//b.wav"])
def test_names_are_given_with_plain_forward_slashes(tmp_path, name):
    assert [member.name for member in open_source(odd_zip(tmp_path / "d.zip", zipfile.ZipInfo(name))).members] == [
        "a/b.wav"
    ]


def test_a_member_is_read_as_it_was_listed_or_rejected(tmp_path):
    for number, path in enumerate((zipped(tmp_path / "d.zip", FILES), folder(tmp_path / "d", FILES))):
        source = open_source(path)
        for member in source.members:
            assert read_member(path, source.kind, member) == FILES[member.name]
        if number == 0:
            zipped(path, {**FILES, "b.txt": b"another"})
        else:
            folder(path, {"b.txt": b"another"})
        with pytest.raises(FileRejected, match="member_changed"):
            read_member(path, source.kind, source.members[-1])
    close_archives()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PK\x03\x04 and then nothing", "cut short"),
        (b"Rar!\x1a\x07\x00", "RAR"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"hello", "not a zip"),
        (b"", "empty"),
        (b"<!DOCTYPE html><html>", "web page, not the file itself"),
        (b'<?xml version="1.0"?><!DOCTYPE html><html>', "web page"),
        (bytes(257) + b"ustar" + bytes(300), "tar archive"),
        (b"\x1f\x8b\x08" + bytes(30), "7z x d.zip"),
        (b"fLaC" + bytes(60), "sound file"),
    ],
)
def test_other_archives_are_named_and_refused_with_a_remedy(tmp_path, content, words):
    path = tmp_path / "d.zip"
    path.write_bytes(content)
    with pytest.raises(SourceUnreadable, match=words) as caught:
        open_source(path)
    assert str(path) in str(caught.value)


def test_a_missing_path_is_refused(tmp_path):
    with pytest.raises(SourceUnreadable, match="no such file or folder"):
        open_source(tmp_path / "nowhere.zip")


def test_accents_are_kept_as_they_are_written(tmp_path):
    name = unicodedata.normalize("NFD", "é.wav")
    assert [member.name for member in open_source(zipped(tmp_path / "d.zip", {name: b"x"})).members] == [name]


def unflagged(content: bytes) -> bytes:
    """The zip without the flag that its names are UTF-8."""
    plain = bytearray(content)
    for signature, place in ((b"PK\x03\x04", 7), (b"PK\x01\x02", 9)):
        plain[plain.index(signature) + place] &= ~0x08
    return bytes(plain)
