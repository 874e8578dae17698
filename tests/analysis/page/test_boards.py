"""Boards of lanes: every lane is the engine's own run, whoever takes turns with it."""

from concurrent.futures import ThreadPoolExecutor
from threading import get_ident

import numpy as np
import pytest

import d2cache
from analysis.page.boards import Board, Boards, advance, describe_edit
from analysis.page.models import ENGINE
from analysis.page.query import MOST_LANES, Asked, Lane
from d2cache.teaching import tasks

PROMPT = tasks.draw("word", tasks.random.Random(129), held_out=True).prompt


@pytest.fixture(scope="module")
def model():
    return d2cache.load("tiny", device="cpu")


def board_of(model, *lanes: str, **more) -> Board:
    asked = Asked(PROMPT, tuple(map(Lane.parse, lanes)), gen_length=24, **more)
    board = Board("b", asked)
    for lane in asked.lanes:
        board.start(lane, model)
    return board


def told(board, most=None) -> list[dict]:
    return [event for events in advance(board, most) for event in events]


def steps_of(events, run) -> list[int]:
    return [e["s"] for e in events if e["k"] == "rec" and e["run"] == run.key]


def alone(model, lane: str, **more) -> np.ndarray:
    one = Lane.parse(lane)
    steps = d2cache.generate(
        model,
        model.encode(PROMPT),
        one.make_policy(),
        one.make_decoder(),
        gen_length=24,
        stop_at_eos=True,
        edits=one.edits,
        **more,
    )
    return d2cache.Trace.record(steps).tokens


LANES = ("none", "d2,current_k=4/confidence,sigma=0", "dllm/random")


@pytest.mark.parametrize("turns", [True, False])
def test_each_lane_is_the_engines_run_whoever_takes_turns_with_it(model, turns):
    board = board_of(model, *LANES, turns=turns, seed=5)
    events = told(board)
    for lane, run in zip(LANES, board.runs, strict=True):
        np.testing.assert_array_equal(run.trace.tokens, alone(model, lane, seed=5))
        assert steps_of(events, run) == list(range(len(run.trace.seconds)))
    order = [e["run"] for e in events if e["k"] == "rec"]
    keys = [run.key for run in board.runs]
    if turns:
        assert order[:6] == keys * 2
    else:  # no lane comes back once another has begun
        assert order == sorted(order, key=keys.index)
    starts = [e for e in events if e["k"] == "start"]
    assert [(e["lane"], e["board"]) for e in starts] == [(0, "b"), (1, "b"), (2, "b")]
    assert [e["status"] for e in events if e["k"] == "end"] == ["done"] * 3


def test_a_step_is_one_of_every_lane_and_the_board_waits_after_it(model):
    board = board_of(model, "none", "d2")
    assert sorted(e["k"] for e in told(board, most=1)).count("rec") == 2
    assert board.paused and board.running
    told(board, most=2)
    assert [len(run.recorder.columns["seconds"]) for run in board.runs] == [3, 3]
    told(board)
    assert not board.running


def test_a_stopped_board_keeps_what_each_lane_made(model):
    board = board_of(model, "none", "d2")
    told(board, most=3)
    board.stopped = True
    ends = [e for e in told(board) if e["k"] == "end"]
    assert [e["status"] for e in ends] == ["stopped", "stopped"]
    assert [len(run.trace.seconds) for run in board.runs] == [3, 3] and not board.running


def test_a_fault_in_one_lane_leaves_the_others(model, monkeypatch):
    board = board_of(model, "none", "d2")
    told(board, most=2)
    broken = board.runs[0]

    def fails():
        raise RuntimeError("out of memory\nand more")
        yield

    broken.steps = fails()
    events = told(board)
    assert broken.error == "out of memory" and len(broken.trace.seconds) == 2
    assert [e["status"] for e in events if e["k"] == "end" and e["run"] == broken.key] == ["failed"]
    np.testing.assert_array_equal(board.runs[1].trace.tokens, alone(model, "d2"))


def test_a_lane_can_join_a_finished_board(model):
    board = board_of(model, "none")
    told(board)
    run = board.start(Lane("d2"), model)
    events = told(board)
    assert {e["run"] for e in events} == {run.key} and events[0]["lane"] == 1
    assert board.query().count("lane=") == 2
    for _ in range(MOST_LANES - 2):
        board.start(Lane("d2"), model)
    with pytest.raises(ValueError, match="no more fit"):
        board.start(Lane("d2"), model)


