"""The lessons, walked through on the live page as a reader does."""

import json
import re

import pytest
from playwright.sync_api import expect

from analysis.page import export, lessons
from analysis.page.query import Link
from analysis.tools.browser import open_tab

LESSONS = {one["key"]: one for one in lessons.lessons()}


def state(tab) -> dict:
    return json.loads(tab.evaluate("JSON.stringify(D2Stage.stage.state())"))


def begin(tab, key: str) -> None:
    if not tab.is_visible(".d2-lessons-list"):
        tab.click(".d2-lessons-open")
    tab.locator(".d2-lessons-row", has_text=LESSONS[key]["title"]).click()


def on_card(tab, lesson: dict, number: int, file: bool = False) -> dict:
    """Waits until a card has set the page up as it says; -> the card."""
    card = lesson["cards"][number - 1]
    acts = dict(card["acts"])
    tab.wait_for_selector(".d2-coach[data-settled=true]")
    now, page = state(tab), tab.evaluate("D2Stage.stage.page.board.link")
    assert now["status"] == "done" and lessons_run(page) == lessons_run(acts["run"])
    assert now["step"] == min(acts["step"], now["steps"]) - 1
    assert now["lane"] == acts.get("lane", 1) - 1
    assert now["tab"] == acts["tab"] and now["clock"] == acts.get("clock", now["clock"])
    assert f"{number} of {len(lesson['cards'])}" in tab.inner_text(".d2-coach-where")
    assert tab.inner_text(".d2-coach-title") == card["title"]
    if "point" in acts and not (file and acts["point"].startswith("#")):
        name = acts["point"]
        pointed = f"{name}.d2-ring" if name.startswith("#") else f".d2-ring[data-point='{name}']"
        expect(tab.locator(pointed)).to_be_visible()
        expect(tab.locator(".d2-ring")).to_have_count(1)
    return card


def lessons_run(query: str) -> dict:
    return Link.parse(query).settings


def needs_run(card: dict) -> bool:
    """Whether a card's question is answered by a run of the reader's own."""
    names = [name for one in card["until"] or () for name, _, _ in one]
    return any(name == "flops" or name.startswith("policy.") for name in names)


def praised(tab) -> None:
    tab.wait_for_function(
        "() => document.querySelector('.d2-coach-said').textContent.startsWith('✓')"
    )


def act(tab, card: dict) -> None:
    """Does what a card asks for, by the controls that a reader has."""
    for name, operator, value in card["until"][0]:
        if name == "step":
            at = int(value) - (operator == "<") + (operator == ">")
            tab.locator(".d2-range").focus()
            tab.keyboard.press("Home")
            for _ in range(at - 1):
                tab.keyboard.press("ArrowRight")
        elif name == "lane":
            tab.click(f".d2-lane-pick >> nth={int(value) - 1}")
        elif name == "selected":
            p = tab.evaluate("D2Stage.stage.page.run.P") + int(value) - 1
            tab.locator(f"[data-point=answer] [data-p='{p}']").click()
        elif name == "clock":
            tab.locator("[data-point=clock] button", has_text=re.compile(value, re.I)).click()
        elif name == "policy.rollout_p":
            run_with(tab, "rollout p", value)
        elif name == "flops":
            run_with(tab, "current k", 8)


def run_with(tab, label: str, value: float) -> None:
    """Set a knob of d2 on the left and run."""
    before = state(tab)["run"]
    tab.locator("#knobs-d2 > button, #knobs-d2 .label-wrap").first.click()
    field = tab.locator("#knobs-d2 input[type=number]").nth(["current k", "rollout p"].index(label))
    # the settings of the card may still be on their way, and would take the place of this one
    for _ in range(20):
        field.fill(f"{value:g}")
        field.press("Tab")
        tab.wait_for_timeout(700)
        if field.input_value() == f"{value:g}":
            break
    tab.click("#run")
    tab.wait_for_function(
        "(was) => D2Stage.stage.state().run !== was && D2Stage.stage.state().status === 'done'",
        arg=before,
    )
    knobs = tab.evaluate("D2Stage.stage.page.run.start.knobs.policy")
    assert knobs[label.replace(" ", "_")] == value


@pytest.fixture(scope="module")
def reader(chrome, address):
    """A tab for all lessons, one after the other."""
    with open_tab(chrome, address) as tab:
        yield tab


@pytest.mark.parametrize("key", LESSONS)
def test_a_lesson_is_walked_through_on_stored_runs(reader, key):
    tab, lesson = reader, LESSONS[key]
    done = set(tab.evaluate("JSON.parse(localStorage.getItem('d2-lessons-done') || '[]')"))
    begin(tab, key)
    for number in range(1, len(lesson["cards"]) + 1):
        card = on_card(tab, lesson, number)
        assert tab.evaluate("D2Stage.stage.page.board.lanes.every((l) => l.start.stored)")
        keeps_off(tab)
        if card["until"]:
            assert tab.inner_text(".d2-coach-said") == "", "done before the reader has acted"
        if card["until"] and not needs_run(card):
            act(tab, card)
            praised(tab)
        if number < len(lesson["cards"]):
            tab.click(".d2-coach-button:last-child")
    tab.click(".d2-coach-button:last-child")
    assert not tab.is_visible(".d2-coach") and tab.locator(".d2-ring").count() == 0
    tab.wait_for_function("() => !location.search.includes('lesson')")
    if not needs_run(card):
        count = len(done | {key})
        assert tab.inner_text(".d2-lessons-open") == f"Lessons · {count} of 6 done"


