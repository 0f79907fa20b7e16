"""Hostile archives, which are refused by name, and merely unusual ones, which are read."""

from __future__ import annotations

import io
import resource
import stat
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from stages.errors import SourceUnreadable
from stages.ingest.faults import FileRejected
from stages.ingest.source import limits, names
from stages.ingest.source.archive import close_archives, read_member
from stages.ingest.source.limits import ArchiveLimits
from stages.ingest.source.listing import open_source
from stages.ingest.source.zip_directory import declared_directory
from tests.small_datasets import RATE, clips, faults, folder, run, sound, tone, workspace, zipped


def fault_types(path: Path, **limits: object) -> dict[str, str | None]:
    members = open_source(path, limits=ArchiveLimits(**limits)).members
    return {member.name: member.fault.partition(":")[0] if member.fault else None for member in members}


def with_entry(path: Path, entry: zipfile.ZipInfo, content: bytes = b"content", mode: str = "w") -> Path:
    with zipfile.ZipFile(path, mode) as archive:
        archive.writestr(entry, content)
    return path


@pytest.mark.parametrize(
    "name",
    ["CON", "con.wav", "drums/NUL.wav", "aux.mixdown.wav", "COM1.wav", "lpt9.txt", "a/prn", "CONIN$", "nul .wav"],
)
def test_the_names_of_windows_devices_are_refused_on_windows_and_are_plain_names_elsewhere(tmp_path, monkeypatch, name):
    monkeypatch.setattr(names, "ON_WINDOWS", True)
    assert fault_types(with_entry(tmp_path / "d.zip", zipfile.ZipInfo(name))) == {name: "device_name"}
    monkeypatch.setattr(names, "ON_WINDOWS", False)
    assert fault_types(tmp_path / "d.zip") == {name: None}


@pytest.mark.parametrize("name", ["console.wav", "nullify.wav", "auxiliary/a.wav", "com.wav", "lpt10.wav", "acon.wav"])
def test_names_that_only_begin_like_a_device_are_plain_names(tmp_path, name):
    assert fault_types(with_entry(tmp_path / "d.zip", zipfile.ZipInfo(name))) == {name: None}


def test_control_characters_in_a_name_never_reach_the_terminal(tmp_path):
    (member,) = open_source(with_entry(tmp_path / "d.zip", zipfile.ZipInfo("a\x1b[2J\n.wav"))).members
    assert member.name == "a\\x1b[2J\\n.wav"
    assert member.fault is not None and member.fault.startswith("name_not_printable")
    root = folder(tmp_path / "d", {"b\x1b.wav": b"x"})
    assert fault_types(root) == {"b\\x1b.wav": "name_not_printable"}


@pytest.mark.parametrize("kind", [stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK])
def test_pipes_and_devices_inside_a_zip_are_refused(tmp_path, kind):
    entry = zipfile.ZipInfo("a.wav")
    entry.external_attr = (kind | 0o666) << 16
    assert fault_types(with_entry(tmp_path / "d.zip", entry)) == {"a.wav": "not_a_file"}


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compression_that_cannot_be_undone_in_bounded_steps_is_refused_unread(tmp_path, method):
    path = zipped(tmp_path / "d.zip", {"a.wav": bytes(1000)}, method)
    assert fault_types(path) == {"a.wav": "compression_method"}


def test_an_archive_inside_the_dataset_is_a_fault_not_a_loss(tmp_path):
    inner = zipped(tmp_path / "inner.zip", clips("x")).read_bytes()
    data = zipped(tmp_path / "d.zip", {**clips("a"), "more/inner.zip": inner, "old.tar.gz": b"x"})
    assert faults(data, tmp_path) == [("more/inner.zip", "nested_archive"), ("old.tar.gz", "nested_archive")]
    outcome, rows = run(data, workspace(tmp_path), skip_bad=True)
    assert [row.clip_id for row in rows] == ["a"]
    assert [one["type"] for one in outcome.facts["skipped"]] == ["nested_archive"] * 2


