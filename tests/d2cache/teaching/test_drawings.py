"""The same seed always draws the same problems: training and stored runs depend on it."""

import hashlib
import json
import random
from pathlib import Path

import pytest

from d2cache.teaching import tasks

STORED = json.loads(Path(__file__).with_name("drawings.json").read_text("utf-8"))


def lines(problems) -> str:
    """What identifies a list of problems, byte for byte."""
    text = "\n".join(f"{one.family}\t{one.prompt}\t{one.answer}" for one in problems)
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("held_out", [True, False], ids=["held out", "training"])
@pytest.mark.parametrize("family", STORED["draw"])
def test_a_seed_draws_the_problems_it_always_drew(family, held_out):
    stored = STORED["draw"][family]["held out" if held_out else "training"]
    rng = random.Random(20260922)
    first = tasks.draw(family, rng, held_out=held_out)
    assert [first.prompt, first.answer] == stored["first"]
    rest = [tasks.draw(family, rng, held_out=held_out) for _ in range(stored["count"] - 1)]
    assert lines([first, *rest]) == stored["sha256"]


def test_a_seed_draws_the_questions_it_always_drew():
    rng = random.Random(7)
    drawn = [tasks.draw_questions(rng, 3) for _ in range(STORED["questions"]["count"])]
    text = json.dumps(drawn)
    assert hashlib.sha256(text.encode()).hexdigest() == STORED["questions"]["sha256"]
