"""Countdown, gaps in a text and the grammar of stories: many texts are right, near ones wrong."""

import random
import re
from collections import Counter

import pytest

from d2cache.teaching import tasks
from d2cache.teaching.tasks import FAMILIES, Problem, is_held_out
from d2cache.teaching.tasks.holes import split_gaps
from d2cache.teaching.tasks.vocabulary import PIECES

ASKED = Problem("countdown", "Make 24 from 3, 8, 7 and 6.", "7 - 6 = 1. 8 * 3 = 24. 24 * 1 = 24")
# a text with one or two gaps for each family, what fills them rightly, and what does not
FILLED = (
    ("arithmetic", "2 + 3 * 4", "2 + __ = 14", ("12",), ("13",)),
    (
        "word",
        "Tom has 9 pens. He gives 4. How many?",
        "9 - 4 = _. The answer is 5.",
        ("5",),
        ("6",),
    ),
    ("countdown", "Make 9 from 2, 3 and 4.", "4 _ 3 = _. 7 + 2 = 9", ("+", "7"), ("-", "1")),
    ("lists", "Reverse this list: 1 2 3", "3 _ 1", ("2",), ("1",)),
    ("code", "Return x.", "def f(x):\n    return _", ("x",), ("y",)),
)


def draw(family: str, count: int, seed: int = 0) -> list[Problem]:
    rng = random.Random(seed)
    return [FAMILIES[family].make(rng) for _ in range(count)]


def numbers_of(prompt: str) -> tuple[int, list[int]]:
    """The target and the numbers, in ascending order."""
    found = list(map(int, re.findall("[0-9]+", prompt)))
    target = found.pop() if "get" in prompt else found.pop(0)
    return target, sorted(found)


@pytest.mark.parametrize(
    "text",
    [
        "7 - 6 = 1. 8 * 3 = 24. 24 * 1 = 24.",
        "8 * 3 = 24. 7 - 6 = 1. 24 / 1 = 24",
        "3 * 8 = 24. 7 - 6 = 1. 1 * 24 = 24",
    ],
)
def test_countdown_takes_any_right_steps(text):
    assert tasks.correct(ASKED, text)


@pytest.mark.parametrize(
    "text",
    [
        "8 * 3 = 24",  # not all numbers
        "8 * 3 = 24. 24 + 7 = 31. 31 - 7 = 24",  # one twice, one never
        "7 - 6 = 1. 8 * 3 = 24. 24 * 1 = 25",
        "7 - 6 = 2. 8 * 3 = 24. 24 * 1 = 24",
        "8 / 3 = 2. 7 + 6 = 13. 13 + 2 = 15",  # not exact
        "8 - 7 = 1. 6 - 3 = 3. 3 * 1 = 3",  # another target
        "7 - 6 = 1. 3 - 8 = 5. 24 * 1 = 24",
        "7 - 6 = 1. 8 * 3 = 24. 24 / 0 = 24",
        "24",
        "7 - 6 = 1. 8 * 3 = 24. 24 ** 1 = 24",
    ],
)
def test_countdown_refuses_wrong_steps(text):
    assert not tasks.correct(ASKED, text)


def test_countdown_steps_start_from_the_numbers_and_end_at_the_target():
    lengths = Counter()
    for problem in draw("countdown", 500):
        target, left = numbers_of(problem.prompt)
        steps = problem.answer.split(". ")
        for step in steps:
            one, sign, other, _, result = step.split()
            left.remove(int(one))
            left.remove(int(other))
            value = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}[sign]
            assert value(int(one), int(other)) == int(result) and 0 < int(result) <= 99
            left.append(int(result))
        assert left == [target] and 10 <= target <= 99
        assert not re.search(r"\* 1 =", problem.answer), "a step that changes nothing"
        lengths[len(steps)] += 1
    assert set(lengths) == {2, 3} and min(lengths.values()) > 50


def test_a_held_out_countdown_is_held_out_in_any_order_and_wording():
    drawn = draw("countdown", 4000)
    parts = {held: [p for p in drawn if is_held_out(p.prompt) == held] for held in (True, False)}
    asked = {held: {str(numbers_of(p.prompt)) for p in part} for held, part in parts.items()}
    assert len(parts[True]) > 80 and not asked[True] & asked[False]