@pytest.mark.parametrize("key", [k for k, one in LESSONS.items() if needs_run(one["cards"][-1])])
def test_a_question_that_needs_a_run_of_ones_own_is_answered_by_it(chrome, address, key):
    lesson = LESSONS[key]
    last = len(lesson["cards"])
    # as a newcomer, whose settings are folded away
    with open_tab(chrome, f"{address}/?lesson={key}&card={last}", first_visit=True) as tab:
        act(tab, on_card(tab, lesson, last))
        praised(tab)
        assert tab.evaluate("D2Stage.stage.page.run.start.stored") is False
        tab.wait_for_function(f"() => location.search === '?lesson={key}&card={last}'")
        tab.reload()
        tab.wait_for_function("() => globalThis.D2Stage?.stage")
        on_card(tab, lesson, last)
        assert "1 of 6 done" in tab.inner_text(".d2-lessons-open")


def keeps_off(tab) -> None:
    """Waits until the page has come to rest with the card beside, below or above its ring."""
    tab.wait_for_function(
        """() => { const [a, b] = ['.d2-coach', '.d2-ring'].map((s) =>
              document.querySelector(s).getBoundingClientRect());
            return a.right <= b.left || b.right <= a.left || a.bottom <= b.top
              || b.bottom <= a.top; }"""
    )


def test_the_first_lesson_is_one_click_away_and_the_list_tells_them_apart(tab):
    assert tab.inner_text(".d2-lessons-first") == "Start with lesson 1 (3 minutes)"
    tab.click(".d2-lessons-open")
    rows = tab.locator(".d2-lessons-row").all_inner_texts()
    for number, (row, one) in enumerate(zip(rows, LESSONS.values(), strict=True), 1):
        assert f"{number} {one['title']}" in row and one["summary"] in row and "3 minutes" in row
    tab.click(".d2-lessons-first")
    first = next(iter(LESSONS.values()))
    on_card(tab, first, 1)
    tab.click(".d2-coach-button:last-child")
    on_card(tab, first, 2)
    tab.wait_for_function(f"() => location.search === '?lesson={first['key']}&card=2'")
    tab.reload()
    tab.wait_for_function("() => globalThis.D2Stage?.stage")
    on_card(tab, first, 2)


def test_a_newcomer_starts_a_lesson_which_opens_what_it_points_at(chrome, address):
    lesson = next(iter(LESSONS.values()))
    with open_tab(chrome, address, first_visit=True) as tab:
        expect(tab.locator(".d2-tabbar")).to_be_hidden()
        tab.wait_for_function("D2Stage.stage.state().run")
        tab.evaluate("D2Stage.stage.playSlowly()")  # as it does when it is opened
        tab.click(".d2-lessons-first")
        for number in range(1, len(lesson["cards"]) + 1):
            card = on_card(tab, lesson, number)
            keeps_off(tab)
            expect(tab.locator(".d2-tabbar")).to_be_visible()
            if card["until"]:
                act(tab, card)
                praised(tab)
            assert not state(tab)["playing"]
            tab.click(".d2-coach-button:last-child")
        expect(tab.locator(".d2-lessons-open")).to_have_text("Lessons · 1 of 6 done")
        tab.reload()
        expect(tab.locator(".d2-tabbar")).to_be_visible()  # a reader who has looked inside


def test_a_reader_can_skip_go_back_fold_and_leave(tab):
    lesson = LESSONS["two-stages"]
    begin(tab, "two-stages")
    on_card(tab, lesson, 1)
    tab.click(".d2-coach-button:last-child")
    on_card(tab, lesson, 2)
    run = state(tab)["run"]
    tab.click(".d2-coach >> text=Back")
    on_card(tab, lesson, 1)
    assert state(tab)["run"] == run, "the current run was made again for nothing"
    tab.click("[aria-label='Fold the card away']")
    assert not tab.is_visible(".d2-coach-words")
    tab.click("[aria-label='Show the card']")
    tab.focus(".d2-coach-button:last-child")
    tab.keyboard.press("Escape")
    assert not tab.is_visible(".d2-coach") and tab.locator(".d2-ring").count() == 0
    assert tab.evaluate("document.activeElement.className") == "d2-lessons-open"
    assert "done" not in tab.inner_text(".d2-lessons-open")


