"""What the store records about a run: the versions it was made with."""

from __future__ import annotations

from importlib import metadata

from pipeline.execution import records


def test_versions_of_required_and_of_installed_optional_packages_are_recorded(monkeypatch):
    monkeypatch.setattr(records, "_OPTIONAL", (*records._OPTIONAL, "a-package-that-nobody-has"))
    found = records.environment()
    installed = {one.metadata["Name"].lower().replace("_", "-") for one in metadata.distributions()}
    optional = {"torchao", "pytorch-optimizer", "soxr", "triton"} & installed
    assert optional, "the development extras bring some of them"
    assert {name: found[name] for name in optional | {"torch"}} == {
        name: metadata.version(name) for name in optional | {"torch"}
    }
    assert "a-package-that-nobody-has" not in found
