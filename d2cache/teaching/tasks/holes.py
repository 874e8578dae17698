"""Texts of the other families with gaps; the text before and after each gap is given.

A gap is written as a run of underscores that touches no letter or digit, one underscore a token.
The space before the first token of a gap belongs to the gap and stays in the text.
"""

import random
import re

from d2cache.prompts import has_gap, split_gaps
from d2cache.teaching.tasks.base import Family, Problem, is_held_out
from d2cache.teaching.tasks.vocabulary import PIECES

SOURCES = {
    "word": 3,
    "arithmetic": 3,
    "code": 3,
    "facts": 1,
    "lists": 2,
    "stories": 5,
    "countdown": 2,
}
MOST_PIECES = 254
# a word, a digit or signs: no new line, no indent, no second word of a compound name
HIDDEN = re.compile(r" ?(?:[0-9]|[A-Za-z]+|[^\sA-Za-z0-9_]+)")


def _count(text: str) -> int:
    return len(re.findall(PIECES, text))


def _may_hide(pieces: list[str], start: int, end: int) -> bool:
    """Whether a gap over these pieces can be told from the text around it."""
    before, after = "".join(pieces[:start])[-1:], pieces[end]
    if not all(map(HIDDEN.fullmatch, pieces[start:end])) or re.match(r"\w", after):
        return False
    return pieces[start].startswith(" ") or not re.match(r"[\w ]", before)


def _choose_gaps(rng: random.Random, pieces: list[str], first: int) -> list[tuple[int, int]]:
    """One to three gaps (start, end) from the piece ``first`` on; none where those drawn fail."""
    gaps, wanted = [], rng.choice((1, 1, 2, 2, 3))
    for _ in range(30):
        start = rng.randrange(first, len(pieces))
        end = start + rng.choice((1, 1, 2, 2, 3, 4, 5, 6, 7, 8))
        # two tokens at least between gaps, and one after the last
        apart = all(end + 2 <= other or last + 2 <= start for other, last in gaps)
        if end < len(pieces) and apart and _may_hide(pieces, start, end):
            gaps.append((start, end))
            if len(gaps) == wanted:
                break
    return sorted(gaps)


def _with_gaps(pieces: list[str], gaps: list[tuple[int, int]]) -> str:
    text, at = "", 0
    for start, end in gaps:
        space = " " if pieces[start].startswith(" ") else ""
        text += "".join(pieces[at:start]) + space + "_" * (end - start)
        at = end
    return text + "".join(pieces[at:])


def _hide(rng: random.Random, head: str, tail: str, of: str) -> Problem | None:
    """The problem to fill gaps that are in ``tail``; None where no gaps could be drawn."""
    pieces, first = re.findall(PIECES, head + tail), _count(head)
    gaps = _choose_gaps(rng, pieces, first) if first + 2 <= len(pieces) <= MOST_PIECES else []
    if not gaps or has_gap(head + tail):
        return None
    return Problem("holes", _with_gaps(pieces, gaps), head + tail, of)


def _cut(text: str) -> tuple[str, str] | None:
    """The prompt and the answer of "Q: ... A: ..."; None where a text is not of this form."""
    found = re.fullmatch(r"Q: (.*)\nA: (.*)", text, re.DOTALL)
    return (found.group(1), found.group(2)) if found else None


def _value(text: str) -> int | None:
    """The value of an expression of whole numbers; None where it has none, or is none."""
    while found := re.search(r"\(([^()]*)\)", text):
        inner = _value(found.group(1))
        if inner is None:
            return None
        text = f"{text[: found.start()]}{inner}{text[found.end() :]}"
    total = 0
    for sign, term in re.findall(r"(^|[+-])([^+-]*)", text):
        product = None
        for by, factor in re.findall(r"(^|[*/])([^*/]*)", term):
            if not re.fullmatch(r" *[0-9]{1,9} *", factor):
                return None
            number = int(factor)
            if by == "/" and (number == 0 or product % number):
                return None
            product = number if not by else product * number if by == "*" else product // number
        total += -product if sign == "-" else product
    return total


def _steps(answer: str) -> list[list[str]]:
    """The sides of every "=", sentence by sentence."""
    return [line.split("=") for line in re.split(r"\.(?: |$)", answer)]


def _steps_hold(answer: str, reference: str) -> bool:
    """Whether the steps are as many as in the reference and the sides of each are equal."""
    steps = _steps(answer)
    values = [
        [_value(side) if len(side) <= 99 else None for side in step]
        for step in steps
        if len(step) > 1
    ]
    return list(map(len, steps)) == list(map(len, _steps(reference))) and all(
        None not in step and len(set(step)) == 1 for step in values
    )


class Holes(Family, key="holes"):
    title = "gaps in a text"
    order = 10
    answer_length = 256
    gaps = True
    weight = 12

    def make(self, rng: random.Random) -> Problem:
        """Gaps in the answer part of "Q: ... A: ...", so that what is filled in can be judged.

        The problem is held out where the one that it shows is: else a model could have seen the
        answer to a problem of the test.
        """
        while True:
            of = rng.choices(list(SOURCES), list(SOURCES.values()))[0]
            shown = self.registry[of]().make(rng)
            for _ in range(40):
                problem = _hide(rng, f"Q: {shown.prompt}\nA:", f" {shown.answer}", of)
                if problem is None:
                    break
                if is_held_out(problem.prompt) == is_held_out(shown.prompt):
                    return problem

    def correct(self, problem: Problem, text: str) -> bool:
        """Whether a text keeps what is given and its length, answers what it asks, and its steps
        hold.

        Facts have one right text.
        """
        text, whole = text.strip(), problem.answer
        kept = [
            flag
            for part in split_gaps(problem.prompt)
            for flag in ([False] * part if isinstance(part, int) else [True] * _count(part))
        ]
        if _count(text) != len(kept):
            return False
        pairs = zip(re.findall(PIECES, text), re.findall(PIECES, whole), kept, strict=True)
        if any(piece != wanted for piece, wanted, given in pairs if given):
            return False
        own, asked = _cut(text), _cut(whole)
        if text == whole or own is None or asked is None or problem.of == "facts":
            return text == whole
        prompt, answer = asked
        own_answer, family = own[1], self.registry[problem.of]()
        return (
            own[0] == prompt
            and family.correct(Problem(problem.of, prompt, answer), own_answer)
            and (problem.of == "code" or _steps_hold(own_answer, answer))
        )
