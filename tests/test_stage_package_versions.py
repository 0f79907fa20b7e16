"""Versions in records: a package without metadata never ends a training."""

from __future__ import annotations

import sys
from importlib import metadata
from types import SimpleNamespace

from pipeline.execution.records import environment
from stages.versions import UNKNOWN, version_of


def no_metadata(package: str) -> str:
    raise metadata.PackageNotFoundError(package)


def test_a_package_without_metadata_has_the_version_of_its_module(monkeypatch):
    monkeypatch.setattr(metadata, "version", no_metadata)
    monkeypatch.setitem(sys.modules, "a_package", SimpleNamespace(__version__="1.2"))
    assert version_of("a-package") == "1.2"


def test_a_package_that_states_no_version_is_unknown():
    assert version_of("a-package-that-nobody-has") == UNKNOWN


def test_receipts_are_written_without_any_metadata(monkeypatch):
    monkeypatch.setattr(metadata, "version", no_metadata)
    assert {"torch", "numpy", "transformers"} <= environment().keys()
