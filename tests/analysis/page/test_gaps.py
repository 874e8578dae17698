"""A prompt with gaps on the page: a text to fill, told to the stage with what was given."""

import numpy as np
import pytest

import d2cache
from analysis.page import export, notebook
from analysis.page.boards import Board, advance, describe_edit, summary
from analysis.page.events import trace_events
from analysis.page.query import Asked, Lane, Link

TEXT = "Tom has 5 apples. He buys ___ of 4 apples, or _ bag."


@pytest.fixture(scope="module")
def model():
    return d2cache.load("tiny", device="cpu")


@pytest.fixture(scope="module")
def told(model):
    """A finished board of two lanes, and its events."""
    asked = Asked(TEXT, (Lane("none"), Lane("d2")), gen_length=24)
    board = Board("b", Link.parse(asked.query()).over(asked))
    for lane in asked.lanes:
        board.start(lane, model)
    return board, [event for events in advance(board) for event in events]


def test_a_prompt_with_gaps_is_filled_and_nothing_is_appended(model, told):
    board, _ = told
    direct = d2cache.Trace.record(d2cache.fill(model, TEXT, "none"))
    for run in board.runs:
        trace = run.finished
        assert trace.run["given"] and not trace.run["stop_at_eos"]
        assert np.array_equal(trace.tokens[0], model.encode_gaps(TEXT).numpy())
    assert np.array_equal(board.runs[0].finished.tokens, direct.tokens)
    assert board.share() == 1.0
    row = summary(board.runs[1], board.runs[0])
    assert row["text"].startswith("Tom has 5 apples.") and row["text"].endswith(" bag.")
    same = board.runs[1].finished.answer == direct.answer
    assert row["agreement"] == same.mean() and row["answer_tokens"] == 4


def test_the_stage_is_told_what_was_given(told):
    board, events = told
    trace, start = board.runs[0].finished, next(e for e in events if e["k"] == "start")
    after = np.flatnonzero(~trace.filled) + trace.prompt_length
    assert [at for at, _ in start["given"]] == after.tolist()
    assert len(start["prompt"]) == trace.prompt_length
    assert "".join(text for _, text in start["given"]).startswith(" of 4 apples, or")
    totals = [e for e in events if e["k"] == "totals" and e["run"] == board.runs[0].key]
    assert [e["tokens"] for e in totals] == [1, 2, 3, 4]
    again = trace_events(trace, "x")
    assert again[0]["given"] == start["given"] and again[-1]["status"] == "done"
    assert [e["w"] for e in again if e["k"] == "rec"] == [
        e["w"] for e in events if e["k"] == "rec" and e["run"] == board.runs[0].key
    ]


def test_a_plain_run_says_nothing_of_it(model):
    steps = d2cache.generate(model, model.encode("Hello"), "none", gen_length=4)
    assert "given" not in trace_events(d2cache.Trace.record(steps), "x")[0]


def test_what_is_kept_of_a_fill_names_its_gaps(model, told):
    trace = told[0].runs[1].finished
    assert export.prompt_of(trace) == TEXT
    made = {}
    for prompt in (TEXT, None):
        exec(notebook.cell(trace, prompt, "tiny"), made)
        assert np.array_equal(made["trace"].tokens, trace.tokens)
    trace = d2cache.Trace.record(d2cache.fill(model, "Tom has 5 ___", "none"))
    exec(notebook.cell(trace, "Tom has 5 ___", "tiny"), made)
    assert np.array_equal(made["trace"].tokens, trace.tokens)
    words = describe_edit(d2cache.Edit(1, {12: 5}), model, told[0].asked)
    assert words.endswith("at position 13")
