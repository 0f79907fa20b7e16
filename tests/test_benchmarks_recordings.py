"""Recordings to judge an autoencoder by, read out of Debian packages that are made here."""

from __future__ import annotations

import hashlib
import io
import tarfile

import numpy as np
import pytest
import soundfile

from tests.benchmarks.recordings import LIST, Package, clip, fetched, wanted_paths, written

WANTED = {"drums": ["kits/one/kick.flac", "kits/one/hat.wav"], "tonal": ["tones/bell.flac"]}


def audio(num_samples: int = 2000, rate_hz: int = 44_100, channels: int = 1, container: str = "FLAC") -> bytes:
    tone = 0.25 * np.sin(np.arange(num_samples) / 20)
    out = io.BytesIO()
    soundfile.write(out, np.stack([tone] * channels, axis=1), rate_hz, format=container)
    return out.getvalue()


def deb(files: dict[str, bytes], packing: str = "xz") -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode=f"w:{packing}") as archive:
        for path, content in files.items():
            member = tarfile.TarInfo(f"./usr/share/{path}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    # A member of an odd length in front: the next header stands at an even place.
    parts = {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", f"data.tar.{packing}": data.getvalue()}
    packed = b"!<arch>\n"
    for name, content in parts.items():
        packed += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode() + content
        packed += b"\n" * (len(content) % 2)
    return packed


@pytest.fixture
def kits(tmp_path):
    return {"kits/one/kick.flac": audio(), "kits/one/hat.wav": audio(container="WAV"), "kits/one/readme": b"hello"}


def package_on(mirror, content: bytes) -> Package:
    (mirror / "pool").mkdir(parents=True)
    (mirror / "pool/kits_1_all.deb").write_bytes(content)
    return Package("pool/kits_1_all.deb", hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize("packing", ["xz", "gz"])
def test_the_listed_files_of_a_package_are_written_by_set(tmp_path, kits, packing):
    (tmp_path / "kits.deb").write_bytes(deb(kits, packing))
    said = written([tmp_path / "kits.deb"], WANTED, tmp_path / "out.npz")
    assert "2 of 2 drums, 0 of 1 tonal" in said
    assert {name: values.shape for name, values in np.load(tmp_path / "out.npz").items()} == {"drums": (2, 2, 65_536)}


def test_a_package_is_fetched_once(tmp_path, kits):
    package = package_on(tmp_path / "mirror", deb(kits))
    mirrors = [f"{(tmp_path / 'mirror').as_uri()}/"]
    assert fetched(package, tmp_path, mirrors) == tmp_path / "kits_1_all.deb"
    (tmp_path / "mirror/pool/kits_1_all.deb").unlink()
    assert fetched(package, tmp_path, mirrors) == tmp_path / "kits_1_all.deb"


def test_the_next_mirror_is_asked_where_one_has_other_bytes(tmp_path, kits):
    package = package_on(tmp_path / "good", deb(kits))
    package_on(tmp_path / "bad", b"a page that says no")
    mirrors = [f"{(tmp_path / name).as_uri()}/" for name in ("bad", "good")]
    assert fetched(package, tmp_path, mirrors) is not None


def test_a_package_that_no_mirror_has_is_skipped_with_a_line(tmp_path, kits, capsys):
    package = Package("pool/gone_1_all.deb", "0" * 64)
    assert fetched(package, tmp_path, [f"{tmp_path.as_uri()}/"]) is None
    assert "skipped gone_1_all.deb" in capsys.readouterr().out


def test_a_damaged_package_is_not_kept(tmp_path, kits, capsys):
    package = Package(package_on(tmp_path / "mirror", deb(kits)).path, "0" * 64)
    folder = tmp_path / "folder"
    folder.mkdir()
    assert fetched(package, folder, [f"{(tmp_path / 'mirror').as_uri()}/"]) is None
    assert "its SHA-256 is" in capsys.readouterr().out and not list(folder.iterdir())


def test_without_any_package_nothing_is_written(tmp_path):
    with pytest.raises(SystemExit, match="No recordings"):
        written([], WANTED, tmp_path / "out.npz")
    assert not list(tmp_path.iterdir())


def test_bytes_that_are_no_package_are_refused(tmp_path):
    (tmp_path / "kits.deb").write_bytes(b"<html>")
    with pytest.raises(ValueError, match=r"no \.deb package"):
        written([tmp_path / "kits.deb"], WANTED, tmp_path / "out.npz")


def test_a_clip_is_stereo_at_its_rate_with_its_peak_at_four_fifths():
    made = clip(audio(num_samples=2000, rate_hz=22_050))
    assert made.shape == (2, 65_536) and np.array_equal(made[0], made[1])
    assert abs(int(np.abs(made).max()) - round(0.8 * 32767)) <= 1
    assert 3900 < int(np.flatnonzero(made[0])[-1]) <= 4000


def test_the_list_names_the_recordings_that_the_published_figures_are_of():
    assert {name: len(set(paths)) for name, paths in wanted_paths(LIST.read_text("utf-8")).items()} == {
        "drums": 36,
        "tonal": 24,
    }
