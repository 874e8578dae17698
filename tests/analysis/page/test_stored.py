"""The stored lanes: there for all lessons and presets, and what a run now gives."""

from dataclasses import replace

import numpy as np
import pytest

import d2cache
from analysis.page import stored
from analysis.page.boards import Board
from analysis.page.host import Host
from analysis.page.query import Asked, Lane, Link
from analysis.tools import stored_runs


@pytest.fixture(scope="module")
def host():
    return Host({"tiny": "tiny"})


@pytest.fixture(scope="module")
def model():
    return d2cache.load("tiny", device="cpu")


def asked_by(query: str) -> Asked:
    return Asked(**Link.parse(query).settings)


def test_every_lane_of_lessons_presets_and_opening_is_stored_and_small():
    assert stored_runs.faults() == []
    for query in stored_runs.queries():
        asked = asked_by(query)
        found = stored.lanes(asked)
        assert found is not None, query
        for lane, (_, trace, looks) in zip(asked.lanes, found, strict=True):
            alone = replace(asked, lanes=(lane,), truth=False, turns=True)
            assert Asked.of(trace.run, asked.prompt, "tiny") == alone
            assert len(looks) == (len(trace.seconds) if asked.truth else 0)


def test_a_stored_lane_has_the_tokens_and_the_exact_passes_of_a_run_now(model):
    watched = [one for one in stored_runs.wanted().items() if one[1].truth]
    (quick,) = [one for one in watched if one[1].lanes[0].policy == "prefix"]
    name, asked = quick
    trace, looks = stored_runs.record_lane(asked, model)
    kept = stored.lane(name)
    assert (kept.tokens == trace.tokens).all() and (kept.why == trace.why).all()
    for now, then in zip(looks, stored.looks(name), strict=True):
        assert (now.step, now.oracle, now.recall) == (then.step, then.oracle, then.recall)
        assert now.flips == then.flips
        np.testing.assert_allclose(now.k_drift, then.k_drift, atol=1e-5)
    assert stored_runs.differs(name, asked, model) == ""
    other = replace(asked, gen_length=8)
    assert "other" in stored_runs.differs(name, other, model)


def test_faults_of_the_files_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "LANES", tmp_path / "none yet")
    names = list(stored_runs.wanted())
    assert f"{names[0]}.safetensors is missing" in stored_runs.faults()
    monkeypatch.setattr(stored, "LANES", tmp_path)
    (tmp_path / "old.safetensors").write_bytes(b"")
    (tmp_path / f"{names[0]}.safetensors").write_bytes(bytes(stored_runs.LARGEST + 1))
    found = stored_runs.faults()
    assert "old.safetensors is wanted by nobody: delete it" in found
    assert f"{names[0]}.safetensors has more than 200000 bytes" in found


def test_numbers_in_fewer_bytes_are_the_same_numbers():
    for array, kind in (
        (np.array([0, 255]), np.uint8),
        (np.array([-1, 3]), np.int32),
        (np.array([1 << 40]), np.int64),
        (np.array([np.nan, 0.5, -np.inf], np.float32), np.float16),
        (np.array([0.1], np.float32), np.float32),
        (np.array([1e9], np.float32), np.float32),
    ):
        small = stored_runs.narrowed(array)
        assert small.dtype == kind and np.array_equal(small, array, equal_nan=True)


def test_fewer_guesses_are_the_likeliest_of_each_prediction(model):
    (lane,) = asked_by("prompt=2 %2B 3?&gen=8&lane=none").lanes
    steps = d2cache.generate(model, model.encode("2 + 3?"), lane.make_policy(), gen_length=8)
    trace = d2cache.Trace.record(steps)
    fewer = stored_runs.with_guesses(trace, 2)
    assert trace.guess_count.max() > 2 == fewer.guess_count.max()
    for step in range(len(trace.seconds)):
        for position, (ids, shares) in trace.guesses(step).items():
            kept = fewer.guesses(step)[position]
            assert kept[0].tolist() == ids[:2].tolist() and (kept[1] == shares[:2]).all()


def test_only_exactly_what_was_asked_is_taken_from_the_files(host):
    asked = asked_by(stored.OPENING)
    assert host.stored_lanes(asked) is not None
    for changed in (
        {"seed": 1},
        {"gen_length": 63},
        {"block_length": 16},
        {"full": True},
        {"truth": True},  # what exact passes saw of these is not stored
        {"model": "another"},
        {"prompt": asked.prompt[:-1]},
        {"lanes": (*asked.lanes, Lane("d2", {"current_k": 31}))},
        {"lanes": (Lane("none", decoder="threshold"),)},
    ):
        assert host.stored_lanes(replace(asked, **changed)) is None, changed
    assert host.stored_lanes(replace(asked, turns=False)) is not None
    assert Host({"tiny": "a/folder/tiny"}).stored_lanes(asked) is None
    assert Host({"another": "another"}).stored_lanes(asked) is not None


def test_a_stored_board_is_as_a_live_one_that_has_ended(host, model):
    asked = asked_by(stored.OPENING)
    board, again = host.stored_lanes(asked), host.stored_lanes(asked)
    live = Board("live", asked)
    for lane in asked.lanes:
        live.start(lane, model)
    assert [run.name for run in board.runs] == [run.name for run in live.runs]
    assert board.query() == live.query() and not board.running
    assert not {run.key for run in board.runs} & {run.key for run in again.runs}
    starts = [e for e in board.events() if e["k"] == "start"]
    assert [(e["board"], e["lane"], e["name"]) for e in starts] == [
        (board.key, 0, "none"),
        (board.key, 1, "d2"),
    ]
    assert all(e["stored"] for e in starts)


def test_the_opening_is_one_board_for_everybody(host):
    board = host.opening()
    assert host.opening() is board and board in host.boards.stored
    assert host.boards.holding(board.runs[1].key) == (board, board.runs[1])
    assert [run.lane.policy for run in board.runs] == ["none", "d2"]
