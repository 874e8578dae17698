"""A visitor's session without a page: what it is told, and the changes that it yields."""

import json
import pickle
import threading

import pytest

import d2cache
from analysis.page import controls, stored
from analysis.page.controls import asked_of, values_of
from analysis.page.host import Host
from analysis.page.query import Asked, Lane, Link, name_lanes
from analysis.page.session import Session, Sessions, first_problem
from analysis.tools import stored_runs
from d2cache import CachePolicy, Decoder, Edit

SUM = "Tom has 3 apples and buys 4 more. How many apples does Tom have?"
PAUSED = ("Paused. Play goes on; the arrow makes one step.", "info")


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
        assert said(changes) == PAUSED and session.board.running
        assert events(changes)[-1]["k"] == "pause"
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


def test_what_is_stored_is_shown_at_once_with_its_controls_and_without_a_model():
    here = Host({"never/there": "never/there"})
    session = Sessions(here).of("pupil")
    truth = next(query for query in stored_runs.queries() if "truth=1" in query)
    for query in (truth, here.presets["prefix-stale"]["query"], f"{stored.OPENING}&turns=0"):
        (filled,), (shown,) = session.fill(query, usual()), session.follow(query, usual())
        asked = Asked(**Link.parse(query).settings)
        assert asked_of(usual() | filled).lanes == asked.lanes[:1] and "model" not in filled
        assert not here.models.state and "Press Run for a live one." in shown["said"][0]
        told = events([shown])
        assert told[0] == {"k": "link", "board": session.board.key, "query": asked.query()}
        assert [e["name"] for e in told if e["k"] == "start"] == name_lanes(asked.lanes)
        ends = [e["status"] for e in told if e["k"] == "end"]
        assert ends == ["done"] * len(asked.lanes)
        seen = {e["run"] for e in told if e["k"] == "truth"}
        assert len(seen) == (len(asked.lanes) if asked.truth else 0)
    assert d2cache.Trace.load(shown["download"]).run["policy"] == "none"


def test_a_setting_changed_or_run_pressed_makes_a_live_run(session):
    (shown,) = session.follow(stored.OPENING, usual())
    board = session.board
    list(session.follow(f"{stored.OPENING}&gen=8", usual()))
    assert session.board is not board and session.board.runs[0].model is not None
    list(session.run(usual(prompt=first_problem().prompt)))
    assert not events(list(session.step(usual())))[1]["stored"]


def test_a_what_if_and_another_lane_on_stored_runs_are_live(session):
    list(session.follow(stored.OPENING, usual()))
    parent = session.board.runs[1]
    changes = list(session.follow(f"branch={parent.key}~{Edit(3, refresh='all')}", usual()))
    start = next(e for e in events(changes) if e["k"] == "start")
    assert not start["stored"] and (start["lane"], start["branch"]["lane"]) == (2, 1)
    assert said(changes)[0].startswith("Done. none: ")
    list(session.add_lane(usual() | values_of(session.board.wanted) | {"policy": "dual"}))
    assert [run.lane.policy for run in session.board.runs] == ["none", "d2", "d2", "dual"]


def test_the_opening_becomes_the_visitors_own_when_they_add_to_it(session, host):
    shared = host.opening()
    edit = f"branch={shared.runs[1].key}~{Edit(3, refresh='all')}"
    changes = list(session.follow(edit, usual()))
    own = session.board
    renamed, start = (next(e for e in events(changes) if e["k"] == k) for k in ("keys", "start"))
    assert len(own.runs) == 3 and len(shared.runs) == 2 and shared is host.opening()
    assert (renamed["board"], renamed["to"]) == (shared.key, own.key) and start["board"] == own.key
    called = {old.key: new.key for old, new in zip(shared.runs, own.runs[:2], strict=True)}
    assert renamed["runs"] == called
    other = Sessions(host).of("other")
    opening = asked_of(usual() | values_of(shared.wanted))
    added = list(other.add_lane(usual() | values_of(opening) | {"policy": "dual"}))
    assert [e["lane"] for e in events(added) if e["k"] == "start"] == [2]
    list(other.run(usual()))
    (only,) = other.follow(edit, usual())  # the opening is no longer on the stage
    assert only["said"][1] == "error"
    host.boards.drop("other")


def test_a_run_that_stored_ones_take_the_place_of_sends_nothing_more(session):
    changes = session.run(usual(gen_length=64))
    next(changes), next(changes)
    list(session.follow(stored.OPENING, usual()))
    assert list(changes) == [] and len(session.board.runs) == 2


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


