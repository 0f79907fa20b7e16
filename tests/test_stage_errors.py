"""The remedies that errors of the stages suggest."""

from __future__ import annotations

import pytest

from stages.errors import LossNotFinite


def test_a_diverged_training_is_told_what_makes_its_steps_smaller():
    message = str(LossNotFinite(7, ["a", "b"], "gradient"))
    assert "the gradient is not finite at step 7, on clips a, b." in message
    assert [flag for flag in ("--learning-rate", "--alpha", "--gradient-clip") if flag not in message] == []


@pytest.mark.parametrize(("precision", "said"), [("fp16", True), ("bf16", False), ("fp32", False), (None, False)])
def test_another_precision_is_suggested_only_where_the_base_is_fp16(precision, said):
    assert ("--base-precision" in str(LossNotFinite(7, ["a"], base_precision=precision))) == said
