"""What a request asks of this machine's packages, before anything runs."""

from __future__ import annotations

import pytest

from pipeline import checks
from pipeline.checks import check_request
from pipeline.errors import RecipeError
from pipeline.recipe import read_recipe

ASKED = {"base_quantization": "int8", "optimizer": "lion"}


def test_options_of_packages_that_are_not_there_are_refused_all_at_once(monkeypatch):
    monkeypatch.setattr(checks, "find_spec", lambda module: None)
    with pytest.raises(RecipeError) as caught:
        check_request(read_recipe("clips.zip", ASKED), None, None)
    found = {error.loc[0]: error.msg for error in caught.value.errors}
    assert found == {
        "base_quantization": "int8 needs the package torchao: `pip install torchao`, or ask for none",
        "optimizer": "lion needs the package pytorch-optimizer: `pip install pytorch-optimizer`, or ask for adamw",
    }


def test_a_request_without_them_needs_no_package(monkeypatch):
    monkeypatch.setattr(checks, "find_spec", lambda module: None)
    check_request(read_recipe("clips.zip", {}), None, None)


def test_with_the_packages_nothing_is_refused(monkeypatch):
    looked_for: list[str] = []
    monkeypatch.setattr(checks, "find_spec", lambda module: looked_for.append(module) or module)
    check_request(read_recipe("clips.zip", ASKED), None, None)
    assert looked_for == ["torchao", "pytorch_optimizer"]
