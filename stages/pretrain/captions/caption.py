"""One caption of a sound: some of its facts, in one of many wordings. Light: standard library only."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from stages.pretrain.captions.nouns import FAMILY_NOUNS, VARIANT_NOUNS
from stages.pretrain.captions.phrases import additions, adjectives
from stages.pretrain.synthesis.facts import SoundFacts

_MOST_ADJECTIVES = 3
_OPENINGS = ("", "", "", "the sound of ", "a recording of ", "sample of ", "one shot of ", "audio of ")
_JOINTS = (", ", ", ", " ", " - ", "; ")
_UNCOUNTED = frozenset({"noise", "wind", "rain", "fire", "waves"})


def caption(facts: SoundFacts, random: Random) -> str:
    """Words for a sound: a sentence, a few words in a row, or tags; each of its facts is left out at times.

    Everything that it says is true of the sound. The same state of the random generator gives the same caption.
    """
    noun = name_of(facts, random)
    before = _kept(adjectives(facts, random), 0.5, random)[:_MOST_ADJECTIVES]
    behind = _kept(additions(facts, random), 0.75, random)
    form = random.choice((_sentence, _words, _words, _tags, _key_first))
    text = form(facts, noun, before, behind, random)
    return text if random.random() < 0.6 else text[0].upper() + text[1:]


def name_of(facts: SoundFacts, random: Random) -> str:
    """What the sound is called, without anything else."""
    names = VARIANT_NOUNS.get((facts.family, facts.variant or ""), ())
    return random.choice(names if names and random.random() < 0.8 else FAMILY_NOUNS[facts.family])


def _kept(words: list[str], probability: float, random: Random) -> list[str]:
    """Some of the words, in any order."""
    kept = [word for word in words if random.random() < probability]
    random.shuffle(kept)
    return kept


def _sentence(facts: SoundFacts, noun: str, before: Sequence[str], behind: Sequence[str], random: Random) -> str:
    phrase = ", ".join(before) + (" " if before else "") + noun
    article = "" if facts.family in _UNCOUNTED else "an " if phrase[0].lower() in "aeio" else "a "
    rest = "".join(f", {words}" for words in behind)
    return f"{_opening(facts, random)}{article}{phrase}{rest}{random.choice(('.', '.', ''))}"


def _opening(facts: SoundFacts, random: Random) -> str:
    opening = random.choice(_OPENINGS)
    one_shot_of_a_loop = opening.startswith("one shot") and facts.tempo_bpm is not None
    return "" if one_shot_of_a_loop else opening


def _words(facts: SoundFacts, noun: str, before: Sequence[str], behind: Sequence[str], random: Random) -> str:
    return " ".join([*before, noun]) + "".join(random.choice(_JOINTS) + words for words in behind)


def _tags(facts: SoundFacts, noun: str, before: Sequence[str], behind: Sequence[str], random: Random) -> str:
    tags = [noun, *before, *behind]
    random.shuffle(tags)
    return random.choice((", ", ", ", " | ", " ")).join(tags)


def _key_first(facts: SoundFacts, noun: str, before: Sequence[str], behind: Sequence[str], random: Random) -> str:
    if not behind:
        return _words(facts, noun, before, behind, random)
    return ", ".join([behind[0], " ".join([*before, noun]), *behind[1:]])
