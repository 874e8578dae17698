"""For everybody: what axe-core finds, the keyboard alone, small screens, and nothing that jumps."""

import itertools
import json

import pytest
from axe_playwright_python.sync_playwright import Axe
from test_page import QUESTION, ask, state
from test_tabs import STORY, at, ended, frames, show

from analysis.page.query import Asked, Lane
from analysis.tools.browser import open_tab

TABS = ("Watch", "Stage", "Compare", "Cache", "Attention", "Truth", "Token", "Figures")
LANES = tuple(map(Lane.parse, ("none", "d2,current_k=2")))
SIGHTS = {
    "light": {"viewport": {"width": 1400, "height": 950}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1400, "height": 950}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 360, "height": 740}, "color_scheme": "light"},
}
LAST = 30  # the last step but one: answers with end tokens, some of which differ


@pytest.fixture(scope="module", params=SIGHTS)
def seen(chrome, address, request):
    """The page of a newcomer in one light and size, with two lanes and their truth."""
    context = chrome.new_context(**SIGHTS[request.param])
    page, problems = context.new_page(), []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.set_default_timeout(120_000)
    asked = Asked(QUESTION, LANES, gen_length=32, truth=True, full=True)
    page.goto(f"{address}/?{asked.query()}")
    page.wait_for_function("globalThis.D2Stage?.stage")
    ended(page, 2)
    yield page
    context.close()
    assert not problems, problems


def as_newcomer(page, step: int):
    """What a reader sees who has not looked inside."""
    page.evaluate("D2Stage.stage.show('watch'); D2Stage.stage.page.depth.set(false)")
    at(page, step, 1)


def unfolded(page):
    """Opens every fold beside the stage, and those within."""
    closed = page.locator("#side .label-wrap:not(.open):visible")
    while closed.count():
        closed.first.click()
        frames(page)


def filled(page, tab: str):
    """A tab with all that it shows."""
    page.evaluate("D2Stage.stage.page.depth.set(true)")
    show(page, tab)
    at(page, LAST, 1)
    frames(page)
    if tab == "Attention":
        page.locator(".d2-panel-attention .d2-square").wait_for(state="visible")
    if tab == "Token":
        path = page.get_by_role("button", name="Trace its keys")
        if path.is_visible():
            path.click()
        page.locator(".d2-path").first.wait_for(state="visible")
    if tab == "Figures":
        page.locator(".d2-panel-figures .js-plotly-plot").nth(6).wait_for()
    frames(page)


def faults(page, where: str = "html") -> dict[str, list[str]]:
    """Rules broken on the page or a part of it, serious and critical ones: where."""
    told = Axe().run(page, context={"include": [[where]]}).response["violations"]
    return {
        f"{one['id']}: {one['help']}": [node["html"][:160] for node in one["nodes"]][:8]
        for one in told
        if one["impact"] in ("serious", "critical")
    }


@pytest.mark.parametrize("step", [12, 31])
def test_the_whole_page_of_a_newcomer_is_for_everybody(seen, step):
    as_newcomer(seen, step)
    assert seen.locator(".d2-tabbar").is_hidden()
    assert seen.locator(".d2-watch .d2-eos.d2-filled").count() >= (3 if step > LAST else 0)
    assert not (found := faults(seen)), json.dumps(found, indent=1)


def test_the_whole_page_is_for_everybody_with_everything_open(seen):
    filled(seen, "Stage")
    unfolded(seen)
    seen.get_by_label("Stored runs").wait_for()
    assert not (found := faults(seen)), json.dumps(found, indent=1)


# Contrasts of the guesses in sight with the ground of their hatching, and with its lines, which axe
# leaves to the eye.
GHOSTS = r"""() => {
  const pen = Object.assign(document.createElement('canvas'), { width: 1, height: 1 })
    .getContext('2d', { willReadFrequently: true });
  const seen = (colour, paper) => {
    for (const fill of [paper, colour]) { pen.fillStyle = fill; pen.fillRect(0, 0, 1, 1); }
    return [...pen.getImageData(0, 0, 1, 1).data];
  };
  const light = (rgb) => rgb.slice(0, 3).map(c => c / 255)
    .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const contrast = (a, b) => { const [low, high] = [light(a), light(b)].sort((x, y) => x - y);
    return (high + 0.05) / (low + 0.05); };
  const paper = getComputedStyle(document.querySelector('.d2-stage')).backgroundColor;
  return [...document.querySelectorAll('.d2-guessed')].filter(el => el.checkVisibility())
    .map(el => { const look = getComputedStyle(el), ink = seen(look.color, paper);
      const [line, , ground] = look.backgroundImage.match(/(rgba?|color|oklab)\([^()]*\)/g);
      return [el.className, contrast(ink, seen(ground, paper)), contrast(ink, seen(line, paper))];
    }); }"""


