"""Captions of synthesised sounds: many wordings, none of which claims what is not so."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.pretrain.captions import phrases
from stages.pretrain.captions.caption import caption
from stages.pretrain.captions.nouns import FAMILY_NOUNS, VARIANT_NOUNS
from stages.pretrain.captions.tokenizer import SPECIAL_TOKENS, train_tokenizer
from stages.pretrain.synthesis.facts import SoundFacts
from stages.pretrain.synthesis.families import drum_loops, harmony, keys_and_synths
from stages.pretrain.synthesis.synthesiser import FAMILIES, Synthesiser

PLUCK = SoundFacts(family="pluck", seconds=1.0, peak=0.5)

some_facts = st.builds(
    SoundFacts,
    family=st.sampled_from(sorted(FAMILIES)),
    seconds=st.floats(0.5, 20),
    peak=st.just(0.5),
    note=st.none() | st.integers(26, 103),
    tempo_bpm=st.none() | st.integers(60, 180),
    brightness=st.none() | st.floats(0, 1),
    decay_seconds=st.none() | st.floats(0.05, 10),
    attack_seconds=st.none() | st.floats(0.001, 2),
    vibrato=st.none() | st.floats(0, 1),
    pan=st.floats(-1, 1),
    width=st.floats(0, 1),
    room_seconds=st.just(0.0) | st.floats(0.25, 2.5),
)


def wordings(facts: SoundFacts, count: int = 300) -> set[str]:
    random = Random(1)
    return {caption(facts, random) for _ in range(count)}


@given(facts=some_facts, seed=st.integers(0, 1000))
def test_a_caption_claims_only_what_is_so(facts, seed):
    words = set(re.findall(r"[a-z#]+", caption(facts, Random(seed)).lower()))
    if "bright" in words:
        assert facts.brightness is not None and facts.brightness > 0.6
    if "dark" in words:
        assert facts.brightness is not None and facts.brightness < 0.4
    if words & {"left", "right"}:
        assert ("left" in words) == (facts.pan < 0)
    if "wide" in words:
        assert facts.width > 0.5
    if "mono" in words:
        assert facts.width < 0.1 and abs(facts.pan) < 0.2
    if "hall" in words:
        assert facts.room_seconds > 1
    if "dry" in words:
        assert facts.room_seconds == 0
    if words & {"bpm", "tempo"}:
        assert facts.tempo_bpm is not None


@given(facts=some_facts, seed=st.integers(0, 1000))
def test_every_number_of_beats_is_the_tempo(facts, seed):
    found = re.findall(r"(\d+) (?:bpm|beats)|tempo (\d+)", caption(facts, Random(seed)).lower())
    assert {int(one or other) for one, other in found} <= {facts.tempo_bpm}


@pytest.mark.parametrize(("note", "names"), [(60, {"C4"}), (61, {"C#4", "Db4"}), (45, {"A2"})])
def test_a_note_is_told_by_its_names_and_no_other(note, names):
    told = {name for text in wordings(replace(PLUCK, note=note)) for name in re.findall(r"\b[A-G][#b]?\d\b", text)}
    assert told == names


def test_a_chord_is_told_with_its_root_and_mode():
    facts = SoundFacts(family="chord", seconds=1.0, peak=0.5, key=9, mode="minor seventh")
    said = " ".join(wordings(facts))
    assert "A minor seventh" in said and "Am7" in said and "major" not in said


def test_a_caption_says_which_way_a_sweep_goes():
    facts = SoundFacts(family="sweep", seconds=1.0, peak=0.5, direction="falling")
    said = " ".join(wordings(facts)).lower()
    assert "falling" in said and "rising" not in said


def test_one_sound_has_hundreds_of_wordings():
    facts = replace(PLUCK, variant="harp", note=64, brightness=0.9, decay_seconds=4.0, room_seconds=2.0)
    assert len(wordings(facts, 1000)) > 500


def test_the_same_state_of_the_generator_gives_the_same_caption():
    assert caption(PLUCK, Random(4)) == caption(PLUCK, Random(4))


def test_every_family_has_names():
    assert FAMILY_NOUNS.keys() == FAMILIES.keys()


def test_every_named_variant_is_one_of_a_family():
    assert {family for family, _ in VARIANT_NOUNS} <= FAMILIES.keys()
    assert {name for family, name in VARIANT_NOUNS if family == "drum loop"} == drum_loops.PATTERNS.keys()


def test_every_mode_has_a_name():
    assert {*harmony.MODES, *keys_and_synths.PAD_MODES} <= phrases._MODE_NAMES.keys()


def test_the_tokenizer_restores_any_text():
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(train_tokenizer(captions(), 400))
    for text in ("A bright harp, 124 bpm.", "Größe \u4f60\u597d \U0001f941", "  two  spaces"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_the_tokenizer_is_the_same_for_the_same_captions():
    assert train_tokenizer(captions(), 400) == train_tokenizer(captions(), 400)


def test_the_tokenizer_holds_its_size_and_its_special_tokens_in_front():
    vocabulary = json.loads(train_tokenizer(captions(), 400))["model"]["vocab"]
    assert len(vocabulary) <= 400
    assert [vocabulary[name] for name in SPECIAL_TOKENS] == [0, 1, 2, 3]


def test_a_text_is_enclosed_in_its_special_tokens():
    from tokenizers import Tokenizer

    ids = Tokenizer.from_str(train_tokenizer(captions(), 400)).encode("kick").ids
    assert (ids[0], ids[-1]) == (2, 1)


def test_a_vocabulary_too_small_for_the_bytes_is_refused():
    with pytest.raises(ValueError, match="at least 260"):
        train_tokenizer(captions(), 100)


def captions() -> list[str]:
    random = Random(2)
    facts = Synthesiser(seed=2).batch(40, 2048).facts
    return [caption(one, random) for one in facts for _ in range(5)]
