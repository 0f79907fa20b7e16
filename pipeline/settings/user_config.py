"""The user's own defaults: SA3_STORE, SA3_WEIGHTS and a small TOML file in the home folder.

Flags win, then the recipe, then the environment, then this file. Light: standard library only.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from pipeline.errors import FieldError, RecipeError

KEYS = ("store", "output", "weights", "device", "threads", "workers")
"""Fields that the file may set: places and resources, which no result depends on."""
VARIABLES = {"store": "SA3_STORE", "weights": "SA3_WEIGHTS"}


def config_file() -> Path:
    """SA3_CONFIG, or `sa3-trainer/config.toml` in the folder that the system has for settings."""
    if named := os.environ.get("SA3_CONFIG"):
        return Path(named).expanduser()
    settings = os.environ.get("APPDATA" if sys.platform == "win32" else "XDG_CONFIG_HOME")
    return (Path(settings) if settings else Path("~/.config").expanduser()) / "sa3-trainer" / "config.toml"


def user_defaults() -> dict[str, Any]:
    """Values by field, of the environment and the file.

    Raises:
        RecipeError: the file cannot be read, or sets anything else.
    """
    named = {key: os.environ[variable] for key, variable in VARIABLES.items() if os.environ.get(variable)}
    return _file_values(config_file()) | named


def _file_values(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    import tomllib  # deferred: most users have no such file

    try:
        values = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise _fault(file, "toml_invalid", f"cannot be read: {error}") from error
    if others := [key for key in values if key not in KEYS]:
        raise _fault(file, "extra_forbidden", f"sets {', '.join(others)}; it may set {', '.join(KEYS)}")
    if wrong := [key for key, value in values.items() if isinstance(value, list | dict | bool)]:
        raise _fault(file, "value_error", f"{', '.join(wrong)} must be text or a number")
    return values


def _fault(file: Path, type: str, msg: str) -> RecipeError:
    return RecipeError([FieldError(loc=("config",), type=type, msg=msg, input=str(file))])