@pytest.mark.parametrize("tab", ["Watch", "Stage"])
def test_a_guess_can_be_read_on_its_hatching(seen, tab):
    filled(seen, tab)
    for step in (0, 12):
        at(seen, step, 1)
        told = seen.evaluate(GHOSTS)
        assert len(told) > 5
        pale = [one for one in told if one[1] < 4.5 or one[2] < 3]
        assert not pale, (step, pale[:6])


@pytest.mark.parametrize("tab", TABS)
def test_a_tab_is_for_everybody(seen, tab):
    filled(seen, tab)
    if tab == "Stage":
        assert seen.locator(".d2-panel-stage .d2-eos").count() > 2
    width = seen.viewport_size["width"]
    assert seen.evaluate("document.documentElement.scrollWidth") <= width
    panel = seen.locator(f".d2-panel-{tab.lower()}").bounding_box()
    assert panel["x"] >= 0 and panel["x"] + panel["width"] <= width
    assert not (cut := seen.evaluate(BEYOND)), cut
    found, small = faults(seen, "#stage"), seen.evaluate(SMALL)
    assert not found, json.dumps(found, indent=1)
    assert not small, small


# what is cut off at the right, and lies in nothing that scrolls
BEYOND = """() => {
  const scrolls = (el) => el && (['auto', 'scroll'].includes(getComputedStyle(el).overflowX)
    || scrolls(el.parentElement));
  return [...document.querySelectorAll('#stage *')]
    .filter(el => el.checkVisibility() && !el.closest('.d2-sr, svg') && !scrolls(el.parentElement))
    .map(el => [el, el.getBoundingClientRect()])
    .filter(([, box]) => box.width > 1 && (box.right > innerWidth + 1 || box.left < -1))
    .map(([el, box]) => `${el.className}: ${box.left} to ${box.right}`); }"""

# buttons and fields shown that are smaller than a finger needs; words within a text may be
SMALL = """() => [...document.querySelectorAll(
  '#stage button, #stage select, #stage input, #stage summary')]
  .filter(el => el.checkVisibility() && !el.closest('.js-plotly-plot') && !el.closest('p'))
  .map(el => [el, el.getBoundingClientRect()])
  .filter(([el, box]) => box.width && Math.min(box.width, box.height) < 24)
  .map(([el, box]) =>
    `${el.className} '${el.textContent.slice(0, 30)}' ${box.width} x ${box.height}`)"""


def test_axe_finds_no_serious_fault_in_what_opens(seen):
    filled(seen, "Stage")
    seen.get_by_role("button", name="Export", exact=True).click()
    seen.locator(".d2-export-panel").wait_for(state="visible")
    assert not (found := faults(seen, "#stage")), json.dumps(found, indent=1)
    seen.keyboard.press("Escape")
    seen.get_by_role("button", name="Keys", exact=True).click()
    assert not (found := faults(seen, "#stage")), json.dumps(found, indent=1)
    seen.keyboard.press("Escape")
    seen.locator(".d2-lessons-open").click()
    seen.locator(".d2-lessons-row").first.wait_for(state="visible")
    assert not (found := faults(seen, "#stage")), json.dumps(found, indent=1)
    seen.keyboard.press("Escape")


HEADINGS = """() => [...document.querySelectorAll('h1, h2, h3, h4, h5, h6')]
  .filter(el => el.checkVisibility()).map(el => Number(el.tagName[1]))"""


@pytest.mark.parametrize("tab", TABS)
def test_headings_go_down_one_level_at_a_time(seen, tab):
    filled(seen, tab)
    levels = seen.evaluate(HEADINGS)
    assert levels[0] == 1 and set(levels) >= {1, 2}
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels)), levels


def test_the_stage_is_one_tab_away_and_its_arrows_work_from_run(chrome, address):
    with open_tab(chrome, address) as page:
        page.evaluate("D2Stage.stage.goto(5)")
        page.wait_for_function("D2Stage.stage.state().step === 5")
        page.keyboard.press("Tab")
        assert "Skip to the stage" in focused(page)
        page.keyboard.press("Enter")
        assert "d2-stage" in focused(page)
        page.locator("#run").focus()
        page.keyboard.press("ArrowRight")
        page.wait_for_function("D2Stage.stage.state().step === 6")
        page.locator("#prompt textarea").focus()  # whose own the arrows are
        page.keyboard.press("ArrowRight")
        frames(page)
        assert state(page)["step"] == 6


def test_without_scripts_there_are_words_and_a_picture(chrome, address):
    context = chrome.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(address)
    assert "needs JavaScript" in page.inner_text("body")
    assert page.locator("main img").bounding_box()["height"] > 100
    context.close()


def focused(page) -> str:
    return page.evaluate(
        "(el => `${el.className} ${el.getAttribute('aria-label') || el.textContent}`.trim())"
        "(document.activeElement)"
    )


