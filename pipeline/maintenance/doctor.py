"""The `doctor` command: checks versions, devices, weights and the store's folder.

Light: torch, packaging and the hub's library are imported by the checks that use them.
"""

from __future__ import annotations

import os
import platform
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache.errors import CacheError, LockHeld
from cache.store import Store
from pipeline import cli_errors
from pipeline.errors import ChecksFailed
from pipeline.request.paths import with_home
from stages import catalogue
from stages.errors import WeightsNotFound
from stages.models.bundled_weights import check_bundled_weights
from stages.plural import size
from stages.train.stage import TrainParams

if TYPE_CHECKING:
    from stages.records import ModelSpec
    from stages.train.forecast.fitting import Fitting

PROJECT = "stable-audio-3-trainer"
LOW_BYTES = 2 * 2**30
GOOD, NOTE, BAD = "ok", "note", "FAILED"


@dataclass(frozen=True, kw_only=True)
class Check:
    """The result of one check."""

    area: str
    """`python`, `packages`, `devices`, `fits`, `weights` or `store`."""
    name: str
    state: str
    """`ok`, `note` (it works, but you should know) or `FAILED`."""
    message: str
    """What was found, and what to do where something must be done."""

    def as_json(self) -> dict[str, str]:
        """The check for programs."""
        return {"area": self.area, "name": self.name, "state": self.state, "said": self.message}


Results = Iterator[tuple[str, str, str]]
"""(name, state, message) of each check of an area."""


def run_checks(store: Path) -> list[Check]:
    """Run every check, in the order of the areas."""
    areas: Sequence[tuple[str, Callable[[], Results]]] = (
        ("python", python),
        ("packages", packages),
        ("devices", devices),
        ("fits", what_fits),
        ("weights", weights),
        ("store", lambda: store_folder(store)),
    )
    return [
        Check(area=area, name=name, state=state, message=message)
        for area, results in areas
        for name, state, message in results()
    ]


def checks_json(checks: Sequence[Check]) -> dict[str, Any]:
    """The checks for programs."""
    return {"checks": [check.as_json() for check in checks], "failed": sum(check.state == BAD for check in checks)}


def checks_lines(checks: Sequence[Check]) -> list[str]:
    """The checks for people."""
    width = max(len(check.name) for check in checks)
    return [f"{check.area:<9} {check.name:<{width}}  {check.state:<6} {check.message}" for check in checks]


def raise_if_failed(checks: Sequence[Check]) -> None:
    """Raises: ChecksFailed, if a check failed."""
    if failed := sum(check.state == BAD for check in checks):
        raise ChecksFailed(failed)


def python() -> Results:
    """The interpreter and the machine."""
    enough = sys.version_info >= (3, 11)
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    yield "version", GOOD if enough else BAD, found if enough else f"{found}; 3.11 or newer is needed"


def packages() -> Results:
    """The version of every required and optional package."""
    from packaging.requirements import Requirement

    try:
        requirements = [Requirement(text) for text in metadata.requires(PROJECT) or ()]
    except metadata.PackageNotFoundError:
        yield PROJECT, BAD, f"is not installed here; {cli_errors.mend_installation('')}"
        return
    users = [one for one in requirements if "dev" not in str(one.marker)]  # what only developers need
    # A package that several extras require is listed once.
    for one in {requirement.name: requirement for requirement in users}.values():
        optional = one.marker is not None and "extra" in str(one.marker)
        yield one.name, *_version(one, optional=optional)


def _version(requirement: Any, *, optional: bool) -> tuple[str, str]:
    wanted = requirement.specifier
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        if optional:
            return NOTE, f"not installed (optional, {wanted or 'any version'})"
        return BAD, f"not installed, {wanted} is needed; {cli_errors.mend_installation(str(requirement))}"
    if wanted.contains(version, prereleases=True):
        return GOOD, f"{version} (required: {wanted or 'any'})"
    return BAD, f"{version} is outside {wanted}; {cli_errors.mend_installation(str(requirement))}"


def devices() -> Results:
    """The devices that torch can use."""
    try:
        import torch
    except (ImportError, OSError) as error:
        yield "torch", BAD, f"cannot be loaded ({error}); {cli_errors.mend_installation('torch')}"
        return
    from stages.models.device import slow_on  # deferred: needs torch

    slow = slow_on(torch.device("cpu"), torch.bfloat16)
    arithmetic = "no bf16 arithmetic: --base-precision fp32 is faster" if slow else "bf16"
    yield "cpu", GOOD, f"{torch.get_num_threads()} threads, {arithmetic}; torch {torch.__version__}"
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        precision = "bf16" if torch.cuda.is_bf16_supported() else "no bf16: fp16 or fp32 is used instead"
        yield f"cuda:{index}", GOOD, f"{found.name}, {size(found.total_memory)}, {precision}"
    if torch.backends.mps.is_available():
        yield "mps", NOTE, "Apple GPU: never tried with this program; fp8 bases fall back to int8"
    elif not torch.cuda.device_count():
        yield "gpu", NOTE, "none found; medium-base trains slowly on a CPU"


