"""A stage's version and its code go together."""

from __future__ import annotations

import ast
import json

import pytest

from tests.stage_code import CODE, RECORD, current, dumped, without_words


@pytest.mark.parametrize("name", CODE)
def test_changed_stage_code_comes_with_a_new_version_or_is_accepted_as_giving_the_same_results(name):
    recorded = json.loads(RECORD.read_text(encoding="utf-8"))[name]
    now = current()[name]
    assert recorded == now, f"{name}: bump the stage's version, or run `make accept-stage-code` if results are the same"


def test_words_do_not_count_as_code():
    spoken = 'def f(x):\n    """Says much."""\n    return x  # why\n'
    silent = "def f(x):\n    return x\n"
    other = "def f(x):\n    return -x\n"
    trees = [dumped(without_words(ast.parse(text))) for text in (spoken, silent, other)]
    assert trees[0] == trees[1] != trees[2]
