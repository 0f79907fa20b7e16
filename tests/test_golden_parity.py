"""Every recorded case of the reference, one test each: the compact selection here, or the folder GOLDEN_DIR names."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import pytest

from tests.parity import frame

_ROOT = Path(os.environ.get("GOLDEN_DIR", Path(__file__).parent / "golden"))
_FAMILIES = {family.name: family for family in frame.families(_ROOT)}
_CASES = [(family.name, name) for family in _FAMILIES.values() for name in family.case_names]


@cache
def _broken_checkers() -> dict[str, str]:
    return frame.load_checkers()


def test_every_checker_module_can_be_imported():
    assert _broken_checkers() == {}


@pytest.mark.parametrize(("family", "case"), _CASES, ids=[f"{family}-{case}" for family, case in _CASES])
def test_our_result_is_the_recorded_one(family, case):
    _broken_checkers()
    verdict = frame.judge(_FAMILIES[family], case)
    assert verdict.passed, verdict.failures()
    assert verdict.comparisons
