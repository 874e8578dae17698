"""The first minute of a newcomer: what the page shows by itself, and the ways on from there."""

import pytest
from test_page import state

from analysis.page import stored
from analysis.page.query import Asked, Link
from analysis.tools import first_screen
from analysis.tools.browser import open_tab

# After each paint: the step, and how many masks each lane of Watch has left.
PAINTS = """window.paints = [];
document.addEventListener("d2:paint", ({ detail }) => {
  const lanes = [...document.querySelectorAll(".d2-watch-answer")];
  const masks = lanes.map((lane) => lane.querySelectorAll(".d2-masked").length);
  if (lanes.length) paints.push({ step: detail.step, masks });
}, true);"""
LAPTOP, PHONE = (1440, 900), (360, 740)


@pytest.fixture(scope="module")
def traces():
    """Of the two lanes that the page opens with: without a cache, and with one."""
    found = stored.lanes(Asked(**Link.parse(stored.OPENING).settings))
    return [trace for _, trace, _ in found]


@pytest.fixture
def newcomer(chrome, address):
    with open_tab(chrome, address, first_visit=True) as page:
        page.wait_for_function("D2Stage.stage.state().step >= 0")
        yield page


def painted(tab, step: int) -> None:
    """Until the stage shows a step, counted from 0, and rests there."""
    tab.wait_for_function(
        """step => !D2Stage.stage.state().playing
          && document.querySelector('.d2-range').value === String(step)""",
        arg=step,
    )


def to_the_end(tab) -> None:
    """The replay goes on to its end, quickly."""
    tab.evaluate("D2Stage.stage.page.transport.setPace(60)")  # as who looks inside can choose
    painted(tab, state(tab)["steps"] - 1)


def test_the_opening_moves_by_itself_from_its_first_step_in_both_lanes(chrome, address):
    with first_screen.visit(chrome, "about:blank", LAPTOP) as tab:
        tab.add_init_script(PAINTS)
        tab.goto(address)
        tab.wait_for_function("globalThis.paints?.some(({ step }) => step >= 3)")
        paints = [one for one in tab.evaluate("paints") if one["step"] >= 0]
        assert state(tab)["playing"] and state(tab)["tab"] == "watch"
    steps = [one["step"] for one in paints]
    assert steps[0] == 0 and steps == sorted(steps)
    for first, last in zip(paints[0]["masks"], paints[-1]["masks"], strict=True):
        assert 0 < last < first, "masks are filled in, not all at once"
    assert len(paints[0]["masks"]) == 2


def test_the_last_sentence_is_true(newcomer, traces):
    to_the_end(newcomer)
    plain, cached = traces
    texts = ["".join(trace.text_of(int(i)) for i in trace.answer) for trace in traces]
    assert texts[0] == texts[1]
    share = round(100 * int(cached.recomputed.sum()) / int(plain.recomputed.sum()))
    assert share < 60
    told = newcomer.inner_text(".d2-watch-says")
    assert told == f"The same answer for {share} % of the work."
    shown = newcomer.locator(".d2-watch-share").all_inner_texts()
    assert shown == ["100 %", f"{share} %"]
    assert newcomer.locator(".d2-watch-answer .d2-masked").count() == 0


def test_nothing_moves_where_motion_is_not_wanted(chrome, address):
    with first_screen.visit(chrome, address, LAPTOP, reduced_motion="reduce") as tab:
        tab.wait_for_function("globalThis.D2Stage?.stage?.state().step > 0")
        seen = state(tab)
        assert not seen["playing"] and seen["step"] == (seen["steps"] - 1) // 2
        assert tab.evaluate("window.seen.moved") is None
        tab.wait_for_selector(".d2-play[aria-label=Play]")
        tab.wait_for_function(
            """() => document.getAnimations().every(({ playState, effect }) =>
              playState !== 'running' || !effect.target.closest('.d2-stage'))"""
        )


