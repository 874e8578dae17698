"""Lanes, what-ifs, links and presets, as a visitor meets them."""

import json
import re
from urllib.parse import parse_qs, urlencode, urlsplit

import numpy as np
import pytest
from test_page import QUESTION, ask, said, state, wait_said
from traffic import Traffic

import d2cache
from analysis.page import lessons, stored
from analysis.page.query import Asked, Lane, Link
from analysis.tools import browser
from analysis.tools.browser import open_tab


@pytest.fixture(scope="module")
def model():
    return d2cache.load("tiny", device="cpu")


OPENING = "stored-opening"  # the board that the page opens with


def done(tab, lanes: int = 1, old: str = "", says: str = "Done"):
    """Until a board other than the old one has that many finished lanes, and the page says so."""
    tab.wait_for_function(
        """([lanes, old]) => { const s = D2Stage.stage.state();
        return s.board !== old && s.lanes === lanes && s.status !== 'running'; }""",
        arg=[lanes, old or OPENING],
    )
    wait_said(tab, says)


def text_of(model, lane: str, prompt: str = QUESTION, gen: int = 64, full=False) -> str:
    one = Lane.parse(lane)
    steps = d2cache.generate(
        model,
        model.encode(prompt),
        one.make_policy(),
        one.make_decoder(),
        gen_length=gen,
        stop_at_eos=not full,
        edits=one.edits,
    )
    trace = d2cache.Trace.record(steps)
    return trace, "".join(trace.text_of(int(i)) for i in trace.answer)


def open_compare(tab):
    if not tab.locator("#compare").is_visible():
        tab.locator("#comparing").get_by_text("Side by side", exact=True).click()


def test_policies_side_by_side_under_one_scrubber(tab, model):
    ask(tab, QUESTION)
    open_compare(tab)
    tab.click("#compare")
    done(tab, 2)
    assert state(tab)["tab"] == "compare", "a second lane opens the comparison"
    assert "none" in said(tab) and "d2" in said(tab) and "% of tokens equal lane 1" in said(tab)
    asked = Link.parse(urlsplit(tab.url).query).over(Asked("?", (Lane(),)))
    assert [lane.policy for lane in asked.lanes] == ["none", "d2"] and asked.prompt == QUESTION
    last = state(tab)["steps"] - 1
    tab.evaluate("D2Stage.stage.goto(3)")
    tab.wait_for_function("D2Stage.stage.state().step === 3")
    tab.evaluate("D2Stage.stage.setLane(1)")
    tab.wait_for_function("D2Stage.stage.state().lane === 1 && D2Stage.stage.state().step === 3")
    assert last > 3


def test_a_run_beside_joins_and_a_changed_prompt_does_not(tab):
    ask(tab, QUESTION)
    browser.choose(tab, "policy", "none")
    tab.click("#run")
    done(tab)
    board = state(tab)["board"]
    browser.choose(tab, "policy", "d2")
    tab.click("#beside")
    tab.wait_for_function("D2Stage.stage.state().lanes === 2")
    wait_said(tab, "Done. none")
    assert state(tab)["board"] == board
    ask(tab, "Another question?")
    tab.click("#beside")
    wait_said(tab, "press Run to start again")
    assert state(tab)["lanes"] == 2


def test_what_if_writes_a_token_and_goes_on_as_a_new_lane(tab, model):
    ask(tab, QUESTION)
    tab.click("#run")
    done(tab)
    run, board = state(tab)["run"], state(tab)["board"]
    trace, _ = text_of(model, "d2")
    p, token = trace.prompt_length, int(model.tokenizer.encode("7", add_special_tokens=False)[0])
    tab.evaluate("query => D2Stage.stage.send(query)", f"branch={run}~4,{p + 9}={token}")
    tab.wait_for_function("D2Stage.stage.state().lanes === 2")
    wait_said(tab, "Done. d2")
    assert state(tab)["board"] == board
    other, _ = text_of(model, f"d2~4,{p + 9}={token}")
    assert (other.tokens[-1] != trace.tokens[-1]).any()
    tab.evaluate("D2Stage.stage.setLane(1); D2Stage.stage.goto(4)")
    tab.get_by_role("tab", name="Stage").click()
    shown = tab.locator(f"[data-p='{p + 9}']").first
    tab.wait_for_function(
        "p => document.querySelector(`.d2-chips [data-p='${p}']`).textContent === '7'", arg=p + 9
    )
    assert shown.is_visible()
    assert "what+if" not in tab.url and "~4" in tab.url  # the address holds the edit