def test_entries_that_share_their_bytes_are_a_bomb(tmp_path):
    path = zipped(tmp_path / "d.zip", {"a.wav": bytes(5000), "b.wav": bytes(5000)}, zipfile.ZIP_DEFLATED)
    content = bytearray(path.read_bytes())
    second = content.index(b"PK\x01\x02", content.index(b"PK\x01\x02") + 4)
    struct.pack_into("<I", content, second + 42, 0)  # both entries now begin at byte 0
    path.write_bytes(content)
    assert fault_types(path) == {"a.wav": "overlapping_entries", "b.wav": "overlapping_entries"}
    assert ("a.wav", "overlapping_entries") in faults(path, tmp_path, skip_bad=True)


def test_a_clip_that_is_nearly_all_silence_is_no_bomb_however_well_it_packs(tmp_path):
    mostly_silent = np.zeros((30 * RATE, 2))
    mostly_silent[:2000] = tone(2000 / RATE)
    files = {"hit.wav": sound(mostly_silent), "hit.txt": b"a hit"}
    data = zipped(tmp_path / "d.zip", files, zipfile.ZIP_DEFLATED)
    assert len(files["hit.wav"]) > 200 * data.stat().st_size, "beyond the default limit on the ratio"
    assert [row.clip_id for row in run(data, workspace(tmp_path))[1]] == ["hit"]


def test_a_bomb_in_a_bomb_is_neither_opened_nor_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "RATIO_FLOOR_BYTES", 1 << 20)
    layer = zipped(tmp_path / "0.zip", {"zeros.wav": bytes(8 << 20)}, zipfile.ZIP_DEFLATED).read_bytes()
    data = zipped(tmp_path / "d.zip", {"b.zip": layer, "zeros.wav": bytes(8 << 20)}, zipfile.ZIP_DEFLATED)
    assert {("b.zip", "nested_archive"), ("zeros.wav", "compression_ratio")} <= set(faults(data, tmp_path))


def test_very_many_files_are_refused_before_they_are_listed(tmp_path):
    data = zipped(tmp_path / "d.zip", {f"{number}.txt": b"x" for number in range(30)})
    with pytest.raises(SourceUnreadable, match=r"more than 20 files; none was read. Split .* --max-members"):
        open_source(data, limits=ArchiveLimits(max_members=20))
    with pytest.raises(SourceUnreadable, match="more than 20 files"):
        open_source(folder(tmp_path / "f", {f"{n}.txt": b"x" for n in range(30)}), limits=ArchiveLimits(max_members=20))


def test_a_central_directory_with_a_false_count_is_judged_by_its_size(tmp_path):
    data = zipped(tmp_path / "d.zip", {f"{'n' * 200}{number}.txt": b"x" for number in range(80)})
    content = bytearray(data.read_bytes())
    end = content.rindex(b"PK\x05\x06")
    struct.pack_into("<HH", content, end + 8, 3, 3)
    data.write_bytes(content)
    assert declared_directory(data) == (3, len(content) - content.index(b"PK\x01\x02") - 22)
    with pytest.raises(SourceUnreadable, match="more than 30 files"):
        open_source(data, limits=ArchiveLimits(max_members=30))


def test_a_huge_central_directory_is_refused_in_bounded_memory(tmp_path):
    """A central directory of 60 MB is refused by a process limited to 1 GB."""
    entry = b"PK\x01\x02" + bytes(24) + struct.pack("<H", 20) + bytes(16) + b"n" * 20
    count = (60 << 20) // len(entry)
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 7, 7, count * len(entry), 0, 0)
    path = tmp_path / "d.zip"
    path.write_bytes(entry * count + end)
    code = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from stages.ingest.source.listing import open_source\n"
        "from stages.errors import SourceUnreadable\n"
        f"resource.setrlimit(resource.RLIMIT_AS, ({1 << 29}, {1 << 29}))\n"
        "try:\n    open_source(Path(sys.argv[1]))\n"
        "except SourceUnreadable as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert "more than 50,000 files" in done.stdout, done.stderr
    assert resource.RLIMIT_AS  # the limit exists on this system


