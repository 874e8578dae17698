"""Stories from a grammar; all its sentences are filled with the words of the prompt."""

import random
import re

from d2cache.teaching.tasks.base import Family, Problem
from d2cache.teaching.tasks.vocabulary import ANIMALS, JOBS, NAMES, OBJECTS, PLACES, SHE, TRAITS

ASKS = (
    "Write a story about {name}, a {trait} {kind} who {theme} a {object} in the {place}.",
    "Tell a story about a {trait} {kind} named {name} who {theme} a {object} in the {place}.",
    "Write about how {name}, a {trait} {kind} in the {place}, {theme} a {object}.",
    "In the {place} a {trait} {kind} {theme} a {object}. The name is {name}. Tell the story.",
)
KINDS_OF_HERO = ANIMALS + JOBS
# What happens to the object: (how it starts, how it ends).
THEMES = {
    "finds": (
        "One day {he} found a {object} under a tree.",
        "One morning {he} found an old {object} by the road.",
        "One day {he} saw a {object} in the grass and took it home.",
    ),
    "loses": (
        "One day {he} lost {his} {object} near the river.",
        "One morning {his} old {object} was gone.",
        "One day {he} lost {his} best {object} on the road.",
    ),
    "makes": (
        "One day {he} made a {object} out of old wood.",
        "One morning {he} sat down and made a {object}.",
        "One day {he} made a new {object} with {his} own hands.",
    ),
    "buys": (
        "One day {he} bought a {object} from an old man.",
        "One morning {he} bought a new {object} for one coin.",
        "One day {he} paid all {his} coins for a {object}.",
    ),
}
SLOTS = (
    (
        "Once a {trait} {kind} named {name} lived in the {place}.",
        "Once there was a {trait} {kind} in the {place} named {name}.",
        "In the {place} there lived a {trait} {kind} named {name}.",
        "{name} was a {trait} {kind} who lived in the {place}.",
    ),
    (
        "{name} wanted to see the sea.",
        "More than all {he} wanted a good friend.",
        "Every day {he} wanted to help the people.",
        "At night {he} wanted to fly to the stars.",
        "{name} wanted to learn a new song.",
    ),
    (),  # the theme's sentence
    (
        "But then a storm came.",
        "But the river was deep and cold.",
        "But night came and {he} was all alone.",
        "But it was cold, and {name} had no food.",
        "But the wind was strong and {name} fell down.",
    ),
    (
        "A {helper} saw {him} and came to help.",
        "Then {he} saw an old {helper}.",
        "Then an old {helper} came down the road.",
        "A {helper} came by with a warm light.",
    ),
    (
        "The {trait} {kind} told the {helper} about the {object}.",
        "{name} was {trait}, but {he} asked the {helper} for help.",
        "The {helper} sat down with the {trait} {kind}.",
        "{name} and the {helper} worked all night.",
    ),
    (
        "In the end {name} came home to the {place} with the {object}.",
        "In the end the {object} made the {place} a happy place.",
        "In the end the {object} stood in the house of {name}.",
        "In the end {name} gave the {object} to the {helper}.",
    ),
    (
        "A good friend is more than gold.",
        "It is good to ask for help.",
        "And {name} was never alone again.",
        "A small {object} can make a big day.",
    ),
)


def _pronouns(name: str) -> dict[str, str]:
    """The pronouns that go with a name."""
    if name in SHE:
        return {"he": "she", "his": "her", "him": "her"}
    return {"he": "he", "his": "his", "him": "him"}


def _slots(words: dict[str, str]) -> list[tuple[str, ...]]:
    """The alternatives for each sentence, not filled in yet, for the theme in ``words``."""
    return [slot or THEMES[words["theme"]] for slot in SLOTS]


def _read_prompt(prompt: str) -> dict[str, str]:
    """The words of the story, found in its prompt; the lists do not overlap."""
    lists = {
        "name": NAMES,
        "trait": TRAITS,
        "kind": KINDS_OF_HERO,
        "theme": THEMES,
        "object": OBJECTS,
        "place": PLACES,
    }
    present = re.findall(r"[A-Za-z]+", prompt)
    words = {key: next(w for w in present if w in known) for key, known in lists.items()}
    return words | _pronouns(words["name"])


def _derivable(words: dict[str, str], text: str) -> bool:
    """Whether the text is one alternative for each sentence, in order, all with the same words."""
    rests = {text + " "}
    for slot in _slots(words):
        lines = [line.format(**words) + " " for line in slot]
        rests = {rest[len(line) :] for rest in rests for line in lines if rest.startswith(line)}
    return "" in rests


class Stories(Family, key="stories"):
    title = "stories"
    order = 5
    answer_length = 96
    weight = 12

    def make(self, rng: random.Random) -> Problem:
        words = {
            "name": rng.choice(NAMES),
            "trait": rng.choice(TRAITS),
            "kind": rng.choice(KINDS_OF_HERO),
            "theme": rng.choice(list(THEMES)),
            "object": rng.choice(OBJECTS),
            "place": rng.choice(PLACES),
        }
        prompt = rng.choice(ASKS).format(**words)
        words |= _pronouns(words["name"])
        words["helper"] = rng.choice([animal for animal in ANIMALS if animal != words["kind"]])
        lines = [rng.choice(slot).format(**words) for slot in _slots(words)]
        return Problem("stories", prompt, " ".join(lines))

    def correct(self, problem: Problem, text: str) -> bool:
        """Whether the grammar can derive the text from the problem's prompt."""
        words = _read_prompt(problem.prompt)
        helpers = [animal for animal in ANIMALS if animal != words["kind"]]
        return any(_derivable(words | {"helper": helper}, text.strip()) for helper in helpers)
