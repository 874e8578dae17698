"""Prompts of the families, also those typed by hand, are told from all others."""

import random

import pytest

from analysis.page import lessons, problems, stored
from analysis.page.familiar import GAPS, UNLIKE, is_familiar, remark
from analysis.page.query import Link
from d2cache import bundled
from d2cache.teaching import tasks

OWN = (
    "Priya has 12 marbles. She buys 4 more marbles. How many marbles does Priya have now?",
    "Tom has 3 apples and buys 4 more. How many apples does Tom have?",
    "Sort these numbers from small to large: 5 2 9 1",
    "reverse this list: 1 2 3",
    "what is (2+3)*4?",
    "Write about how Lena, a brave baker in the valley, finds a ring.",
    "Tell a story about a kind dragon named Bob who finds a sword in the castle.",
)
FOREIGN = (
    "What is the capital of France?",
    "Hello",
    "Who are you?",
    "Translate this into German: Tom has 3 apples.",
    "What is the largest planet?",
    "Write a Python function that returns the sum of a list.",
    "Write a poem about the sea.",
    "def f(x): return x",
    "12345",
    "你好，今天天气怎么样？",
    "😀😀",
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in "
    "May. How many clips did Natalia sell altogether in April and May?",
)


@pytest.mark.parametrize("family", bundled.FAMILIES)
def test_held_out_problems_are_familiar(family):
    rng = random.Random(5)
    assert all(is_familiar(tasks.draw(family, rng, held_out=True).prompt) for _ in range(60))


@pytest.mark.parametrize("prompt", OWN)
def test_other_names_and_numbers_are_familiar(prompt):
    assert is_familiar(prompt)


@pytest.mark.parametrize("prompt", FOREIGN)
def test_other_questions_are_not(prompt):
    assert not is_familiar(prompt)


def test_a_prompt_with_gaps_is_said_to_be_a_text():
    text = "Tom has 5 apples. He buys ___ of 4 apples."
    assert remark(text, bundled_model=False) == GAPS
    assert remark(text, bundled_model=True).startswith(f"{GAPS} The bundled model")
    assert remark("for _x in y", bundled_model=False) == remark(OWN[0], bundled_model=True) == ""
    assert remark(FOREIGN[0], bundled_model=True) == UNLIKE


def page_prompts() -> set[str]:
    """Every prompt of the stored runs, the lessons and the guided comparisons."""
    queries = [one["query"] for one in lessons.presets()]
    cards = [card for lesson in lessons.lessons() for card in lesson["cards"]]
    queries += [value for card in cards for name, value in card["acts"] if name == "run"]
    asked = {Link.parse(query).settings["prompt"] for query in queries}
    return asked | {one["prompt"] for one in stored.listed().values()}


def test_the_pages_own_prompts_are_familiar_and_can_be_judged():
    prompts = page_prompts()
    assert len(prompts) > 8 and all(map(is_familiar, prompts))
    assert prompts <= problems.known().keys()
    for problem in problems.known().values():
        assert problem.family == "stories" or tasks.correct(problem, problem.answer)
