"""Where an answer that is a grid lies on the canvas, as the start of a run says it."""

import random

import pytest

import d2cache
from analysis.page.events import LiveEvents, message, trace_events
from analysis.page.grids import grid
from d2cache.teaching import tasks
from d2cache.trace import Recorder


@pytest.fixture(scope="module")
def model():
    return d2cache.load("tiny", device="cpu")


def started(model, prompt: str, gen_length: int) -> list[dict]:
    """The start events of one run: told while it is made, and from its trace."""
    step = next(d2cache.generate(model, model.encode(prompt), "none", gen_length=gen_length))
    recorder = Recorder()
    recorder.add(step)
    told = [LiveEvents("key", step).start(), trace_events(recorder.trace(), "key")[0]]
    for one in told:
        message([one])  # it is JSON
    return told


@pytest.mark.parametrize(("family", "rows", "box"), [("sudoku", 9, 3), ("sudoku4", 4, 2)])
def test_the_start_of_a_puzzle_says_where_each_cell_is(model, family, rows, box):
    problem = tasks.draw(family, random.Random(3), held_out=True)
    cells = problem.prompt.split()[-1]
    for start in started(model, problem.prompt, rows * rows + 2):
        told = start["grid"]
        assert (told["rows"], told["columns"], told["box"]) == (rows, rows, [box, box])
        assert "".join(start["prompt"][p].strip() for p in told["given"]) == cells
        assert told["at"] == start["P"] and told["blank"] == "0"


def test_names_of_cells_travel_with_the_run(model):
    problem = tasks.draw("maze", random.Random(3), held_out=True)
    for start in started(model, problem.prompt, 49):
        assert start["grid"]["names"]["1"] == "wall" and start["grid"]["box"] == [0, 0]


def test_a_text_has_no_grid(model):
    for start in started(model, "Tom has 3 apples. How many apples does Tom have?", 8):
        assert "grid" not in start


def test_an_answer_too_short_for_the_grid_is_a_text(model):
    problem = tasks.draw("sudoku4", random.Random(3), held_out=True)
    assert all("grid" in start for start in started(model, problem.prompt, 16))
    assert all("grid" not in start for start in started(model, problem.prompt, 15))


CELLS = "1000002003000004"
PIECES = ["Q", ":", " Sudoku", ":", f" {CELLS[0]}", *CELLS[1:], "\n", "A", ":"]


def test_cells_are_found_by_the_tokens_one_a_cell():
    assert grid(PIECES, 16)["given"] == list(range(4, 20))
    assert grid([*PIECES[:-3], "\nA:"], 16)["given"] == list(range(4, 20))
    two = [*PIECES[:8], PIECES[8] + PIECES[9], *PIECES[10:]]
    assert grid(two, 16) is None, "a token of two cells"
    assert grid([*PIECES[:-3], PIECES[-4] + "\n", "A:"], 16) is None
    assert grid(PIECES[:-3], 16) is None, "no answer is asked for"


def test_the_last_question_counts_where_examples_are_shown():
    shown = [*"Q: 1+1?", "\nA:", " 2", "\n\nQ", ":", *PIECES[2:]]
    assert grid(shown, 16)["at"] == len(shown)