def test_a_link_opens_just_what_it_says(chrome, address, model):
    asked = Asked(
        QUESTION,
        (Lane("none"), Lane("d2", {"current_k": 8}, "margin", {"sigma": 0})),
        gen_length=24,
        seed=3,
        full=True,
    )
    with open_tab(chrome, f"{address}/?{asked.query(tab='cache', at=5, see=2)}") as tab:
        done(tab, 2)
        tab.wait_for_function(
            "D2Stage.stage.state().step === 4 && D2Stage.stage.state().tab === 'cache'"
        )
        assert state(tab)["lane"] == 1
        assert tab.locator("#prompt textarea").input_value() == QUESTION
        assert tab.locator("#policy input").input_value().startswith("none: ")
        trace, _ = text_of(model, "d2,current_k=8/margin,sigma=0", gen=24, full=True)
        assert state(tab)["steps"] == len(trace.seconds) == 24
        query = parse_qs(urlsplit(tab.url).query)
        assert query["tab"] == ["cache"] and query["at"] == ["5"] and query["see"] == ["2"]
        assert Link.parse(urlsplit(tab.url).query).over(Asked("?", (Lane(),))) == asked
        tab.reload()
        tab.wait_for_function("globalThis.D2Stage?.stage")
        done(tab, 2)
        tab.wait_for_function(
            "D2Stage.stage.state().step === 4 && D2Stage.stage.state().lane === 1"
        )


def test_a_link_sets_the_controls_and_run_repeats_it(chrome, address):
    asked = Asked(
        QUESTION,
        (Lane("d2", {"current_k": 5}, "confidence", {"sigma": 0.0}),),
        gen_length=16,
        block_length=8,
    )
    with open_tab(chrome, f"{address}/?{asked.query()}") as tab:
        done(tab)
        old = state(tab)["board"]
        tab.evaluate("history.replaceState(history.state, '', '?at=1')")
        tab.click("#run")
        done(tab, old=old)
        tab.wait_for_function("location.search.includes('lane=')")
        assert Link.parse(urlsplit(tab.url).query).over(Asked("?", (Lane(),))) == asked


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ({"lane": "nonesuch"}, "Unknown policy 'nonesuch'; choose one of"),
        ({"gen": "0", "lane": "d2"}, "The answer length is 0"),
        ({"trace": "../../etc/passwd"}, "There is no stored run"),
        ({"branch": "nokey~3"}, "no longer kept"),
        ({"model": "other", "lane": "d2"}, "this page offers tiny"),
    ],
)
def test_a_link_that_cannot_be_says_so_in_one_line_and_the_page_goes_on(
    chrome, address, query, says
):
    with open_tab(chrome, f"{address}/?{urlencode(query)}") as tab:
        tab.wait_for_function(
            "says => document.querySelector('#said').innerText.includes(says)", arg=says
        )
        assert "\n" not in said(tab)
        tab.wait_for_function("opening => D2Stage.stage.state().board === opening", arg=OPENING)
        ask(tab, QUESTION)
        tab.click("#run")
        done(tab)


def test_a_stored_run_is_one_choice_or_one_link_away(chrome, address):
    names = [n for n in json.loads((browser.ROOT / "assets/traces/index.json").read_text())]
    names = [n["name"] if isinstance(n, dict) else n for n in names]
    with open_tab(chrome, f"{address}/?trace={names[2]}&tab=cache&at=3") as tab:
        tab.wait_for_function(
            "name => D2Stage.stage.state().board === `stored-${name}`", arg=names[2]
        )
        tab.wait_for_function(
            "D2Stage.stage.state().tab === 'cache' && D2Stage.stage.state().step === 2"
        )
        tab.locator("#stored input").click()
        tab.locator("[data-testid=dropdown-option]").nth(1).click()
        tab.wait_for_function(
            "name => D2Stage.stage.state().board === `stored-${name}`", arg=names[1]
        )
        tab.wait_for_function("name => location.search.includes(name)", arg=names[1])
        # the controls say what is on the stage
        assert tab.locator("#policy input").input_value().startswith("none: ")
        first = stored.listed()[names[1]]["prompt"]
        assert tab.locator("#prompt textarea").input_value() == first


def test_who_asks_for_the_next_thing_before_the_last_is_there_gets_the_next(tab):
    prompts = [f"Sort {i} 7 2." for i in range(4)]
    traffic = Traffic(tab)
    tab.evaluate(
        """all => all.forEach(p => D2Stage.stage.send(
          new URLSearchParams({prompt: p, lane: 'd2', gen: 32}).toString()))""",
        prompts,
    )
    tab.wait_for_function(
        "p => document.querySelector('#prompt textarea').value === p", arg=prompts[-1]
    )
    done(tab)
    traffic.answered()
    assert tab.locator("#prompt textarea").input_value() == prompts[-1]
    assert parse_qs(urlsplit(tab.url).query)["prompt"] == [prompts[-1]]


