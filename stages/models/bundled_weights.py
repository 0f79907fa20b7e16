"""Compares weights that ship with the project with the digests that ship beside them. Light: standard library only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from shlex import quote

from cache.fingerprint import digest_file
from stages import catalogue
from stages.errors import WeightsNotFound

DIGESTS_FILE = "SHA256SUMS"
"""Lines of `<sha256>  <path in the folder>`, as `sha256sum` writes them."""


def check_bundled_weights(folder: Path, digest: Callable[[Path], str] = digest_file) -> None:
    """Compare bundled weights with their digests, wherever they are installed; other folders pass.

    Args:
        digest: `sha256:<hex>` of a file's bytes. The default reads every byte, whatever is remembered of the file.

    Raises:
        WeightsNotFound: a file is gone or has other bytes.
    """
    if not any(folder == family.FOLDER for family in catalogue.bundled_families()):
        return
    if fault := "; ".join(_faults(folder, digest)):
        remedy = f"Install the project again; in a checkout: `git restore {quote(str(folder))}`."
        raise WeightsNotFound(str(folder), fault, remedy)


def digest_lines(folder: Path) -> str:
    """The content of a folder's `DIGESTS_FILE`."""
    names = sorted(set(_names(folder)) - {DIGESTS_FILE})
    return "".join(f"{digest_file(folder / name).removeprefix('sha256:')}  {name}\n" for name in names)


def _faults(folder: Path, digest: Callable[[Path], str]) -> Iterator[str]:
    try:
        lines = (folder / DIGESTS_FILE).read_text(encoding="ascii").splitlines()
    except (OSError, ValueError) as error:
        yield f"{DIGESTS_FILE} cannot be read ({error})"
        return
    wanted = {name: digits for digits, _, name in (line.partition("  ") for line in lines)}
    for name, digits in wanted.items():
        try:
            if digest(folder / name) != f"sha256:{digits}":
                yield f"{name} has other bytes than it came with"
        except OSError as error:
            yield f"{name} cannot be read ({error.strerror})"
    yield from (
        f"{name} is not listed in {DIGESTS_FILE}" for name in _names(folder) if name not in {*wanted, DIGESTS_FILE}
    )


def _names(folder: Path) -> Iterator[str]:
    """Paths of the files in a folder, but for hidden ones, which systems write."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith("."))
    return (path.relative_to(folder).as_posix() for path in files)
