"""A visitor's session without a page: what it is told, and the changes that it yields."""

import json
import pickle

import pytest

import d2cache
from analysis.page import controls
from analysis.page.controls import asked_of, values_of
from analysis.page.host import Host
from analysis.page.query import Asked, Lane
from analysis.page.session import Session, Sessions, first_problem
from d2cache import CachePolicy, Decoder, Edit

SUM = "Tom has 3 apples and buys 4 more. How many apples does Tom have?"


@pytest.fixture(scope="module")
def host():
    return Host({"tiny": "tiny"})


@pytest.fixture
def session(host):
    sessions = Sessions(host)
    yield sessions.of("visitor")
    sessions.leave("visitor")


def usual(**changed) -> dict:
    """The values of all controls as the page has them at first, but for these."""
    every = [
        *controls.problem_controls({"tiny": "tiny"}, SUM),
        *controls.comparison_controls({}),
        *controls.canvas_controls(),
        controls.method_control("policy", "", "d2"),
        controls.method_control("decoder", "", "confidence"),
    ]
    for kind, base in (("policy", CachePolicy), ("decoder", Decoder)):
        for owner in (None, *base.registry):
            every += controls.knob_controls(kind, owner)
    return {one.name: one.value for one in every} | {"gen_length": 16} | changed


def events(changes: list[dict]) -> list[dict]:
    """What the stage was sent."""
    return [e for one in changes if "board" in one for e in json.loads(one["board"])["events"]]


def said(changes: list[dict]) -> tuple[str, str]:
    return [one["said"] for one in changes if "said" in one][-1]


def test_the_controls_and_what_they_ask_for_are_one_thing_in_two_forms():
    edited = usual(policy="dllm", decoder="eb", seed=7, to_the_end=False, truth=True)
    edited |= {"policy.dllm.kp": 9, "decoder.eb.gamma": 0.5, "decoder.all.sigma": 3}
    asked = asked_of(edited)
    assert asked.full and asked.truth and asked.seed == 7
    assert asked.lanes[0].knobs["kp"] == 9
    assert asked.lanes[0].decoder_knobs["gamma"] == 0.5
    assert asked.lanes[0].decoder_knobs["sigma"] == 3
    assert asked_of(usual() | values_of(asked)) == asked


def test_several_policies_get_a_lane_each_with_its_own_knobs():
    values = usual(lanes=["none", "window", "d2"]) | {"policy.window.before": 4}
    lanes = asked_of(values, compared=True).lanes
    assert [lane.policy for lane in lanes] == ["none", "window", "d2"]
    assert lanes[1].knobs["before"] == 4
    with pytest.raises(ValueError, match="choose at least one policy"):
        asked_of(usual(lanes=[]), compared=True)


def test_every_policy_and_decoder_can_be_asked_for():
    for name in CachePolicy.registry:
        assert asked_of(usual(policy=name)).lanes[0] == Lane(name)
    for name in Decoder.registry:
        values = usual(decoder=name) | controls.shared_defaults("decoder")[name]
        assert asked_of(values).lanes[0] == Lane("d2", decoder=name)


def test_a_run_ends_with_its_verdict_and_a_file_and_is_what_the_engine_makes(session):
    prompt = first_problem().prompt
    changes = list(session.run(usual(prompt=prompt, gen_length=64)))
    assert said(changes) == ("Done, and the answer is right.", "right")
    saved = d2cache.Trace.load(changes[-1]["download"])
    model = d2cache.load("tiny")
    steps = d2cache.generate(model, model.encode(prompt), gen_length=64, stop_at_eos=True)
    assert (saved.tokens == d2cache.Trace.record(steps).tokens).all()
    kinds = [e["k"] for e in events(changes)]
    assert kinds[:2] == ["link", "start"] and kinds[-1] == "end"
    assert kinds.count("rec") == len(saved.seconds)


def test_what_crosses_the_border_is_plain(session):
    given = usual()
    out = [*session.step(given), *session.resume(), *session.add_lane(given)]
    out += [*session.compare(usual(lanes=["none", "d2"])), *session.stop()]
    out += [*session.open_stored("d2-word"), *session.draw("lists"), *session.run(usual(prompt=""))]
    query = asked_of(given).query()
    out += [
        *session.fill(query, given),
        *session.follow(query, given),
        *session.choose_preset(None),
    ]
    out += session.choose_policy("dual", 0)
    kinds = (str, int, float, bool, type(None))
    for one in (given, *out):
        assert pickle.loads(pickle.dumps(one)) == one
        for name, value in one.items():
            parts = value if isinstance(value, (tuple, list)) else [value]
            assert isinstance(name, str) and all(isinstance(part, kinds) for part in parts), one


def test_a_run_steps_waits_and_goes_on(session):
    given = usual()
    for count in (1, 2, 3):
        changes = list(session.step(given))
        assert said(changes) == ("Paused. Step, or Resume.", "info")
        assert (changes[-1]["pause"], changes[-1]["resume"]) == (False, True)
        assert len(session.board.runs[0].snapshot().seconds) == count
    board = session.board
    assert "Done" in said(list(session.resume()))[0] and session.board is board
    assert list(session.resume()) == []  # nothing is left to go on with


def test_a_step_with_other_settings_begins_a_new_run(session):
    list(session.step(usual()))
    first = session.board
    list(session.step(usual(seed=1)))
    assert session.board is not first and first.stopped