def test_one_target_is_reached_in_different_ways():
    ways = Counter()
    for seed in range(40):
        for problem in draw("countdown", 60, seed):
            ways[str(numbers_of(problem.prompt)), problem.answer] += 1
    asked = Counter(asked for asked, _ in ways)
    assert max(asked.values()) >= 3


@pytest.fixture(scope="module")
def gapped() -> list[Problem]:
    return draw("holes", 400)


def count_pieces(text: str) -> int:
    return len(re.findall(PIECES, text))


def test_gaps_have_as_many_underscores_as_tokens_and_text_around_them(gapped):
    for problem in gapped:
        parts = split_gaps(problem.prompt)
        gaps = [part for part in parts if isinstance(part, int)]
        assert 1 <= len(gaps) <= 3 and all(1 <= gap <= 8 for gap in gaps)
        pieces = [part if isinstance(part, int) else count_pieces(part) for part in parts]
        assert sum(pieces) == count_pieces(problem.answer) < FAMILIES["holes"].answer_length
        assert isinstance(parts[0], str) and "\nA:" in parts[0], "gaps are in the answer"
        assert isinstance(parts[-1], str)
        between = [count_pieces(part) for part in parts[1:-1] if isinstance(part, str)]
        assert len(between) == len(gaps) - 1 and all(count >= 2 for count in between)
    assert len({problem.of for problem in gapped}) == 7


def test_gaps_are_held_out_where_their_text_is():
    for seed in range(4):
        rng = random.Random(seed)
        for held in (True, False):
            problem = tasks.draw("holes", rng, held_out=held)
            asked = re.match(r"Q: (.*?)\nA: ", problem.answer, re.DOTALL).group(1)
            assert is_held_out(asked) == held


def test_what_is_given_must_stay_and_what_is_filled_in_must_be_right(gapped):
    for problem in gapped[:100]:
        assert tasks.correct(problem, problem.answer) and tasks.correct(
            problem, f" {problem.answer}\n"
        )
        assert not tasks.correct(problem, problem.prompt)
        assert not tasks.correct(problem, problem.answer[1:])
        assert not tasks.correct(problem, problem.answer + ".")
        assert not tasks.correct(problem, problem.answer.replace("Q: ", "Q: A", 1))


@pytest.mark.parametrize(("of", "asked", "answer", "right", "wrong"), FILLED)
def test_a_wrong_step_in_a_gap_is_refused(of, asked, answer, right, wrong):
    def fill(words):
        text = answer
        for word in words:
            text = re.sub("_+", lambda _, word=word: word, text, count=1)
        return f"Q: {asked}\nA: {text}"

    problem = Problem("holes", f"Q: {asked}\nA: {answer}", fill(right), of)
    assert tasks.correct(problem, fill(right))
    assert not tasks.correct(problem, fill(wrong))
    for hostile in ("(" * 3000, "9" * 5000, "1/0", "\ud800", "1 = " * 900):
        assert not tasks.correct(problem, fill([hostile] * len(right)))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("3 + _ = 7", ["3 +", 1, " = 7"]),
        ("He buys ___ of 4.", ["He buys", 3, " of 4."]),
        ("f(_, __)", ["f(", 1, ",", 2, ")"]),
        ("take_part _x x_ 4_", ["take_part _x x_ 4_"]),
        ("no gap", ["no gap"]),
        ("_ a", [1, " a"]),
    ],
)
def test_a_gap_is_a_run_of_underscores_that_touches_no_letter_or_digit(text, parts):
    assert split_gaps(text) == parts


def test_the_words_of_all_families_fit_the_tokenizer():
    pieces = set()
    for family in FAMILIES:
        for problem in draw(family, 5 if family == "sudoku" else 300):
            pieces |= set(re.findall(PIECES, f"Q: {problem.prompt}\nA: {problem.answer}\n\n"))
    assert len(pieces) < 760


@pytest.mark.parametrize("family", ["sudoku", "sudoku4", "countdown", "maze", "holes"])
def test_answers_fit_their_canvas_with_their_end(family):
    for problem in draw(family, 5 if family == "sudoku" else 200):
        assert count_pieces(" " + problem.answer) + 1 <= tasks.ANSWER_LENGTH[family]


def test_every_family_has_a_title_of_its_own():
    titles = [family.title for family in FAMILIES.values()]
    assert len(set(titles)) == len(titles) and all(titles)
