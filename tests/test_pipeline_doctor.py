"""What doctor says to users: what fits, and how this installation is mended."""

from __future__ import annotations

from importlib import metadata

import pytest

from pipeline import cli_errors
from pipeline.maintenance import doctor
from stages import catalogue
from stages.train.forecast.fitting import Fitting

MEDIUM = catalogue.models()["medium-base"]
ALL = tuple(catalogue.adapter_kinds())


@pytest.mark.parametrize(
    ("fitting", "state", "begins"),
    [
        (Fitting(380, 380, ALL), "ok", "clips of its full length, 380 s (any kind of rank 16, one clip a step"),
        (Fitting(95, 380, ALL), "note", "clips up to 95 s, and up to 380 s where blocks are recomputed"),
        (Fitting(0, 40, ("lora",)), "note", "clips up to 40 s where blocks are recomputed, which is slower (lora of"),
        (Fitting(0, 0, ()), "note", "does not fit (8 GB free on cuda): a smaller --model"),
    ],
)
def test_what_fits_is_said_by_model_length_and_kind(fitting, state, begins):
    found, words = doctor._fit_in_words(fitting, MEDIUM, "8 GB free on cuda")
    assert (found, words[: len(begins)]) == (state, begins)


def test_a_package_that_lacks_is_mended_the_way_this_was_installed(monkeypatch):
    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.metadata, "version", version)
    monkeypatch.setattr(cli_errors, "mend_installation", lambda requirement: f"`pipx reinstall it` for {requirement}")
    (line,) = [message for name, state, message in doctor.packages() if name == "torch"]
    assert "`pipx reinstall it` for torch" in line and "make setup" not in line


def test_what_only_developers_need_is_not_a_users_matter():
    names = {name for name, _, _ in doctor.packages()}
    assert {"torch", "typer"} <= names and not {"pytest", "ruff", "mypy"} & names