def test_a_pause_takes_effect_after_the_step_and_stop_keeps_what_was_made(session):
    changes = session.run(usual(gen_length=64))
    out = [next(changes), next(changes)]
    session.pause()
    out += changes
    assert said(out)[0].startswith("Paused") and session.board.running
    stopped = list(session.stop())
    assert said(stopped) == ("Stopped.", "info") and events(stopped)[-1]["status"] == "stopped"
    trace = d2cache.Trace.load(stopped[-1]["download"])
    assert 1 <= len(trace.seconds) < 64
    assert list(session.stop()) == []  # the verdict stays


def test_another_lane_joins_only_where_prompt_and_canvas_are_the_same(session):
    list(session.run(usual()))
    list(session.add_lane(usual(policy="none")))
    assert [run.name for run in session.board.runs] == ["d2", "none"]
    refused = list(session.add_lane(usual(seed=3)))
    assert refused[0]["said"][1] == "error" and "press Run to start again" in said(refused)[0]
    assert len(session.board.runs) == 2


def test_faults_are_one_sentence_and_leave_the_board(session):
    list(session.run(usual()))
    board = session.board
    for changes in (
        session.run(usual(prompt=" ")),
        session.run(usual() | {"policy.d2.current_k": 10**6}),
        session.compare(usual(lanes=[])),
        session.follow("lane=nothing", usual()),
        session.follow("full=2", usual()),
        session.follow("trace=nothing", usual()),
        session.follow("branch=nothing~3,refresh=all", usual()),
        session.upload(__file__),
        session.choose_model("nothing"),
    ):
        (only,) = changes
        text, kind = only["said"]
        assert kind == "error" and "\n" not in text and text[0].isupper() and text.endswith(".")
    assert session.board is board


def test_a_link_fills_the_controls_and_runs(session, host):
    query = Asked(SUM, (Lane("dual"), Lane("none")), gen_length=16, block_length=8, seed=4).query()
    (filled,) = session.fill(query, usual())
    assert (filled["policy"], filled["block_length"], filled["seed"]) == ("dual", 8, 4)
    assert filled["preset"] is None
    list(session.follow(query, usual()))
    assert [run.name for run in session.board.runs] == ["dual", "none"]
    preset = next(iter(host.presets.values()))
    (filled,) = session.fill(preset["query"], usual())
    assert filled["preset"] == preset["key"]
    assert list(session.fill("tab=cache", usual())) == []
    assert list(session.follow("tab=cache", usual())) == []


def test_a_what_if_leaves_its_parent_at_the_step(session):
    list(session.run(usual()))
    parent = session.board.runs[0]
    changes = list(session.follow(f"branch={parent.key}~{Edit(3, refresh='all')}", usual()))
    assert changes[0]["said"][0] == "Lane 2 continues from step 4: see Compare."
    start = next(e for e in events(changes) if e["k"] == "start")
    assert (start["branch"]["lane"], start["branch"]["step"]) == (0, 3)


def test_only_the_owner_of_a_run_can_branch_off_it(session, host):
    list(session.run(usual()))
    other = Session(host, "other")
    (only,) = other.follow(f"branch={session.board.runs[0].key}~3,refresh=all", usual())
    assert only["said"][1] == "error" and len(session.board.runs) == 1


def test_of_two_requests_that_overtake_each_other_the_later_counts(session):
    session.expect(2)
    session.expect(1)
    query = Asked(SUM, (Lane("none"),), gen_length=16).query()
    assert list(session.follow(query, usual(), 1)) == [] and session.board is None
    assert list(session.fill(query, usual(), 1)) == []
    list(session.follow(query, usual(), 2))
    assert session.board.runs[0].trace


def test_a_new_request_pauses_what_runs(session):
    changes = session.run(usual(gen_length=64))
    next(changes), next(changes)
    session.expect(1)
    list(changes)
    assert session.board.paused and session.board.running


def test_a_drawn_problem_is_judged_for_the_one_who_drew_it(session, host):
    (drawn,) = session.draw("arithmetic")
    asked = usual(**drawn)
    assert said(list(session.run(asked)))[1] in ("right", "wrong")
    other = Sessions(host).of("other")
    assert said(list(other.run(asked)))[0].startswith("Done. Scrub")
    host.boards.drop("other")


def test_an_abandoned_run_is_dropped(session, host):
    changes = session.run(usual(gen_length=64))
    next(changes), next(changes)
    changes.close()
    assert host.boards.of("visitor") is None


def test_a_visitor_who_leaves_takes_board_and_session_along(host):
    sessions = Sessions(host)
    one = sessions.of("guest")
    assert sessions.of("guest") is one
    list(one.step(usual()))
    sessions.leave("guest")
    assert host.boards.of("guest") is None and sessions.of("guest") is not one


def test_a_stored_run_sets_the_controls_that_would_make_it_again(session):
    filled, shown = session.open_stored("dllm-facts")
    assert filled["policy"] == "dllm" and shown["said"][0].startswith("A stored run.")
    trace = d2cache.Trace.load(shown["download"])
    asked = asked_of(usual() | {k: v for k, v in filled.items() if k != "preset"})
    assert asked.lanes[0] == Lane.of(trace.run)
    assert list(session.open_stored(None)) == []
