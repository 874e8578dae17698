"""Whether a prompt is of a kind that the bundled model was trained on."""

from __future__ import annotations

import functools
import random
import re

from d2cache import bundled
from d2cache.prompts import has_gap
from d2cache.teaching import tasks
from d2cache.teaching.tasks import vocabulary

UNLIKE = (
    "This prompt is unlike anything that the bundled model knows, so its answer will mean nothing: "
    "it was trained on six kinds of small problems only. Choose one under Example."
)
GAPS = "Underscores are gaps to fill; the rest of the text stays."
POORLY = "The bundled model was trained to answer, and fills gaps poorly."
ENOUGH = 0.5  # more than this share of what a prompt is made of must be known
NOTHING_NEW = 60  # prompts of a family in a row, until its draws are taken to have shown everything
MOST_DRAWN = 600
WORDS = re.compile(r"\d+|[^\W\d_]+(?:_\w+)*|\S")
NUMBER, NAME, THING = "<number>", "<name>", "<thing>"  # stand for any of their kind


def remark(prompt: str, bundled_model: bool) -> str:
    """What to know of a prompt beside its answer: that it has gaps, or that the bundled model knows
    nothing like it. Else ""."""
    if has_gap(prompt):
        poorly = bundled_model and "holes" not in bundled.FAMILIES
        return f"{GAPS} {POORLY}" if poorly else GAPS
    return UNLIKE if bundled_model and not is_familiar(prompt) else ""


def is_familiar(prompt: str) -> bool:
    """Whether more than half of a prompt's sequences of three words also occur in the families'
    prompts, where one number is as good as another, and one name, colour, place and so on."""
    known = sequences()
    own = _sequences(_kinds(prompt))
    return len(own & known) > ENOUGH * len(own)


@functools.cache
def sequences() -> frozenset[tuple[str, ...]]:
    """All that the families' prompts are made of."""
    known: set[tuple[str, ...]] = set()
    for key in bundled.FAMILIES:
        family, rng, since = tasks.FAMILIES[key], random.Random(0), 0
        for _ in range(MOST_DRAWN):
            new = _sequences(_kinds(family.make(rng).prompt, train=True)) - known
            known |= new
            since = 0 if new else since + 1
            if since == NOTHING_NEW:
                break
    return frozenset(known)


@functools.cache
def _words() -> frozenset[str]:
    return frozenset(word for three in sequences() for word in three)


@functools.cache
def _classes() -> dict[str, str]:
    """Word -> what it is one of."""
    lists = ("COLOURS", "ANIMALS", "JOBS", "PLACES", "TRAITS")
    found = {word: f"<{name.lower()}>" for name in lists for word in getattr(vocabulary, name)}
    found |= dict.fromkeys((*vocabulary.ITEMS, *vocabulary.OBJECTS), THING)
    return found | dict.fromkeys((*vocabulary.NAMES, *vocabulary.TOWNS), NAME)


def _kinds(prompt: str, train: bool = False) -> list[str]:
    """A prompt with each word replaced by its kind; train: it is one of the families'."""
    things: set[str] = set()
    out = ["^"]
    for word in WORDS.findall(prompt):
        kind = _kind(word, out[-1], things, train)
        if kind == THING:
            things.add(word)
        out.append(kind)
    return [*out, "$"]


def _kind(word: str, before: str, things: set[str], train: bool) -> str:
    """What a word is one of, else itself. A name or a counted thing need not be a known one."""
    if word.isdigit():
        return NUMBER
    if word in _classes():
        return _classes()[word]
    if train or word.lower() in _words():
        return word.lower()
    if word[0].isupper():
        return NAME
    return THING if word in things or (before == NUMBER and word.isalpha()) else word


def _sequences(words: list[str]) -> set[tuple[str, ...]]:
    return set(zip(words, words[1:], words[2:], strict=False))