@pytest.fixture
def one_at_a_time(host, monkeypatch):
    monkeypatch.setattr(host.line, "together", 1)


def test_runs_that_share_the_engine_are_what_they_are_alone(host):
    sessions, ended = Sessions(host), {}
    alone = list(sessions.of("alone").run(usual(gen_length=24)))

    def visit(name):
        ended[name] = list(sessions.of(name).run(usual(gen_length=24)))

    threads = [threading.Thread(target=visit, args=(name,)) for name in "abc"]
    for one in threads:
        one.start()
    for one in threads:
        one.join(60)
    assert set(ended) == set("abc") and host.line.places == []

    def written(changes) -> list:
        return [e["w"] for e in events(changes) if e["k"] == "rec"]

    assert all(written(changes) == written(alone) for changes in ended.values())
    for name in ("alone", *"abc"):
        sessions.leave(name)


def test_who_waits_is_told_their_place_and_served_in_turn(host, one_at_a_time):
    sessions = Sessions(host)
    one, two = sessions.of("one"), sessions.of("two")
    first = one.run(usual(gen_length=64))
    next(first), next(first)  # it has the engine
    second = two.run(usual())
    waits = next(second)
    assert waits["said"][0].startswith("Waiting: 1 run is ahead of yours")
    told = [e for e in events([waits]) if e["k"] == "wait"]
    assert [e["says"] for e in told] == [waits["said"][0]]
    list(first)
    out = list(second)
    assert events(out)[0] == {"k": "wait", "says": ""} and said(out)[0].startswith("Done")
    assert host.line.places == []
    for name in ("one", "two"):
        sessions.leave(name)


def test_a_run_that_shares_the_engine_says_so_while_it_does(host):
    sessions = Sessions(host)
    first = sessions.of("one").run(usual(gen_length=64))
    out = [next(first), next(first)]
    assert said(out)[0].startswith("Running.") and "turns" not in said(out)[0]
    host.line.join("two")
    shared = next(first)
    assert shared["said"][0].startswith("Running. This run takes turns with 1 other.")
    assert events([shared])[-1] == {"k": "share", "says": "This run takes turns with 1 other."}
    host.line.give_up("two", for_good=True)
    for place in [p for p in host.line.places if p.visitor == "two"]:
        host.line.leave(place)
    alone = next(first)
    assert "turns" not in alone["said"][0] and events([alone])[-1] == {"k": "share", "says": ""}
    assert "said" not in next(first), "nothing has changed"
    sessions.leave("one")


def test_stop_and_leaving_while_waiting_give_the_place_up(host, one_at_a_time):
    sessions = Sessions(host)
    one, two, three = (sessions.of(name) for name in ("one", "two", "three"))
    first = one.run(usual(gen_length=64))
    next(first), next(first)
    second, third = two.run(usual()), three.run(usual())
    next(second), next(third)
    assert said(list(two.stop())) == ("Stopped.", "info")
    assert events(list(second))[-1] == {"k": "wait", "says": ""}
    sessions.leave("three")
    assert list(third) == [] and host.boards.of("three") is None
    assert [place.visitor for place in host.line.places if place.left is None] == ["one"]
    list(first)
    assert not [place for place in host.line.places if place.left is None]
    for name in ("one", "two"):
        sessions.leave(name)


def test_pause_while_waiting_can_be_resumed(host, one_at_a_time):
    sessions = Sessions(host)
    one, two = sessions.of("one"), sessions.of("two")
    first = one.run(usual(gen_length=64))
    next(first), next(first)
    second = two.run(usual())
    next(second)
    two.pause()
    assert said(list(second)) == PAUSED
    list(first)
    assert said(list(two.resume()))[0].startswith("Done")
    for name in ("one", "two"):
        sessions.leave(name)


def test_a_prompt_that_the_model_does_not_know_is_told_before_and_after(session):
    foreign = usual(prompt="What is the capital of France?")
    (before,) = session.look_over(foreign)
    assert "unlike anything" in before["changed"][0]
    changes = list(session.run(foreign))
    assert "unlike anything" in changes[0]["said"][0] and "unlike anything" in said(changes)[0]
    assert "Choose one under Example." in said(changes)[0]
    (known,) = session.look_over(usual())
    assert "unlike" not in known["changed"][0]
    (long,) = session.look_over(usual(prompt="a" * 4001))
    assert "4001 characters; 4000 are allowed" in long["changed"][0]