def test_each_preset_shows_its_runs_and_tells_its_story(tab):
    open_compare(tab)
    for preset in lessons.presets():
        before, lanes = state(tab)["board"], preset["query"].count("lane=")
        tab.locator("#preset input").click()
        tab.locator("[data-testid=dropdown-option]", has_text=preset["title"]).click()
        done(tab, lanes, old=before, says="Stored runs.")
        steps = tab.evaluate("D2Stage.stage.page.board.lanes.map(({ records }) => records.length)")
        assert len(steps) == lanes >= 2 and min(steps) > 0, preset["key"]
        tab.wait_for_function(
            "story => document.querySelector('#comparing').innerText.includes(story)",
            arg=preset["story"][:60],
        )


def test_a_story_goes_when_another_run_comes_and_comes_once(tab):
    open_compare(tab)
    traffic = Traffic(tab)
    tab.evaluate(
        """() => { window.boards = new Set(); document.querySelector('.stage-host')
        .addEventListener('d2:paint', () => boards.add(D2Stage.stage.state().board)); }"""
    )
    preset = lessons.presets()[-1]
    tab.locator("#preset input").click()
    tab.locator("[data-testid=dropdown-option]", has_text=preset["title"]).click()
    done(tab, preset["query"].count("lane="), says="Stored runs.")
    board = state(tab)["board"]
    traffic.answered()  # a second one would have begun
    assert tab.evaluate("opening => [...boards].filter(b => b !== opening)", OPENING) == [board]
    ask(tab, QUESTION)
    tab.click("#run")
    done(tab, old=board)
    assert preset["story"][:60] not in tab.inner_text("#comparing")
    assert tab.locator("#preset input").input_value() == ""


def test_lanes_on_the_clock_of_milliseconds_finish_apart(tab):
    ask(tab, QUESTION)
    open_compare(tab)
    tab.click("#compare")
    done(tab, 2)
    tab.evaluate("D2Stage.stage.setClock('ms')")
    tab.locator(".d2-range").focus()
    tab.keyboard.press("End")
    told = r"^([\d.]+) ms after the start: lane \d finished first, at ([\d.]+) ms\.$"
    tab.wait_for_function(
        "told => new RegExp(told).test(document.querySelector('.d2-leader').textContent)", arg=told
    )
    end, first = map(float, re.match(told, tab.inner_text(".d2-leader")).groups())
    assert 0 < first < end


def test_the_endpoints_are_what_they_say(address, model):
    from gradio_client import Client
    from gradio_client.exceptions import AppError

    client = Client(address, verbose=False)
    named = client.view_api(return_format="dict")["named_endpoints"]
    assert set(named) == {"/run", "/compare", "/policies", "/decoders", "/models"}
    assert all(
        e["parameters"] or name[1:] in ("policies", "decoders", "models")
        for name, e in named.items()
    )
    trace, text = text_of(model, "d2,current_k=8", gen=24)
    got = client.predict(
        prompt=QUESTION, policy="d2", gen_length=24, policy_knobs={"current_k": 8}, api_name="/run"
    )
    assert got["text"] == text.strip() and got["steps"] == len(trace.seconds)
    assert got["flops_vs_none"] == pytest.approx(trace.totals["flops_vs_none"])
    both = client.predict(
        prompt=QUESTION, lanes=["none", "d2,current_k=8"], gen_length=24, api_name="/compare"
    )
    assert [one["lane"] for one in both] == ["none", "d2,current_k=8"]
    other, _ = text_of(model, "none", gen=24)
    size = max(len(trace.answer), len(other.answer)) + 1  # with the later end
    ids = [one.tokens[-1, one.prompt_length :][:size] for one in (trace, other)]
    same = np.mean(ids[0] == ids[1])
    assert both[0]["agreement"] == 1 and both[1]["agreement"] == pytest.approx(same)
    assert [e["name"] for e in client.predict(api_name="/policies")] == [
        e["name"] for e in d2cache.policies()
    ]
    assert "sigma" in str(client.predict(api_name="/decoders"))
    assert client.predict(api_name="/models") == [{"model": "tiny", "loaded": True}]
    for wrong, says in (
        ({"policy": "nonesuch"}, "choose one of"),
        ({"gen_length": 0}, "answer length"),
        ({"policy_knobs": {"current_k": -1}}, "from 1 to 1024"),
        ({"model": "x"}, "offers tiny"),
    ):
        with pytest.raises(AppError, match=says):
            client.predict(**{"prompt": QUESTION, "api_name": "/run", **wrong})