def tab_to(page, what: str, most: int = 60) -> None:
    """Presses Tab until the focus is on an element of this selector, and sees it marked."""
    passed = []
    for _ in range(most):
        page.keyboard.press("Tab")
        passed.append(focused(page)[:50])
        if page.evaluate("what => document.activeElement.matches(what)", what):
            outline = page.evaluate(
                """() => { const s = getComputedStyle(document.activeElement);
                return (s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) > 0)
                  || s.boxShadow !== 'none'; }"""
            )
            assert outline, f"the focus on {what} cannot be seen"
            return
    raise AssertionError(f"{what} is not reached by Tab; passed {passed}")


def test_by_keyboard_alone(chrome, address):
    asked = Asked(STORY, LANES, gen_length=24)
    with open_tab(chrome, f"{address}/?{asked.query()}") as page:
        ended(page, 2)
        page.locator(".d2-stage").focus()  # past Gradio's controls
        tab_to(page, ".d2-lane-pick")
        tab_to(page, ".d2-lane-pick")
        page.keyboard.press("Enter")
        page.wait_for_function("D2Stage.stage.state().lane === 1")

        tab_to(page, ".d2-range")
        page.keyboard.press("Home")
        page.wait_for_function("D2Stage.stage.state().step === 0")
        for _ in range(3):
            page.keyboard.press("ArrowRight")
        page.wait_for_function("D2Stage.stage.state().step === 3")

        tab_to(page, "[role=tab]")
        assert page.evaluate("document.activeElement.ariaSelected") == "true"
        page.keyboard.press("Home")
        for name in TABS:
            page.wait_for_function("t => D2Stage.stage.state().tab === t", arg=name.lower())
            assert page.evaluate("document.activeElement.textContent") == name
            page.keyboard.press("ArrowRight")
        page.wait_for_function("D2Stage.stage.state().tab === 'watch'")  # round
        assert state(page)["step"] == 3, "the arrows were the tabs'"
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        page.wait_for_function("D2Stage.stage.state().tab === 'cache'")

        tab_to(page, ".d2-export-button")
        page.keyboard.press("Enter")
        page.keyboard.press("ArrowDown")
        assert "Page (HTML)" in focused(page)
        page.keyboard.press("ArrowDown")
        with page.expect_download() as got:
            page.keyboard.press("Enter")
        assert got.value.suggested_filename.endswith(".png")
        page.locator(".d2-export-said", has_text="Saved as").wait_for()
        page.keyboard.press("Escape")
        assert "d2-export-button" in focused(page)
        assert page.locator(".d2-export-panel").is_hidden() and state(page)["step"] == 3

        tab_to(page, ".d2-panel-cache .d2-cells")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("End")
        page.keyboard.press("Enter")
        page.wait_for_function("D2Stage.stage.state().selected !== null")
        assert "answer position 24" in page.inner_text(".d2-panel-cache .d2-said-cell")

        page.keyboard.press("Escape")
        page.locator(".d2-stage").focus()
        page.keyboard.press("?")
        page.locator(".d2-keys").wait_for(state="visible")
        page.keyboard.press("Escape")
        page.locator(".d2-keys").wait_for(state="hidden")

        tab_to(page, ".d2-lessons-open")
        page.keyboard.press("Enter")
        tab_to(page, ".d2-lessons-row")
        page.keyboard.press("Enter")
        page.locator(".d2-coach").wait_for(state="visible")
        tab_to(page, ".d2-coach button", most=10)
        page.keyboard.press("Escape")
        page.locator(".d2-coach").wait_for(state="hidden")


JUMPS = """() => ({
  tabs: document.querySelector('.d2-tabbar').getBoundingClientRect().toJSON(),
  transport: document.querySelector('.d2-transport').getBoundingClientRect().toJSON(),
  scroll: scrollY,
})"""


@pytest.mark.parametrize("width", [1400, 360])
def test_nothing_jumps_when_a_run_starts_and_goes_on(chrome, address, width):
    with open_tab(chrome, address) as page:
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_function("D2Stage.stage.state().run")
        opened_with = state(page)["run"]
        ask(page, STORY)
        page.evaluate("document.fonts.ready")
        frames(page)
        before = page.evaluate(JUMPS)
        page.evaluate(
            """js => { window.boxes = []; const look = eval(js);
            document.querySelector('.stage-host').addEventListener('d2:paint', () => {
              const {received, run} = D2Stage.stage.state();
              window.boxes.push({received, run, ...look()}); }); }""",
            JUMPS,
        )
        page.click("#run")
        page.wait_for_function(
            """was => { const { run, status } = D2Stage.stage.state();
            return run !== was && status === 'done'; }""",
            arg=opened_with,
        )
        boxes = page.evaluate("window.boxes")
        live = [b for b in boxes if b["run"] != opened_with]
        assert len(live) > 5
        for b in live:
            for name in ("tabs", "transport"):
                place = {k: b[name][k] for k in ("x", "width", "height")}
                assert place == {k: before[name][k] for k in place}, (name, b["received"])
            # the page may scroll to the stage, where the transport sticks; nothing moves on it
            assert b["tabs"]["y"] + b["scroll"] == pytest.approx(
                before["tabs"]["y"] + before["scroll"], abs=1
            ), b["received"]
