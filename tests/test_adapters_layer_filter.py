"""Include and exclude patterns: expansion, substring match, and the errors of filters without effect."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.adapters.layer_filter import expansions, filtered, matching, near_names, selected
from stages.errors import FilterMatchesNothing

NAMES = [
    *(f"model.transformer.layers.{i}.{leaf}" for i in range(13) for leaf in ("self_attn.to_qkv", "ff.ff.0.proj")),
    "model.preprocess_conv",
    "conditioners.seconds_total.embedder.embedding.1",
]


@pytest.mark.parametrize(
    ("pattern", "parts"),
    [
        ("layers.1", ["layers.1"]),
        ("layers.[2-0].", ["layers.2.", "layers.1.", "layers.0."]),
        ("[0-1]x[8-10]", ["0x8", "0x9", "0x10", "1x8", "1x9", "1x10"]),
        ("  layers.3. ", ["layers.3."]),
        ("layers.[a-b]", ["layers.[a-b]"]),
        ("layers.[3]", ["layers.[3]"]),
    ],
)
def test_brackets_expand_to_every_number_and_every_combination(pattern, parts):
    assert expansions(pattern) == parts


@given(
    first=st.integers(0, 60),
    last=st.integers(0, 60),
    before=st.text("abc.", max_size=4),
    after=st.text("xyz.", max_size=4),
)
@settings(max_examples=50, deadline=None)
def test_a_range_includes_both_ends_once_and_may_count_down(first, last, before, after):
    up = expansions(f"{before}[{first}-{last}]{after}")
    assert up == expansions(f"{before}[{last}-{first}]{after}")[::-1]
    assert len(up) == abs(last - first) + 1
    assert up[0] == f"{before}{first}{after}" and up[-1] == f"{before}{last}{after}"


def test_a_pattern_with_too_many_expansions_is_refused():
    with pytest.raises(ValueError, match="above 10,000"):
        expansions("[0-999][0-999]")


def test_a_match_is_a_plain_substring_so_layers_1_finds_layers_10_to_12_too():
    assert {name.split(".")[3] for name in matching(NAMES, "layers.1")} == {"1", "10", "11", "12"}
    assert {name.split(".")[3] for name in matching(NAMES, "layers.1.")} == {"1"}


def test_matching_is_case_sensitive_and_a_dot_is_a_dot():
    assert matching(NAMES, "Self_attn") == []
    assert matching(NAMES, "ff.0.proj") and not matching(NAMES, "ff?0.proj")


def test_no_include_takes_all_and_an_empty_include_takes_none():
    assert filtered(NAMES, None, None) == NAMES
    assert filtered(NAMES, None, []) == NAMES
    assert filtered(NAMES, [], None) == []


def test_exclude_wins_over_include_and_the_order_of_names_is_kept():
    chosen = filtered(NAMES, ["conditioners", "layers.[3-2]."], ["to_qkv"])
    assert chosen == [
        "model.transformer.layers.2.ff.ff.0.proj",
        "model.transformer.layers.3.ff.ff.0.proj",
        "conditioners.seconds_total.embedder.embedding.1",
    ]


def test_every_pattern_without_a_match_is_an_error_that_names_it_and_near_names():
    with pytest.raises(FilterMatchesNothing) as caught:
        selected(NAMES, ["layers.0.", "layers[0-11]"], None)
    message = str(caught.value)
    assert "include: 'layers[0-11]' matches no module" in message
    assert "model.transformer.layers.0." in message
    assert "'layers.0.'" not in message


def test_an_exclude_pattern_without_a_match_is_an_error_too():
    with pytest.raises(FilterMatchesNothing, match="exclude: 'to_out'"):
        selected(NAMES, None, ["to_out"])


def test_filters_that_leave_nothing_are_an_error():
    with pytest.raises(FilterMatchesNothing, match="the empty list"):
        selected(NAMES, [], None)
    with pytest.raises(FilterMatchesNothing, match="together"):
        selected(NAMES, ["self_attn"], ["layers"])


@pytest.mark.parametrize(
    ("pattern", "near"),
    [
        ("preproces_conv", "model.preprocess_conv"),
        ("Seconds_Total", "conditioners.seconds_total.embedder.embedding.1"),
        ("self_attention.to_qkv", "model.transformer.layers.0.self_attn.to_qkv"),
    ],
)
def test_near_names_suggest_what_was_meant(pattern, near):
    assert near in near_names(pattern, NAMES)


def test_near_names_offer_something_even_for_nonsense():
    assert near_names("~~~~", NAMES) == NAMES[:5]