def test_what_has_changed_since_the_run_is_named(session):
    assert list(session.look_over(usual(seed=3))) == [{"changed": ("",)}]  # nothing was run
    changes = list(session.run(usual()))
    assert changes[0]["changed"] == ("",)
    assert list(session.look_over(usual())) == [{"changed": ("",)}]
    (one,) = session.look_over(usual(policy="none", gen_length=24))
    assert one["changed"][0] == "Changed since this run: answer length, policy. Press Run."
    assert set(one["changed"][1:]) == {"gen_length", "policy"}
    (knob,) = session.look_over(usual() | {"policy.d2.current_k": 4})
    assert knob["changed"] == (
        "Changed since this run: current k. Press Run.",
        "policy.d2.current_k",
    )
    assert list(session.look_over(usual() | {"policy.dllm.kp": 4})) == [{"changed": ("",)}]
    list(session.compare(usual(lanes=["none", "d2"])))
    assert list(session.look_over(usual(policy="none"))) == [{"changed": ("",)}]
    session_filled = next(session.open_stored("dllm-facts"))
    list(session.open_stored("dllm-facts"))
    values = usual() | {k: v for k, v in session_filled.items() if k != "preset"}
    assert list(session.look_over(values)) == [{"changed": ("",)}]
    assert "seed" in next(session.look_over(values | {"seed": 5}))["changed"]


def test_the_page_takes_back_the_block_length_that_it_set(session):
    (blocks,) = session.choose_policy("dual", 0)
    assert blocks["block_length"] == 16
    (back,) = session.choose_policy("d2", 16)
    assert back["block_length"] == 0
    assert list(session.choose_policy("d2", 16)) == []  # the visitor's own
    list(session.choose_policy("dual", 0))
    assert list(session.choose_policy("d2", 8)) == []  # changed meanwhile


def test_shared_knobs_at_a_default_follow_the_method_and_others_stay():
    usual_sigma = {
        d: v["decoder.all.sigma"] for d, v in controls.shared_defaults("decoder").items()
    }
    one, other = (
        "confidence",
        next(d for d in usual_sigma if usual_sigma[d] != usual_sigma["confidence"]),
    )
    name = "decoder.all.sigma"
    assert controls.with_defaults("decoder", other, {name: usual_sigma[one]}) == {
        name: usual_sigma[other]
    }
    assert controls.with_defaults("decoder", other, {name: 3.3}) == {name: 3.3}


@pytest.mark.parametrize("stored", [True, False])
def test_lanes_of_a_known_problem_are_right_or_wrong(session, host, stored):
    query = host.presets["prefix-stale"]["query"]
    if not stored:
        query += "&seed=1"  # which changes nothing else
    changes = list(session.follow(query, usual()))
    text, kind = said(changes)
    if not stored:
        assert text.startswith("Done. none: right, ") and "; prefix: wrong (Ruth), " in text
        assert "% of tokens equal lane 1" in text and kind == "info"
    (results,) = [e for e in events(changes) if e["k"] == "results"]
    assert [row["right"] for row in results["rows"]] == [True, False, True]
    assert [row["answer"] for row in results["rows"]] == ["Adam", "Ruth", "Adam"]
    assert results["rows"][0]["equal"] is None and results["rows"][1]["equal"] < 1


def test_a_lane_that_joins_renames_those_on_the_stage(session):
    list(session.run(usual() | {"policy.d2.current_k": 4}))
    changes = list(session.add_lane(usual()))
    (names,) = [e["names"] for e in events(changes) if e["k"] == "names"]
    assert names == {session.board.runs[0].key: "d2 current_k=4"}
    assert [run.name for run in session.board.runs] == ["d2 current_k=4", "d2"]


def test_a_refused_what_if_is_told_where_it_was_asked_for(session):
    list(session.run(usual()))
    key = session.board.runs[0].key
    (only,) = session.follow(f"branch={key}~3,policy.current_k=0", usual())
    assert events([only]) == [{"k": "refused", "says": only["said"][0]}]


def test_what_others_add_to_a_link_is_left_alone(session):
    query = Asked(SUM, (Lane("none"),), gen_length=16).query()
    (filled,) = session.fill(query + "&utm_source=mail&fbclid=1", usual())
    assert filled["policy"] == "none"
    list(session.follow(query + "&utm_source=mail&fbclid=1&__theme=dark", usual()))
    assert session.board.query() == query
    assert list(session.follow("utm_source=mail", usual())) == []
