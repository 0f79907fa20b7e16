"""Versions of installed packages, for records. Light: standard library only."""

from __future__ import annotations

import sys
from importlib import metadata

UNKNOWN = "unknown"
"""Recorded where a package is used without metadata, as from a source tree."""


def version_of(package: str) -> str:
    """Version of a package by its metadata, else as its module states it, else `UNKNOWN`; never an error."""
    try:
        return metadata.version(package) or UNKNOWN
    except (metadata.PackageNotFoundError, KeyError):
        module = sys.modules.get(package.replace("-", "_"))
        return str(getattr(module, "__version__", UNKNOWN))
