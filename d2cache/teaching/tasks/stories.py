"""Stories from a grammar; all its sentences are filled with the words of the prompt."""

import functools
import random
import re

from d2cache.teaching.tasks.base import Family, Problem
from d2cache.teaching.tasks.vocabulary import (
    ANIMALS,
    COLOURS,
    JOBS,
    NAMES,
    OBJECTS,
    PIECES,
    PLACES,
    SHE,
    TRAITS,
)

ASKS = (
    "Write a story about {name}, a {trait} {kind} who {theme} a {object} in the {place}.",
    "Tell a story about a {trait} {kind} named {name} who {theme} a {object} in the {place}.",
    "Write about how {name}, a {trait} {kind} in the {place}, {theme} a {object}.",
    "In the {place} a {trait} {kind} {theme} a {object}. The name is {name}. Tell the story.",
)
KINDS_OF_HERO = ANIMALS + JOBS
THEMES = ("finds", "loses", "makes", "buys")

# The grammar: [a|b] is one of a and b, <rule> is another rule and {word} is a word of the story,
# the same wherever it stands. Where a slot has many alternatives, what is written there cannot be
# known before it is written: such doubt is wanted, so the slots are many and small.
GRAMMAR = {
    "story": "<open> [<wish> <event>|<event> <wish>] [<trouble> <meet>|<meet> <trouble>] <work>"
    " <end> <moral>",
    "open": "[Once|Long ago|Many years ago|One winter|One summer|In old times]"
    " [a <trait> {kind} named {name} <lived> in the {place}"
    "|there was a <trait> {kind} in the {place} named {name}"
    "|{name} the <trait> {kind} <lived> in the {place}"
    "|in the {place} <lived> a <trait> {kind} named {name}].",
    "trait": "{trait}[| young| old| little| poor]",
    "lived": "[lived|worked|slept|played|sang|waited]",
    "wish": "[{name}|Every day {he}|At night {he}|More than all {he}|Most of all {he}|<Then> {he}]"
    " [wanted|hoped|wished|loved|tried] to"
    " [see the <far>|help the <people>|learn a new <craft>|fly to the <far>|find a <good> friend"
    "|sing for the <people>|walk to the <far>].",
    "far": "[sea|stars|river|city|mountain|moon|sun|road]",
    "people": "[people|children|farmers|birds|old|poor]",
    "craft": "[song|game|word|story]",
    "good": "[good|new|true|kind|happy|brave|warm]",
    "when": "[One|That|The same|The next] [day|morning|night|evening|week|winter]",
    "Then": "[Then|Soon|Later|Now|So]",
    "look": "[new|small|big|good|<colour>|cold|lost]",
    "colour": f"[{'|'.join(COLOURS)}]",
    "by": "[under|near|behind|by|beside|over] the [tree|road|river|house|bridge|wall|hill|well]",
    "wood": "[wood|stone|gold|glass|paper]",
    "trouble": "But [then|soon|now|that day|at night|one day] [<weather> came|the river was <bad>"
    "|{he} was <sad> and <sad>|the <wind> was <bad>|{name} had no [food|light|coins|home|water]"
    "|{name} fell down <by>|{he} was all alone].",
    "weather": "a [storm|fire|big wind|cold rain|thief]",
    "wind": "[wind|night|road|rain|snow|water]",
    "bad": "[deep|cold|strong|dark|long]",
    "sad": "[cold|tired|sad|lost|hungry]",
    "meet": "<Then> [an old|a <good>|a <colour>|a small|a big] {helper}"
    " [came|walked|ran|looked|stood|waited] [<by>|with a [warm|small|<colour>] light].",
    "work": "[{name}|The {trait} {kind}|<Then> {he}]"
    " [told the {helper} about the {object}|asked the {helper} for [help|food|light|water|a song]"
    "|sat down with the {helper} <by>|and the {helper} [worked|talked|walked|sang] all"
    " [night|day|week|winter]].",
    "end": "[In the end|At last|After that|<when>] [{name} came home [to the {place}|<by>] with the"
    " <object>|the <object> made the {place} a <good> place|the <object> stood in the house of"
    " [{name}|the {helper}]|{name} gave the <object> to the [{helper}|people|children]].",
    "object": "[|<look> ]{object}",
    "moral": "[A <good> friend is more than [gold|coins|a {object}]|It is good to"
    " [ask for|give|wait for|work for] [help|friends|people]"
    "|And {name} was never [alone|cold|sad|lost|hungry] again"
    "|A [small|<good>|<colour>] {object} can make a [big|<good>] day].",
}
# What happens to the object: the rule "event" of each theme.
EVENTS = {
    "finds": "<when> {he} [found|saw|met with] [a <look>|the <look>|{his} <look>] {object} <by>.",
    "loses": "<when> {he} [lost|dropped|left] {his} <look> {object} <by>.",
    "makes": "<when> {he} [made|built] a <look> {object} out of <look> <wood>.",
    "buys": "<when> {he} [bought|got|took] a <look> {object} from [an old|a <good>|a <trait>]"
    " [man|woman|friend|farmer].",
}
SIGNS = re.compile(r"<(\w+)>|([\[|\]])|[^<\[|\]]+")


