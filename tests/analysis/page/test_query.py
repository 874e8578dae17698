"""Links: what they say is what is asked for, and the other way round."""

from urllib.parse import quote

import pytest

import d2cache
from analysis.page.query import MOST_LANES, Asked, Lane, Link, name_lanes

ASKED = Asked(
    prompt="How many? a&b=c, 100 % ~ [x]\nLine two + ü",
    lanes=(
        Lane("none"),
        Lane("d2", {"current_k": 16, "as_shipped": True}, "confidence", {"sigma": 0.0}),
        Lane(
            "dllm",
            {"rho": 0.125},
            "threshold",
            {"threshold": 0.8, "temperature": 0.5},
            (d2cache.Edit.parse("12,34=56,refresh=1.2,policy.kp=7"), d2cache.Edit.parse("13")),
        ),
    ),
    model="small/dream",
    gen_length=48,
    block_length=16,
    seed=2**62,
    full=True,
    truth=True,
    turns=False,
)
BLANK = Asked(prompt="?", lanes=(Lane(),))


def test_a_link_asks_for_exactly_what_it_was_made_of():
    assert Link.parse(ASKED.query()).over(BLANK) == ASKED
    assert Link.parse("?" + BLANK.query(tab="")).over(ASKED) == BLANK


@pytest.mark.parametrize("base", [d2cache.CachePolicy, d2cache.Decoder], ids=lambda b: b.kind)
def test_every_knob_of_every_method_travels(base):
    for name, cls in base.registry.items():
        for knob in d2cache.registry.knobs(cls):
            ends = {True, False} if knob.kind is bool else {knob.low, knob.high}
            other = max(ends - {knob.default})
            side = {"policy": "knobs", "decoder": "decoder_knobs"}[base.kind]
            lane = Lane(**{base.kind: name, side: {knob.name: other}})
            assert getattr(lane, side)[knob.name] == other != knob.default
            assert Lane.parse(str(lane)) == lane


def test_a_lane_says_only_what_is_not_usual():
    assert str(Lane("d2", {"current_k": 32})) == "d2"
    assert str(Lane("d2", {"current_k": 8}, "margin")) == "d2,current_k=8/margin"


def test_a_link_names_some_things_and_leaves_the_rest():
    changed = Link.parse("seed=7&lane=prefix").over(ASKED)
    assert (changed.seed, changed.lanes) == (7, (Lane("prefix"),))
    assert (changed.prompt, changed.model, changed.full) == (ASKED.prompt, ASKED.model, True)


def test_what_to_look_at_travels_beside():
    link = Link.parse(ASKED.query(tab="cache", at=12, see=None) + "&__theme=dark")
    assert link.view == {"tab": "cache", "at": "12"}
    assert link.over(BLANK) == ASKED
    assert Link.parse("trace=d2-word").trace == "d2-word"
    key, edit = Link.parse("branch=abc~4,9=2").branch
    assert (key, edit) == ("abc", d2cache.Edit.parse("4,9=2"))


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("lane=nonesuch", "unknown policy 'nonesuch'; choose one of d2"),
        ("lane=d2/nonesuch", "unknown decoder 'nonesuch'"),
        ("lane=d2,current_k=0", "current_k is 0; it must be a whole number from 1 to 1024"),
        ("lane=d2,current_k=1.5", "must be a whole number"),
        ("lane=d2,current_k=nan", "'nan' is not a number"),
        ("lane=d2,current_k", "'current_k' is not KNOB=VALUE"),
        ("lane=d2,kp=3", "has no knob 'kp'; its knobs: current_k"),
        ("lane=d2,as_shipped=2", "must be True or False"),
        ("gen=many", "'many' is not a number"),
        ("full=2", "it must be 0 or 1"),
        ("prompt=" + "a" * 30_000, "longer than 20000 characters"),
    ],
)
def test_a_link_that_cannot_be_is_refused_in_one_line(query, says):
    with pytest.raises(ValueError) as error:
        Link.parse(query)
    assert says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"prompt": " \n"}, "The prompt is empty"),
        ({"prompt": "a" * 4001}, "has 4001 characters; 4000 are allowed"),
        ({"gen_length": 0}, "answer length is 0; it must be a whole number from 1 to 256"),
        ({"gen_length": 2.5}, "answer length is 2.5"),
        ({"gen_length": None}, "answer length is None"),
        ({"seed": -1}, "seed is -1"),
        ({"lanes": ()}, "There are 0 lanes; 1 to 6"),
        ({"lanes": (Lane(),) * (MOST_LANES + 1)}, "There are 7 lanes"),
    ],
)
def test_what_cannot_be_run_is_refused_for_a_visitor(changes, says):
    with pytest.raises(ValueError, match=says):
        Asked(**{"prompt": "?", "lanes": (Lane(),), **changes})


def test_a_prompt_is_compared_and_sent_without_what_surrounds_it():
    assert Asked(prompt=" a b \n", lanes=(Lane(),)).prompt == "a b"
    assert quote("a b") in Asked(prompt=" a b \n", lanes=(Lane(),)).query()


def test_lanes_are_called_by_what_tells_them_apart():
    lanes = (
        Lane("none"),
        Lane("d2"),
        Lane("d2", {"current_k": 8}),
        Lane("dual", {}, "confidence", {"sigma": 0}),
    )
    names = name_lanes(lanes)
    assert len(set(names)) == len(names)
    assert names[2] == "d2 current_k=8 + confidence" and "sigma=0" in names[3]
    assert name_lanes((Lane("none"), Lane("d2", {"current_k": 8}))) == ["none", "d2"]
