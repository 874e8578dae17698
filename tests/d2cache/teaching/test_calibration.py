"""Calibration: what is judged, and the error that follows from it."""

import numpy as np
import pytest

import d2cache
from d2cache.teaching import calibration as module
from d2cache.teaching import tasks
from d2cache.teaching.calibration import Calibration, calibration
from d2cache.teaching.exam import held_out


@pytest.fixture(scope="module")
def model():
    return d2cache.load("tiny", device="cpu")


def test_the_error_is_the_gap_between_confidence_and_share_right():
    sure = np.array([0.95] * 10 + [0.35] * 10)
    right = np.array([True] * 9 + [False] + [True] * 5 + [False] * 5)
    assert Calibration(sure, right).error == pytest.approx(0.5 * 0.05 + 0.5 * 0.15)
    assert Calibration(np.array([1.0]), np.array([True])).error == 0


def test_confidence_that_is_right_as_often_as_it_says_has_no_error():
    rng = np.random.default_rng(0)
    sure = rng.random(200_000)
    assert Calibration(sure, rng.random(200_000) < sure).error < 0.01
    assert Calibration(sure, rng.random(200_000) < sure**2).error > 0.1


def test_saturated_is_the_share_next_to_one():
    sure = np.array([1.0, 1 - 1e-7, 1 - 1e-5, 0.5])
    assert Calibration(sure, sure > 0).saturated == 0.5


def test_every_token_of_the_reference_is_judged_once_in_a_batch_as_alone(model):
    problems = held_out("lists", 5, 4)
    sizes = [len(module._plain(model, f" {one.answer}")) + 1 for one in problems]
    together, alone = (calibration(model, "lists", 5, 4, batch) for batch in (5, 1))
    assert len(together.right) == sum(sizes)  # with the end of each
    np.testing.assert_allclose(
        np.sort(together.confidence), np.sort(alone.confidence), rtol=0, atol=1e-4
    )


def test_a_wrong_token_is_counted_and_the_reference_written(model, monkeypatch):
    problem = held_out("lists", 1, 4)[0]
    other = tasks.Problem(
        "lists", problem.prompt, problem.answer.translate({48 + i: 57 - i for i in range(10)})
    )
    monkeypatch.setattr(module, "held_out", lambda *_: [other])
    texts, generate = [], module.generate

    def watched(*args, **settings):
        for step in generate(*args, **settings):
            yield step
            texts.append(
                model.decode(
                    step.after.tokens[0, -len(module._plain(model, f" {other.answer}")) - 8 :]
                )
            )

    monkeypatch.setattr(module, "generate", watched)
    found = calibration(model, "lists", 1, 4)
    assert not found.right.all() and texts[-1].strip() == other.answer


def test_gaps_are_judged_where_they_are(model):
    found = calibration(model, "holes", 3, 2)
    gaps = sum(
        part
        for one in held_out("holes", 3, 2)
        for part in tasks.holes.split_gaps(one.prompt)
        if isinstance(part, int)
    )
    assert len(found.right) == gaps