def test_a_what_if_is_its_parent_up_to_the_edit(model):
    board = board_of(model, "d2")
    told(board)
    parent = board.runs[0].trace
    p = parent.prompt_length
    other = model.encode("x")[-1].item()
    edit = d2cache.Edit(step=3, tokens={p + 20: other})
    run = board.start(Lane("d2", edits=(edit,)), model, {"lane": 0, "step": 3, "says": str(edit)})
    start = told(board)[0]
    assert start["branch"] == {"lane": 0, "step": 3, "says": str(edit)}
    np.testing.assert_array_equal(run.trace.tokens[:4], parent.tokens[:4])
    assert run.trace.tokens[4, p + 20] == other != parent.tokens[4, p + 20]
    np.testing.assert_array_equal(run.trace.tokens, alone(model, str(Lane("d2", edits=(edit,)))))


def test_truth_is_told_beside_each_step_and_changes_no_run(model):
    board = board_of(model, "none", "d2", truth=True)
    events = told(board)
    for run, lane in zip(board.runs, ("none", "d2"), strict=True):
        seen = [e["s"] for e in events if e["k"] == "truth" and e["run"] == run.key]
        assert seen == steps_of(events, run)
        np.testing.assert_array_equal(run.trace.tokens, alone(model, lane))
    again = board.events()
    assert [e for e in again if e["k"] == "truth"] == [
        e for run in board.runs for e in events if e["k"] == "truth" and e["run"] == run.key
    ]


def test_what_is_exported_is_what_was_told_live(model):
    board = board_of(model, "none", "dllm")
    events = told(board)
    for run in board.runs:
        live_ones, kept = (
            [e for e in some if e["k"] == "rec" and e["run"] == run.key]
            for some in (events, board.events())
        )
        drop = ("w",)  # a trace keeps the candidates of the last write of a position alone
        assert [{k: v for k, v in e.items() if k not in drop} for e in live_ones] == [
            {k: v for k, v in e.items() if k not in drop} for e in kept
        ]


def test_boards_are_kept_by_session_and_found_by_a_runs_key(model):
    boards = Boards()
    first = boards.put("s", board_of(model, "none", "d2"))
    assert boards.of("s") is first and boards.holding(first.runs[1].key) == (first, first.runs[1])
    second = boards.put("s", board_of(model, "none"))
    assert boards.of("s") is second and first.stopped and not first.running
    with pytest.raises(ValueError, match="no longer kept"):
        boards.holding(first.runs[0].key)
    boards.drop("s")
    assert boards.of("s") is None and second.stopped


def test_only_so_many_idle_boards_are_kept_and_none_that_runs_is_dropped(model, monkeypatch):
    monkeypatch.setattr("analysis.page.boards.KEPT_BOARDS", 2)
    boards = Boards()
    running = boards.put("0", board_of(model, "none"))
    for i in range(1, 4):
        board = boards.put(str(i), board_of(model, "none"))
        told(board)
    assert boards.of("0") is running and boards.of("1") is None and boards.of("3") is not None


def test_an_edit_is_told_in_words(model):
    asked = Asked(PROMPT, (Lane(),))
    p = len(model.encode(PROMPT))
    seven = model.tokenizer.encode("7", add_special_tokens=False)[0]
    edit = d2cache.Edit(
        3, {p + 4: seven, p: model.config.mask_id, 2: seven}, (p + 1,), {"current_k": 8}
    )
    assert describe_edit(edit, model, asked) == (
        "'7' at answer position 5, answer position 1 masked again, '7' at prompt position 3, "
        "answer position 2 refreshed, current_k 8"
    )
    assert describe_edit(d2cache.Edit(3, refresh="all"), model, asked) == "all refreshed"


def test_one_thread_computes_whoever_asks_and_a_fault_comes_back():
    with ThreadPoolExecutor(4) as askers:
        seen = {one.result() for one in [askers.submit(ENGINE, get_ident) for _ in range(8)]}
    assert len(seen) == 1 and get_ident() not in seen
    with pytest.raises(ZeroDivisionError):
        ENGINE(lambda: 1 / 0)


def test_how_much_of_a_board_has_been_made_is_known(model):
    board = board_of(model, "none", "d2")
    assert board.share() == 0
    told(board, most=6)
    written = sum(
        (run.snapshot().tokens[-1] != model.config.mask_id)[-24:].sum() for run in board.runs
    )
    assert 0 < board.share() == written / 48 < 1
    told(board)
    assert board.share() == 1