def test_zip64_data_descriptors_comments_and_prepended_bytes_are_read(tmp_path):
    files = clips("a")
    plain = open_source(zipped(tmp_path / "plain.zip", files)).fingerprint
    buffer = io.BytesIO()
    with zipfile.ZipFile(Unseekable(buffer), "w") as archive:  # an unseekable target makes data descriptors
        for name, content in files.items():
            with archive.open(name, "w", force_zip64=True) as member:
                member.write(content)
        archive.comment = b"said the comment " * 3000
    path = tmp_path / "odd.zip"
    path.write_bytes(b"#!/bin/sh\nexit\n" + buffer.getvalue())
    assert open_source(path).fingerprint == plain
    assert [row.clip_id for row in run(path, workspace(tmp_path))[1]] == ["a"]


class Unseekable(io.RawIOBase):
    """A file that zipfile takes for a pipe."""

    def __init__(self, target: io.BytesIO) -> None:
        self.target = target

    def writable(self) -> bool:
        return True

    def write(self, content: bytes) -> int:
        return self.target.write(content)

    def seekable(self) -> bool:
        return False


def test_a_zip64_end_record_is_understood(tmp_path, monkeypatch):
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 2)
    path = zipped(tmp_path / "d.zip", {"a.txt": b"1", "b.txt": b"2", "c.txt": b"3", "d.txt": b"4"})
    assert b"PK\x06\x06" in path.read_bytes()
    assert declared_directory(path)[0] == 4
    assert len(open_source(path).members) == 4
    with pytest.raises(SourceUnreadable):
        open_source(path, limits=ArchiveLimits(max_members=3))


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.99, 0.999])
def test_a_zip_cut_short_anywhere_is_refused_with_what_it_is(tmp_path, keep):
    path = zipped(tmp_path / "d.zip", clips("a", "b"))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(SourceUnreadable, match="it is a zip that is cut short or damaged"):
        open_source(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_the_same_name_twice_is_no_clip_at_all(tmp_path):
    path = tmp_path / "d.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for hz in (300, 400):
            archive.writestr("a.wav", sound(tone(hz=hz)))
        archive.writestr("a.txt", "which one?")
    assert set(faults(path, tmp_path)) == {("a.wav", "duplicate_name")}


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_entry_that_hides_behind_the_name_of_another_is_not_read(tmp_path):
    """Its declared size would be read at once: 16 MiB here, any size in a hostile archive."""
    path = tmp_path / "d.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.wav", b"x")
        archive.writestr("a.wav", b"yyy")
    sizes = struct.pack("<II", 3, 3)
    data = path.read_bytes()
    place = data.rindex(sizes)
    path.write_bytes(data[:place] + struct.pack("<II", 3 + (1 << 24), 3) + data[place + 8 :])
    (first, _) = open_source(path).members
    tracemalloc.start()
    try:
        with pytest.raises(FileRejected, match="member_changed"):
            read_member(path, "zip", first)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
        close_archives()


def test_names_that_differ_only_in_case_are_faults(tmp_path):
    data = zipped(tmp_path / "d.zip", {**clips("straße"), **clips("STRASSE")})
    assert {type for _, type in faults(data, tmp_path)} == {"duplicate_name"}


def test_a_name_falsely_flagged_as_utf8_is_refused_with_a_remedy(tmp_path):
    path = zipped(tmp_path / "d.zip", {"schön.wav": b"x"})
    path.write_bytes(path.read_bytes().replace("schön".encode(), b"sch\xf6nn"))
    with pytest.raises(SourceUnreadable, match="claims to be UTF-8 and is not"):
        open_source(path)


def test_a_local_header_with_another_name_than_the_central_directory_is_not_read(tmp_path):
    path = zipped(tmp_path / "d.zip", {"a.wav": b"content"})
    path.write_bytes(path.read_bytes().replace(b"a.wav", b"b.wav", 1))
    assert fault_types(path) == {"a.wav": "member_unreadable"}


def test_nothing_is_ever_unpacked_outside_the_store(tmp_path):
    data = zipped(tmp_path / "d.zip", {**clips("a", "b/c"), "../out.wav": b"x", "/out.wav": b"x"})
    before = set(tmp_path.rglob("*"))
    faults(data, tmp_path / "place")
    assert {path for path in tmp_path.rglob("*") if "place" not in path.parts} == before
