"""Families of small problems, each with one canonical, step-by-step answer.

Every problem is drawn from a seeded ``random.Random``, so the same seed gives the same problems.
Prompts are split by a hash into a training part (15 of 16) and a held-out part (1 of 16); the two
can never share a prompt. The chat template shows a problem as ``"Q: " + prompt + "\\nA:"`` and the
answer follows as ``" " + answer``. A new file with a `Family` here is known to everything else.
"""

import random

from d2cache.registry import import_siblings
from d2cache.teaching.tasks.base import Board, Family, Problem, is_held_out
from d2cache.teaching.tasks.facts import draw_questions

import_siblings(__name__, __path__)

FAMILIES: dict[str, Family] = {
    cls.key: cls() for cls in sorted(Family.registry.values(), key=lambda cls: (cls.order, cls.key))
}
ANSWER_LENGTH: dict[str, int] = {key: family.answer_length for key, family in FAMILIES.items()}


def draw(family: str, rng: random.Random, *, held_out: bool) -> Problem:
    """A problem of a family from the test part or from the training part."""
    while True:
        problem = FAMILIES[family].make(rng)
        if is_held_out(problem.prompt) == held_out:
            return problem


def board(prompt: str) -> Board | None:
    """The grid that the answer to a prompt is, by the first family that knows it; else None."""
    found = (family.board(prompt) for family in FAMILIES.values())
    return next((one for one in found if one is not None), None)


def few_shot(examples: list[Problem], problem: Problem) -> str:
    """A prompt that shows solved examples before the problem's own question.

    The chat template adds the first "Q: " and the last "\\nA:".
    """
    shown = "".join(f"{example.prompt}\nA: {example.answer}\n\nQ: " for example in examples)
    return shown + problem.prompt


def correct(problem: Problem, text: str) -> bool:
    """Whether ``text`` answers the problem; any text is allowed and none is ever run.

    word and facts: what follows "The answer is"; arithmetic: the number after the last "=";
    code: the same syntax tree; lists: the same words; stories: derivable from the grammar;
    sudoku and sudoku4: the rules and the given cells; maze: a shortest path; countdown: steps that
    reach the target; holes: what the family of the text asks, with the given tokens kept.
    """
    return FAMILIES[problem.family].correct(problem, text)


__all__ = [
    "ANSWER_LENGTH",
    "FAMILIES",
    "Board",
    "Family",
    "Problem",
    "board",
    "correct",
    "draw",
    "draw_questions",
    "few_shot",
    "is_held_out",
]
