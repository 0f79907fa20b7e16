"""What libraries that read environment variables are told, and that others are not."""

from __future__ import annotations

import os

import pytest

from stages.processes import environment_set


def test_variables_have_their_values_inside_and_those_from_before_outside(monkeypatch):
    monkeypatch.setenv("SA3_KNOWN", "before")
    monkeypatch.delenv("SA3_NEW", raising=False)
    with pytest.raises(KeyError), environment_set({"SA3_KNOWN": "inside", "SA3_NEW": "inside"}):
        assert (os.environ["SA3_KNOWN"], os.environ["SA3_NEW"]) == ("inside", "inside")
        raise KeyError
    assert os.environ["SA3_KNOWN"] == "before"
    assert "SA3_NEW" not in os.environ


def test_a_variable_that_the_library_took_away_itself_is_no_error(monkeypatch):
    monkeypatch.delenv("SA3_NEW", raising=False)
    with environment_set({"SA3_NEW": "inside"}):
        del os.environ["SA3_NEW"]
    assert "SA3_NEW" not in os.environ
