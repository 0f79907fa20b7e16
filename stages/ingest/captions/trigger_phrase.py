"""The trigger phrase before a caption, unless the caption holds it as whole words. Light: standard library only."""

from __future__ import annotations

import unicodedata

_UNSPACED = ("CJK ", "HIRAGANA ", "KATAKANA", "THAI ", "LAO ", "KHMER ", "MYANMAR ", "TIBETAN ")
"""Beginnings of the Unicode names of letters whose scripts put no space between words."""


def with_trigger_phrase(text: str, trigger_phrase: str | None) -> str:
    """The prompt: the caption, with the trigger phrase before it unless it contains the phrase already."""
    phrase = (trigger_phrase or "").strip()
    return text if not phrase or contains_phrase(text, phrase) else f"{phrase}, {text}"


def contains_phrase(text: str, phrase: str) -> bool:
    """Whether the phrase stands in the text as whole words: "drum" is in "drum machine", not in "drumming".

    Upper and lower case, the Unicode form of accents and the amount of white space make no difference.
    """
    text, phrase = _compared(text), _compared(phrase)
    start = text.find(phrase)
    while start >= 0:
        end = start + len(phrase)
        if _parted(text[start - 1 : start], phrase[:1]) and _parted(phrase[-1:], text[end : end + 1]):
            return True
        start = text.find(phrase, start + 1)
    return False


def _compared(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold()).split())


def _parted(before: str, after: str) -> bool:
    """Whether a word may end between these two letters; one of them is empty at an end of the text."""
    return not (_is_of_word(before) and _is_of_word(after))


def _is_of_word(letter: str) -> bool:
    """Whether a letter, digit, accent or underscore is of a script that parts its words by spaces."""
    if not letter or unicodedata.name(letter, "").startswith(_UNSPACED):
        return False
    return letter == "_" or unicodedata.category(letter)[0] in "LMN"
