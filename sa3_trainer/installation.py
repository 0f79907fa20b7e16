"""Says what is wrong with an installation whose modules cannot be imported. Light: standard library only."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

PROJECT = "stable-audio-3-trainer"
OURS = ("pipeline", "stages", "cache")
ROOT = Path(__file__).parents[1]
"""Where our folders lie, beside this one."""
_MODULES = {"huggingface-hub": "huggingface_hub"}


def hidden_packages() -> list[str]:
    """Our folders of which another one of the same name is found first, as `name (path)`."""
    places = {name: _origin(name) for name in OURS}
    return [f"{name} ({place})" for name, place in places.items() if place not in (None, ROOT / name)]


def lost_packages() -> list[str]:
    """Our folders that are no packages any more: another package took files along when it was removed."""
    return [name for name in OURS if _origin(name) is None]


def _origin(name: str) -> Path | None:
    """The folder or file that would be imported under a name."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    if spec is None or spec.origin is None:
        return None
    file = Path(spec.origin)
    return file.parent if file.name == "__init__.py" else file


def explanation(error: BaseException) -> str | None:
    """What to tell the user about an error of importing; None where it says nothing about the installation."""
    if others := _distributions_of_our_names():
        names = " and ".join(others)
        return (
            f"another package has the same folders as sa3-trainer and has replaced files of it: {names}. "
            f"Install sa3-trainer in an environment of its own: {in_own_environment()}. Or remove the other one: "
            f"`{sys.executable} -m pip uninstall {' '.join(others)}`, and then {again()}."
        )
    if hidden := hidden_packages():
        return (
            f"another folder or module hides one of sa3-trainer's: {', '.join(hidden)}. Leave that folder, "
            f"or take it out of PYTHONPATH; else {again()}."
        )
    if lost := lost_packages():
        return (
            f"files of sa3-trainer are missing ({', '.join(lost)}), as after the removal of another package with the "
            f"same folders: {again()}."
        )
    return _about_dependency(error)


def _distributions_of_our_names() -> list[str]:
    """Other installed distributions that have a folder of one of our names."""
    from importlib import metadata  # deferred: only an error needs it

    owners = metadata.packages_distributions()
    return sorted({one for name in OURS for one in owners.get(name, ()) if _normal(one) != PROJECT})


def _about_dependency(error: BaseException) -> str | None:
    """About a package that we require and that is missing or cannot be loaded."""
    if not isinstance(error, ImportError) and not _while_importing(error):
        return None
    for name in _modules_of(error):
        if name in _required():
            lost = isinstance(error, ModuleNotFoundError) and error.name == name
            what = "is not installed" if lost else f"cannot be loaded ({str(error).splitlines()[0]})"
            return f"the package {name}, which sa3-trainer needs, {what}: {again(_required()[name])}."
    return None


def _while_importing(error: BaseException) -> bool:
    """Whether the system failed while a module was imported: a library that is missing on this machine."""
    frames = error.__traceback__
    while frames is not None:
        if "importlib._bootstrap" in frames.tb_frame.f_code.co_filename:
            return isinstance(error, OSError)
        frames = frames.tb_next
    return False


def _modules_of(error: BaseException) -> Iterator[str]:
    """Top-level modules that the error is about: the one not found, then those being imported, innermost first."""
    import traceback

    yield str(getattr(error, "name", None) or "").partition(".")[0]
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        parts = Path(frame.filename).parts
        for folder in ("site-packages", "dist-packages"):
            if folder in parts[:-1]:
                yield parts[parts.index(folder) + 1].removesuffix(".py")


def _required() -> dict[str, str]:
    """What pip is told for each package that we require, by the name of its module."""
    from importlib import metadata

    try:
        lines = metadata.requires(PROJECT) or []
    except metadata.PackageNotFoundError:
        return {name: name for name in ("torch", "numpy", "typer", "pydantic")}
    wanted = {_normal(re.split(r"[ ;<>=!~\[]", line)[0]): line for line in lines if "extra ==" not in line}
    return {_MODULES.get(name, name.replace("-", "_")): line for name, line in wanted.items()}


def _normal(name: str) -> str:
    return name.strip().lower().replace("_", "-").replace(".", "-")


def again(requirement: str = "") -> str:
    """How this installation is mended.

    Args:
        requirement: the one package that is at fault; ours where none is given.
    """
    parts = Path(sys.prefix).parts
    if "uv" in parts and "tools" in parts:
        return f"`uv tool upgrade --reinstall {PROJECT}` installs it again"
    if "pipx" in parts:
        return f"`pipx reinstall {PROJECT}` installs it again"
    if (ROOT / "Makefile").is_file():
        return f"`make -B setup` in {ROOT} installs everything again"
    flags = "--force-reinstall" if requirement else "--force-reinstall --no-deps"
    return f'`{sys.executable} -m pip install {flags} "{requirement or _address()}"` installs it again'


def _address() -> str:
    """Where this project was installed from, as pip takes it; ADDRESS where that is not recorded."""
    from importlib import metadata

    try:
        record = json.loads(metadata.distribution(PROJECT).read_text("direct_url.json") or "{}")
    except (metadata.PackageNotFoundError, ValueError):
        record = {}
    control = record.get("vcs_info", {}).get("vcs")
    return f"{control}+{record['url']}" if control else record.get("url", "ADDRESS")


def in_own_environment() -> str:
    """How it is installed without meeting other packages."""
    return "`uv tool install` or `pipx install` (docs/install.md)"