def test_looking_inside_shows_the_tabs_and_is_remembered(newcomer, address):
    bar = newcomer.locator(".d2-tabbar")
    assert not bar.is_visible()
    newcomer.get_by_role("button", name="Look inside").click()
    bar.wait_for(state="visible")
    assert state(newcomer)["tab"] == "stage"
    newcomer.get_by_role("tab", name="Cache").click()
    newcomer.goto(address)  # without what the address says of the view
    newcomer.wait_for_function("globalThis.D2Stage?.stage?.state().step >= 0")
    assert bar.is_visible() and state(newcomer)["tab"] == "cache"
    newcomer.get_by_role("button", name="Show less").click()
    bar.wait_for(state="hidden")
    assert state(newcomer)["tab"] == "watch"
    newcomer.goto(address)
    newcomer.wait_for_function("globalThis.D2Stage?.stage?.state().step >= 0")
    assert not bar.is_visible()


def test_a_class_sees_the_stage_alone_and_arrows_step_from_anywhere(newcomer):
    newcomer.get_by_role("button", name="Teach").click()
    newcomer.locator("#run").wait_for(state="hidden")
    assert not state(newcomer)["playing"] and state(newcomer)["teach"]
    newcomer.keyboard.press("Home")
    newcomer.locator(".d2-watch-answer .d2-chip").first.click()  # takes the focus
    anywhere = (".d2-watch-answer .d2-chip", ".d2-play", ".d2-speed", ".d2-range", ".d2-stage")
    for step, place in enumerate(anywhere):
        newcomer.wait_for_function("s => D2Stage.stage.state().step === s", arg=step)
        newcomer.locator(place).first.focus()
        newcomer.keyboard.press("ArrowRight")
    newcomer.wait_for_function("s => D2Stage.stage.state().step === s", arg=len(anywhere))
    newcomer.keyboard.press("ArrowLeft")
    newcomer.wait_for_function("s => D2Stage.stage.state().step === s", arg=len(anywhere) - 1)
    newcomer.keyboard.press("Escape")
    newcomer.locator("#run").wait_for(state="visible")
    assert not state(newcomer)["teach"]


def test_a_link_opens_for_a_class(chrome, address):
    with open_tab(chrome, f"{address}/?teach=1", first_visit=True) as tab:
        tab.wait_for_function("D2Stage.stage.state().teach")
        tab.locator("#run").wait_for(state="hidden")
        assert tab.locator(".d2-watch-answer").first.is_visible()


def test_a_mask_shows_what_the_model_would_write_there(newcomer, traces):
    step = 5
    newcomer.evaluate("s => D2Stage.stage.goto(s)", step)
    painted(newcomer, step)
    for lane, trace in enumerate(traces):
        shown = newcomer.locator(".d2-watch-answer").nth(lane).locator(".d2-masked")
        texts = dict(shown.evaluate_all("all => all.map(c => [c.dataset.p, c.textContent])"))
        start, written = trace.prompt_length, trace.tokens[step + 1]
        mask = trace.run["shape"]["mask_id"]
        best = {g: int(ids[0]) for g, (ids, _) in trace.guesses(step).items()}
        wanted = {
            str(start + g): trace.text_of(token).strip()
            for g, token in best.items()
            if written[start + g] == mask and token != trace.run["shape"]["eos_id"]
        }
        assert len(wanted) > 3
        assert {p: texts[p].strip() for p in wanted} == wanted


@pytest.mark.parametrize("size", [LAPTOP, PHONE], ids=["laptop", "phone"])
def test_the_first_screen_is_short_and_stands_still(chrome, address, size):
    with first_screen.visit(chrome, address, size) as tab:
        met = first_screen.seen(tab)
        if size == LAPTOP:
            assert met.words <= 120 and len(met.controls) <= 12, met
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
        to_the_end(tab)
        assert tab.evaluate("window.seen.shift") <= 0.02