def test_a_card_whose_run_waits_says_how_long_and_why(tab):
    def told(event: dict) -> None:
        tab.evaluate("text => D2Stage.stage.receive(text)", json.dumps({"events": [event]}))

    def card_says(words: str) -> None:
        expect(tab.locator(".d2-coach-now")).to_have_text(words)

    waits = "Waiting: 3 runs are ahead of yours, about 9 s."
    shares = "This run takes turns with 3 others."
    tab.route("**/queue/join*", lambda route: None)  # the run never begins
    begin(tab, "why-a-cache-breaks")
    told({"k": "wait", "says": waits})
    card_says(waits)
    told({"k": "wait", "says": ""})
    told({"k": "share", "says": shares})
    card_says(shares)
    told({"k": "share", "says": ""})
    card_says("Setting up the page … If nothing happens, press Show me again.")
    tab.unroute("**/queue/join*")
    tab.click(".d2-coach >> text=Show me again")
    tab.wait_for_selector(".d2-coach[data-settled=true]")
    told({"k": "wait", "says": waits})  # of a run that the reader has started
    card_says(waits)


def test_a_link_opens_a_card_and_a_hint_waits_to_be_asked(chrome, address):
    # two-stages runs what the page opens with, once more: the old run must not be taken for it
    for key, number in (("two-stages", 3), ("certainty", 6)):
        with open_tab(chrome, f"{address}/?lesson={key}&card={number}") as tab:
            card = on_card(tab, LESSONS[key], number)
            assert not tab.is_visible(".d2-coach-hint")
            if card["hint"]:
                tab.click(".d2-coach >> text=Hint")
                assert "answer position 11" in tab.inner_text(".d2-coach-hint")


def test_a_term_explains_itself_by_pointer_and_keyboard(tab):
    term = tab.locator(".d2-stage .d2-term:visible").first
    term.hover()
    box = tab.locator(".d2-term-box")
    box.wait_for(state="visible")
    said = lessons.glossary()
    assert any(text in box.inner_text() for text in said.values())
    tab.keyboard.press("Escape")
    box.wait_for(state="hidden")
    tab.mouse.move(0, 0)
    term.focus()
    box.wait_for(state="visible")
    assert term.get_attribute("aria-describedby") == box.get_attribute("id")
    edge = box.bounding_box()
    assert edge["x"] >= 0 and edge["x"] + edge["width"] <= 1400


def test_a_card_fits_a_phone_and_keeps_off_what_it_points_at(tab):
    tab.set_viewport_size({"width": 360, "height": 700})
    begin(tab, "two-stages")
    on_card(tab, LESSONS["two-stages"], 1)
    tab.wait_for_function(  # the page glides; the clock stays at the top
        """() => { const [clock, ring, card] = ['.d2-topbar', '.d2-ring', '.d2-coach'].map((s) =>
              document.querySelector(s).getBoundingClientRect());
            return clock.bottom <= ring.top && ring.top < card.top; }"""
    )
    card, ring = (tab.locator(s).bounding_box() for s in (".d2-coach", ".d2-ring"))
    assert card["x"] >= 0 and card["x"] + card["width"] <= 360
    assert card["y"] + card["height"] <= 700
    assert ring["y"] < card["y"] and ring["y"] + ring["height"] > 0
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360
    for size in tab.locator(".d2-coach button:visible").evaluate_all(
        "all => all.map((b) => Math.min(b.offsetWidth, b.offsetHeight))"
    ):
        assert size >= 24


# ------------------------------------------------------------------------------ in one file


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("file") / "lessons.html"
    path.write_text(export.lessons_page(), encoding="utf-8")
    return path.as_uri()


@pytest.mark.parametrize("width", [1200, 360])
def test_lessons_in_a_file_are_walked_through_without_a_server(chrome, file, width):
    """open_tab fails the test for an error, such as one of the file's content policy."""
    with open_tab(chrome, file) as tab:
        tab.set_viewport_size({"width": width, "height": 900})
        for lesson in list(LESSONS.values())[:: 1 if width == 1200 else 4]:
            begin(tab, lesson["key"])
            for number, card in enumerate(lesson["cards"], 1):
                on_card(tab, lesson, number, file=True)
                says = tab.inner_text(".d2-coach-said")
                assert ("a run of your own" in says) == needs_run(card) and "\n" not in says
                if card["until"] and not needs_run(card):
                    act(tab, card)
                    praised(tab)
                tab.click(".d2-coach-button:last-child")
        assert "Run for a live one" not in tab.locator("main").inner_text()
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_reload_of_the_file_comes_back_to_the_card(chrome, file):
    with open_tab(chrome, f"{file}#lesson=two-stages&card=3") as tab:
        on_card(tab, LESSONS["two-stages"], 3)
        tab.click(".d2-coach >> text=Next")
        on_card(tab, LESSONS["two-stages"], 4)
        tab.wait_for_function("() => location.hash === '#lesson=two-stages&card=4'")
        tab.reload()
        tab.wait_for_function("() => globalThis.D2Stage?.stage")
        on_card(tab, LESSONS["two-stages"], 4)
