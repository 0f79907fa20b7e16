"""Fetches recordings that an autoencoder is judged by: `make recordings`. None is committed, none was trained on.

    python -m tests.benchmarks.recordings [--folder .recordings]

They are read out of Debian packages, named and checked by their SHA-256, and written as one .npz: arrays (clips, 2, X)
of int16 at 44.1 kHz, `drums` and `tonal`, 1.49 s at most each, peaks at 0.8. A package that no mirror gives is said and
left out, and so is whatever it holds. recordings.txt lists the files and their licences.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import shutil
import tarfile
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import soundfile
import soxr

MIRRORS = ("https://deb.debian.org/debian/", "https://snapshot.debian.org/archive/debian/20250520T000000Z/")
SAMPLE_RATE_HZ, NUM_SAMPLES, PEAK = 44_100, 65_536, 0.8
FOLDER = Path(".recordings")
"""Ignored by git."""
LIST = Path(__file__).with_suffix(".txt")
TIMEOUT_SECONDS = 60


@dataclass(frozen=True)
class Package:
    """A Debian package, by its path on a mirror."""

    path: str
    sha256: str

    @property
    def file_name(self) -> str:
        """Name of the .deb file."""
        return self.path.rpartition("/")[2]


PACKAGES = (
    Package(
        "pool/main/h/hydrogen-drumkits/hydrogen-drumkits_2017.09.19~dfsg-1_all.deb",
        "6ea3c6df9a67762e2362f946c695e619859126b19fbccf32a2e8f07dfd03b2f4",
    ),
    Package(
        "pool/main/h/hydrogen/hydrogen-data_1.2.0~beta1+dfsg-1_all.deb",
        "d2cc3f281c02efb71f132bd173e95a958d3fede7c5aefcaba6547baf918cff2a",
    ),
    Package(
        "pool/main/s/sonic-pi/sonic-pi-samples_3.2.2~repack-8_all.deb",
        "25f2312d2fae005e6ad0f4726b8ed3084e776006a5a132083506e960224ac79d",
    ),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Fetch, read, write; what is already there is not fetched again."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--folder", type=Path, default=FOLDER, help="of the packages and of recordings.npz")
    folder = options.parse_args(arguments).folder
    folder.mkdir(parents=True, exist_ok=True)
    files = [file for package in PACKAGES if (file := fetched(package, folder))]
    made = written(files, wanted_paths(LIST.read_text(encoding="utf-8")), folder / "recordings.npz")
    print(made)


def fetched(package: Package, folder: Path, mirrors: Sequence[str] = MIRRORS) -> Path | None:
    """The package's file in `folder`, fetched unless it lies there; None, with a line, where no mirror gives it."""
    file = folder / package.file_name
    if file.exists() and _sha256(file) == package.sha256:
        return file
    reasons = []
    for mirror in mirrors:
        try:
            _download(mirror + package.path, file, package.sha256)
        except (OSError, ValueError) as error:
            reasons.append(f"{mirror}: {error}")
        else:
            return file
    print(f"skipped {package.file_name}: {'; '.join(reasons)}")
    return None


def _download(address: str, file: Path, sha256: str) -> None:
    """Download aside, check, put in place. Raises OSError; ValueError for other bytes than those expected."""
    print(f"fetching {address}", flush=True)
    aside = file.with_suffix(".part")
    with urllib.request.urlopen(address, timeout=TIMEOUT_SECONDS) as answer, aside.open("wb") as out:
        shutil.copyfileobj(answer, out)
    if (found := _sha256(aside)) != sha256:
        aside.unlink()
        raise ValueError(f"its SHA-256 is {found}, not {sha256}")
    aside.replace(file)


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def wanted_paths(text: str) -> dict[str, list[str]]:
    """Paths below usr/share, by set, from lines `SET PATH`; a # begins a comment."""
    wanted: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, _, path = line.partition(" ")
            wanted.setdefault(name, []).append(path)
    return wanted


def written(packages: Sequence[Path], wanted: dict[str, list[str]], file: Path) -> str:
    """Write the recordings that the packages hold as one .npz; returns a line that says how many.

    Raises:
        SystemExit: they hold none.
    """
    chosen = {path for paths in wanted.values() for path in paths}
    clips = {path: clip(audio) for package in packages for path, audio in members(package, chosen)}
    sets = {name: [clips[path] for path in paths if path in clips] for name, paths in wanted.items()}
    if not any(sets.values()):
        raise SystemExit("No recordings: none of the packages could be had. Try again with a network.")
    counted = [f"{len(sets[name])} of {len(paths)} {name}" for name, paths in wanted.items()]
    aside = file.with_suffix(".part")
    with aside.open("wb") as out:
        np.savez_compressed(out, **{name: np.stack(found) for name, found in sets.items() if found})
    aside.replace(file)
    return f"{file}: {', '.join(counted)}"


def members(package: Path, wanted: set[str]) -> Iterator[tuple[str, bytes]]:
    """Paths below usr/share and bytes of the wanted files of a .deb package."""
    with package.open("rb") as opened, tarfile.open(fileobj=_data_archive(opened), mode="r|*") as archive:
        for member in archive:
            path = member.name.removeprefix("./").removeprefix("usr/share/")
            if path in wanted and member.isfile():
                content = archive.extractfile(member)
                assert content is not None
                yield path, content.read()


def _data_archive(package: IO[bytes]) -> IO[bytes]:
    """The member data.tar of a .deb: a Unix `ar` archive, 60-byte headers, members at even offsets (deb(5))."""
    if package.read(8) != b"!<arch>\n":
        raise ValueError("no .deb package: it does not begin with !<arch>")
    while len(header := package.read(60)) == 60:
        name, size = header[:16].decode("ascii").strip().rstrip("/"), int(header[48:58])
        if name.startswith("data.tar"):
            return io.BytesIO(package.read(size))
        package.seek(size + size % 2, 1)
    raise ValueError("no .deb package: it holds no data.tar")


def clip(encoded: bytes) -> np.ndarray[Any, Any]:
    """(2, X) int16 at 44.1 kHz of an audio file: the first two channels, or one twice."""
    audio_XA, rate_hz = soundfile.read(io.BytesIO(encoded), always_2d=True, dtype="float32")
    audio_XA = audio_XA[:, :2] if audio_XA.shape[1] > 1 else np.repeat(audio_XA, 2, axis=1)
    if rate_hz != SAMPLE_RATE_HZ:
        audio_XA = soxr.resample(audio_XA, rate_hz, SAMPLE_RATE_HZ)
    audio_XA = audio_XA / max(float(np.abs(audio_XA).max()), 1e-6) * PEAK
    audio_XA = audio_XA[:NUM_SAMPLES]
    return (np.pad(audio_XA, ((0, NUM_SAMPLES - len(audio_XA)), (0, 0))).T * 32767).astype(np.int16)


if __name__ == "__main__":
    main()
