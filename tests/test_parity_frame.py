"""The parity frame itself: it must not pass what it did not check."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import save_file

from tests.parity import frame

RULES = {"atol_strict": 1e-3, "atol_loose": 1e-1}


@pytest.fixture
def family(tmp_path, monkeypatch):
    """A family with one case `made_up`, outputs `near` and `far`; no checkers."""
    folder = tmp_path / "family"
    (folder / "cases").mkdir(parents=True)
    save_file({"near": torch.zeros(4), "far": torch.zeros(4)}, folder / "cases" / "made_up.safetensors")
    entry = {
        "case": "made_up",
        "file": "cases/made_up.safetensors",
        "params": {"a": 1},
        "inputs": {},
        "outputs": {"near": RULES, "far": {"atol_strict": 1e-3}},
    }
    (folder / "index.json").write_text(json.dumps({"cases": [entry]}))
    monkeypatch.setattr(frame, "_CHECKERS", [])
    return frame.families(tmp_path)[0]


def checked(family, **offsets):
    """The verdict of a checker that is off by these much."""

    @frame.checks(r"made_.*")
    def checker(family, case):
        for name, offset in offsets.items():
            yield frame.compare(case, name, case.tensors[name] + offset)

    return frame.judge(family, "made_up")


def test_a_case_that_no_checker_knows_fails(family):
    verdict = frame.judge(family, "made_up")
    assert not verdict.passed
    assert "no checker" in verdict.trouble


def test_a_recorded_output_that_nobody_compares_fails(family):
    verdict = checked(family, near=0)
    assert not verdict.passed
    assert "far" in verdict.failures()


def test_strict_is_tried_first_and_loose_only_where_the_index_gives_it(family):
    verdict = checked(family, near=1e-2, far=0)
    assert verdict.passed
    assert [one.level for one in verdict.comparisons] == ["loose", "strict"]
    assert not checked(family, near=0, far=1e-2).passed


@pytest.mark.parametrize("offset", [1.0, math.nan, math.inf])
def test_a_large_or_undefined_difference_fails(family, offset):
    assert not checked(family, near=offset, far=0).passed


def test_another_shape_fails(family):
    assert not checked(family, near=torch.zeros(2, 4), far=0).passed


def test_a_checker_that_raises_fails_its_case_and_shows_why(family):
    @frame.checks(r"made_up")
    def checker(family, case):
        raise ArithmeticError("lost")
        yield

    assert "lost" in frame.judge(family, "made_up").failures()


def test_a_checker_of_another_name_is_not_asked(family):
    @frame.checks(r"made")
    def checker(family, case):
        yield frame.failure("x", "asked")

    assert "no checker" in frame.judge(family, "made_up").trouble


def case_with(tensors, outputs):
    return frame.Case(name="c", params={}, tensors=tensors, entry={"outputs": outputs})


def test_a_group_is_judged_by_relative_l2_per_tensor_and_small_ones_by_the_absolute_figure():
    rules = {"grad:<t>": {"relative_l2_strict": 1e-3, "atol_strict": 1e-6}}
    case = case_with({"grad:big": torch.full((4,), 10.0), "grad:small": torch.full((4,), 1e-3)}, rules)
    off = {"big": torch.full((4,), 10.005), "small": torch.full((4,), 1e-3 + 1e-5)}
    verdicts = {one.tensor: one.passed for one in frame.compare_group(case, "grad:", off)}
    assert verdicts == {"grad:big": True, "grad:small": False}


def test_a_group_with_other_names_fails():
    case = case_with({"grad:a": torch.ones(1)}, {"grad:<t>": {"relative_l2_strict": 1, "atol_strict": 1}})
    (only,) = frame.compare_group(case, "grad:", {"b": torch.ones(1)})
    assert not only.passed


@pytest.mark.parametrize(
    ("num_off", "by", "passed"), [(0, 0, True), (4, 1e-3, True), (9, 1e-3, False), (1, 0.1, False)]
)
def test_weights_after_steps_may_have_half_a_percent_of_strays_but_none_beyond_the_bound(num_off, by, passed):
    rules = {"after:<t>": {"atol_for_99.5_percent_strict": 1e-5, "atol_max": 1e-2}}
    case = case_with({"after:a": torch.zeros(900), "after:b": torch.zeros(100)}, rules)
    off = {"a": torch.zeros(900), "b": torch.zeros(100)}
    off["b"][:num_off] = by
    (only,) = frame.compare_group(case, "after:", off)
    assert only.passed is passed


def test_integers_and_booleans_must_be_the_same():
    case = case_with({"mask": torch.tensor([True, False])}, {"mask": {"compare": "exact"}})
    assert frame.compare(case, "mask", torch.tensor([True, False])).level == "exact"
    assert not frame.compare(case, "mask", torch.tensor([True, True])).passed


def test_a_comparison_can_be_kept_to_the_valid_frames():
    case = case_with({"x": torch.zeros(1, 3)}, {"x": {"atol_strict": 0.1}})
    actual = torch.tensor([[0.0, 0.0, 9.0]])
    assert frame.compare(case, "x", actual, where=torch.tensor([[True, True, False]])).passed
    assert not frame.compare(case, "x", actual).passed


def test_files_with_expectations_are_cases_too(family):
    (family.folder / "statistics.json").write_text('{"a": 3}')
    found = frame.Family(family.folder)
    assert found.case_names == ["made_up", "file:statistics"]
    assert found.case("file:statistics").params == {"a": 3}