def _parse(text: str, rules: dict[str, str], at: int = 0) -> tuple[list, int]:
    """A rule's text from a place on as a sequence, and where it ends.

    A part of a sequence is a str, or a tuple of sequences, one of which is taken.
    """
    parts = []
    while found := SIGNS.match(text, at):
        at = found.end()
        if found[1]:
            parts += _parse(rules[found[1]], rules)[0]
        elif found[2] == "[":
            choices = []
            while text[at - 1] != "]":
                choice, at = _parse(text, rules, at)
                choices.append(choice)
            parts.append(tuple(choices))
        elif found[2]:
            break
        else:
            parts.append(found[0])
    return parts, at


@functools.cache
def _grammar(theme: str) -> list:
    """The sequence of a whole story about a theme."""
    return _parse("<story>", GRAMMAR | {"event": EVENTS[theme]})[0]


def _tell(rng: random.Random, parts: list, words: dict[str, str]) -> str:
    """A text that the grammar derives; every alternative is as likely as the others."""
    return "".join(
        part.format(**words) if isinstance(part, str) else _tell(rng, rng.choice(part), words)
        for part in parts
    )


def _ends(parts: list, text: str, starts: set[int], words: dict[str, str]) -> set[int]:
    """Where a text that the sequence derives may end, if it starts at one of ``starts``."""
    for part in parts:
        if isinstance(part, str):
            said = part.format(**words)
            starts = {at + len(said) for at in starts if text.startswith(said, at)}
        else:
            starts = set().union(*(_ends(choice, text, starts, words) for choice in part))
        if not starts:
            break
    return starts


def _pronouns(name: str) -> dict[str, str]:
    """The pronouns that go with a name."""
    if name in SHE:
        return {"he": "she", "his": "her", "him": "her"}
    return {"he": "he", "his": "his", "him": "him"}


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


class Stories(Family, key="stories"):
    title = "stories"
    order = 5
    answer_length = 96
    weight = 14

    def make(self, rng: random.Random) -> Problem:
        words = {
            "name": rng.choice(NAMES),
            "trait": rng.choice(TRAITS),
            "kind": rng.choice(KINDS_OF_HERO),
            "theme": rng.choice(THEMES),
            "object": rng.choice(OBJECTS),
            "place": rng.choice(PLACES),
        }
        prompt = rng.choice(ASKS).format(**words)
        words |= _pronouns(words["name"])
        words["helper"] = rng.choice([animal for animal in ANIMALS if animal != words["kind"]])
        story = None
        while story is None or len(re.findall(PIECES, story)) >= self.answer_length:
            story = _tell(rng, _grammar(words["theme"]), words)
        return Problem("stories", prompt, story)

    def correct(self, problem: Problem, text: str) -> bool:
        """Whether the grammar can derive the text from the problem's prompt."""
        words, text = _read_prompt(problem.prompt), text.strip()
        grammar = _grammar(words["theme"])
        helpers = (animal for animal in ANIMALS if animal != words["kind"] and animal in text)
        return any(
            len(text) in _ends(grammar, text, {0}, words | {"helper": helper}) for helper in helpers
        )