def what_fits() -> Results:
    """For each published model, what can be trained on the best device of this machine."""
    try:
        from stages.models.device import pick_device  # deferred: needs torch
        from stages.train.forecast.fitting import fitting
        from stages.train.forecast.free_memory import free_bytes
    except (ImportError, OSError):
        return  # said of the devices
    device = pick_device("auto")
    if (free := free_bytes(device)) is None:
        return
    for name, spec in catalogue.models().items():
        if spec.repo is not None:
            yield name, *_fit_in_words(fitting(spec, device, free), spec, f"{size(free)} free on {device.type}")


def _fit_in_words(found: Fitting, spec: ModelSpec, where: str) -> tuple[str, str]:
    """Model, length and kind, for a person who has not begun."""
    if not found.checkpointed_seconds:
        return NOTE, f"does not fit ({where}): a smaller --model, or another machine"
    kinds = "any kind" if len(found.kinds) == len(catalogue.adapter_kinds()) else ", ".join(found.kinds)
    how = f"{kinds} of rank {TrainParams.rank}, one clip a step, --pre-encode; {where}"
    if found.seconds == spec.max_seconds:
        return GOOD, f"clips of its full length, {spec.max_seconds} s ({how})"
    plain = f"clips up to {found.seconds:.0f} s, and " if found.seconds else "clips "
    slower = f"up to {found.checkpointed_seconds:.0f} s where blocks are recomputed, which is slower"
    return NOTE, f"{plain}{slower} ({how}); --duration cuts longer ones"


def weights() -> Results:
    """Where each model's weights are, or where they will come from."""
    given = os.environ.get("SA3_WEIGHTS")
    if given:
        complete = (Path(with_home(given)) / "model_config.json").is_file()
        yield "SA3_WEIGHTS", GOOD if complete else BAD, given if complete else f"{given} holds no model_config.json"
    for name, spec in catalogue.models().items():
        yield name, *_weights_of(spec)


def _weights_of(spec: Any) -> tuple[str, str]:
    from pipeline.request.hub import hub_folder

    if spec.repo is None:
        try:
            check_bundled_weights(catalogue.bundled_folder(spec))
        except WeightsNotFound as error:
            return BAD, str(error)
        return GOOD, str(catalogue.bundled_folder(spec))
    try:
        folder = hub_folder(spec, download=False)
    except Exception as error:  # whatever is wrong with the hub's cache is a result here, not a crash
        return NOTE, f"the hub's cache cannot be read ({error})"
    return (GOOD, str(folder)) if folder else (NOTE, f"not here yet; comes from {spec.repo}, or with --weights DIR")


def store_folder(store: Path) -> Results:
    """Free space, and a self-test of renaming, linking, locking and sqlite where the store is or will be."""
    folder = next(one for one in (store.absolute(), *store.absolute().parents) if one.is_dir())
    free = shutil.disk_usage(folder).free
    yield "room", GOOD if free > LOW_BYTES else NOTE, f"{size(free)} are free in {folder}"
    try:
        temporary = tempfile.TemporaryDirectory(dir=folder, prefix="doctor-")
    except OSError as error:
        yield "write", BAD, f"{folder} cannot be written to ({error}); choose another with --store"
        return
    with temporary as test_folder:
        for name, test in _SELF_TESTS.items():
            try:
                yield name, GOOD, test(Path(test_folder))
            except (OSError, CacheError, sqlite3.Error) as error:
                yield name, BAD, f"does not work in {folder} ({error}); choose another folder with --store"


def _rename(folder: Path) -> str:
    from cache.files.atomic_files import atomic_write_bytes

    for content in (b"first", b"second"):
        atomic_write_bytes(folder / "file", content)
    if (folder / "file").read_bytes() != b"second":
        raise OSError("a rename did not replace the existing file")
    return "a file can be written, flushed to disk and renamed over an older one"


def _link(folder: Path) -> str:
    try:
        os.link(folder / "file", folder / "link")
    except OSError as error:
        return f"no hard links ({error.strerror}): two writers of one shard may both write it; the content is the same"
    return "hard links work: a sealed file is never replaced"


def _lock(folder: Path) -> str:
    name = "0" * 64
    with Store(folder).lock("train", name):
        try:
            with Store(folder / "." / "").lock("train", name):
                pass
        except LockHeld:
            return "a second writer is refused"
    raise OSError("two processes got the same lock")


def _sqlite(folder: Path) -> str:
    connection = sqlite3.connect(folder / "test.sqlite")
    try:
        with connection:
            connection.execute("CREATE TABLE test (value INTEGER)")
            connection.execute("INSERT INTO test VALUES (1)")
        return f"version {sqlite3.sqlite_version}"
    finally:
        connection.close()


_SELF_TESTS: dict[str, Callable[[Path], str]] = {"rename": _rename, "link": _link, "lock": _lock, "sqlite": _sqlite}
