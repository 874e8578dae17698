"""What is taken along, in a real browser and from a disk: pages that play, pictures that open."""

import contextlib
import io

import numpy as np
import pytest
from PIL import Image
from test_tabs import (
    at,
    ended,
    frames,
    lane_texts,
    made,
    opened,
    same_run,
    saved_trace,
    show,
    soon,
    text_at,
)

from analysis.page import export, lessons, stored
from analysis.page.query import Link
from analysis.tools.browser import open_tab


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A page of two lanes and the page of the stored runs."""
    folder = tmp_path_factory.mktemp("pages")
    lanes = export.lanes([stored.load("none-word"), stored.load("d2-word")])
    (folder / "lanes.html").write_text(export.page(lanes, "Two <lanes>"), encoding="utf-8")
    view = {"at": 4, "tab": "cache", "see": 1, "clock": "flops", "pos": 60}
    (folder / "view.html").write_text(export.page(lanes, "A view", view), encoding="utf-8")
    (folder / "all.html").write_text(export.bundled_page(), encoding="utf-8")
    return folder


@pytest.fixture
def from_disk(chrome, pages, request):
    """A page opened from the disk, and looked into: an error, or any request but for the file,
    fails the test."""
    name, width, scheme = getattr(request, "param", ("lanes", 1200, "light"))
    context = chrome.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, accept_downloads=True
    )
    page, problems = context.new_page(), []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
    page.on("request", lambda r: problems.append(r.url) if r.url[:5] == "http:" else None)
    page.goto((pages / f"{name}.html").as_uri())
    page.wait_for_function("D2Stage.stage?.state().run")
    if not state(page)["inside"]:
        page.get_by_role("button", name="Look inside").click()
    yield page
    context.close()
    assert not problems, problems


def state(page) -> dict:
    return page.evaluate("D2Stage.stage.state()")


@pytest.mark.parametrize(
    "from_disk", [("lanes", 1200, "light"), ("lanes", 360, "dark")], indirect=True
)
def test_a_page_from_the_disk_plays_with_all_its_lanes(from_disk):
    assert state(from_disk)["lanes"] == 2 and state(from_disk)["status"] == "done"
    from_disk.locator(".d2-range").focus()
    from_disk.keyboard.press("Home")
    from_disk.wait_for_function("D2Stage.stage.state().step === 0")
    from_disk.keyboard.press("ArrowRight")
    from_disk.wait_for_function("D2Stage.stage.state().step === 1")
    assert from_disk.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert "Run for a live one" not in from_disk.locator("main").inner_text()


@pytest.mark.parametrize("from_disk", [("view", 1200, "light")], indirect=True)
def test_a_page_from_the_disk_opens_where_its_reader_was(from_disk):
    from_disk.wait_for_function("D2Stage.stage.state().step === 4")
    now = state(from_disk)
    kept = {name: now[name] for name in ("tab", "lane", "clock", "selected")}
    assert kept == {"tab": "cache", "lane": 1, "clock": "flops", "selected": 60}


@pytest.mark.parametrize("from_disk", [("all", 1200, "dark")], indirect=True)
def test_the_static_page_shows_each_stored_run_and_its_address_says_which(from_disk):
    for name, one in stored.listed().items():
        shown(from_disk, name, f"trace={name}")
        assert state(from_disk)["steps"] == len(stored.load(name).seconds)
        assert from_disk.locator(".file-words").inner_text() == one["words"]
    from_disk.reload()
    from_disk.wait_for_function(ON_VIEW, arg=f"trace={name}")


@pytest.mark.parametrize("from_disk", [("all", 360, "light")], indirect=True)
def test_the_static_page_has_comparisons_at_their_place_and_lessons(from_disk):
    for one in lessons.presets():
        shown(from_disk, one["key"], one["query"])
        view = Link.parse(one["query"]).view
        if "at" in view:
            from_disk.wait_for_function(
                "at => D2Stage.stage.state().step === at - 1", arg=int(view["at"])
            )
        assert state(from_disk)["tab"] == view["tab"]
        assert state(from_disk)["lane"] == int(view.get("see", 1)) - 1
    from_disk.get_by_role("button", name="Start with lesson 1").click()
    from_disk.wait_for_function("() => location.hash.startsWith('#lesson=why')")
    chosen = from_disk.locator(".file-pick select").evaluate("s => s.selectedOptions[0].text")
    assert chosen == "Those of the lesson" and from_disk.locator(".d2-coach").is_visible()
    assert from_disk.locator(".file-words").inner_text() == ""
    assert from_disk.evaluate("document.documentElement.scrollWidth <= innerWidth")


ON_VIEW = "query => D2Stage.stage?.page.board.link === query"


def shown(page, name: str, query: str):
    """Chooses recorded runs in a file."""
    page.select_option(".file-pick select", name)
    page.wait_for_function(ON_VIEW, arg=query)
    page.wait_for_function("name => location.hash === `#${name}`", arg=name)


def test_the_static_page_opens_as_the_live_page_does(chrome, pages):
    """A newcomer sees two runs that play by themselves, and nothing else."""
    with open_tab(chrome, (pages / "all.html").as_uri(), first_visit=True) as page:
        page.wait_for_function("D2Stage.stage?.state().playing && D2Stage.stage.state().step > 0")
        now = state(page)
        assert (now["lanes"], now["tab"], now["inside"]) == (2, "watch", False)
        assert page.evaluate("location.hash") == ""
        assert "d2Cache" in page.locator(".file-words").inner_text()


def saved(page, what: str, path):
    page.get_by_role("button", name="Export", exact=True).click()
    with page.expect_download() as download:
        page.get_by_role("button", name=what).click()
    download.value.save_as(path)
    page.keyboard.press("Escape")
    return download.value.suggested_filename


@pytest.mark.parametrize(
    "from_disk", [("lanes", 1200, "light"), ("lanes", 360, "dark")], indirect=True
)
def test_a_picture_of_the_view_is_no_blank_sheet(from_disk, tmp_path):
    from_disk.evaluate("D2Stage.stage.show('stage')")
    frames(from_disk)
    assert saved(from_disk, "Picture (PNG)", tmp_path / "a.png").endswith(".png")
    with Image.open(tmp_path / "a.png") as image:
        width = from_disk.evaluate("document.querySelector('.d2-stage').clientWidth")
        assert abs(image.width - 2 * (width + 40)) <= 2  # a margin of 20 on both sides
        assert image.height > image.width / 2
        colours = image.convert("RGB").getcolors(1 << 24)
        dark = from_disk.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
        most = max(colours)[1]
    assert len(colours) > 200 and (sum(most) < 150) == dark
    full_pass = np.array([0xA0, 0x84, 0x68])  # the map of a run without a cache
    assert min(np.abs(np.array(colour) - full_pass).max() for _, colour in colours) <= 2


def test_the_animation_has_a_frame_a_step_and_holds_the_last(from_disk, tmp_path):
    steps = len(stored.load("d2-word").seconds)
    assert saved(from_disk, "Animation (WebP)", tmp_path / "a.webp").endswith(".webp")
    with Image.open(tmp_path / "a.webp") as film:
        assert film.format == "WEBP" and film.n_frames == steps and film.info["loop"] == 0
        looks, times = set(), []
        for k in range(film.n_frames):
            film.seek(k)
            looks.add(film.convert("RGB").tobytes())
            times.append(film.info["duration"])
    assert len(looks) == steps and times[-1] >= 2000 and max(times[:-1]) <= 250


def test_an_animation_can_be_cancelled_and_the_page_goes_on_meanwhile(from_disk):
    from_disk.get_by_role("button", name="Export", exact=True).click()
    from_disk.get_by_role("button", name="Animation (WebP)").click()
    from_disk.evaluate("D2Stage.stage.goto(3)")
    from_disk.wait_for_function("D2Stage.stage.state().step === 3")
    from_disk.get_by_role("button", name="cancel").click()
    from_disk.get_by_text("Cancelled.").wait_for()
    assert from_disk.get_by_role("button", name="Animation (WebP)").is_enabled()


def test_without_an_encoder_the_menu_says_so(from_disk):
    from_disk.evaluate(
        """() => { HTMLCanvasElement.prototype.toBlob = function (done) {
            done(new Blob([], {type: 'image/png'}));
        }; }"""
    )
    from_disk.get_by_role("button", name="Export", exact=True).click()
    from_disk.get_by_role("button", name="Animation (WebP)").click()
    from_disk.get_by_text("cannot write WebP").wait_for()


def test_a_file_offers_nothing_that_needs_the_server(from_disk):
    from_disk.get_by_role("button", name="Export", exact=True).click()
    shown = from_disk.locator(".d2-export-item:visible b").all_inner_texts()
    assert shown == ["Picture (PNG)", "Animation (WebP)"]
    from_disk.keyboard.press("Escape")
    assert from_disk.locator(".d2-export-panel").is_hidden()
    from_disk.get_by_role("tab", name="Figures").click()
    from_disk.get_by_text("need the running app").wait_for()


# ------------------------------------------------------------------------------ the live page

LIVE = ("none", "d2,current_k=2")


@pytest.fixture(scope="module")
def live(chrome, address):
    """The page with two lanes that it has run, at step 10 of the second."""
    with opened(chrome, address, lanes=LIVE) as tab:
        tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
        tab.set_viewport_size({"width": 1400, "height": 1600})  # both lanes in view
        ended(tab, 2)
        yield tab


@pytest.fixture(scope="module")
def runs():
    return [made(lane)[0] for lane in LIVE]


def copied(page, what: str) -> str:
    """Text that the menu has put on the clipboard."""
    page.get_by_role("button", name="Export", exact=True).click()
    page.get_by_role("button", name=what).click()
    page.get_by_text("is copied.").wait_for()
    page.keyboard.press("Escape")
    return page.evaluate("navigator.clipboard.readText()")


def test_the_page_taken_along_shows_the_same_without_a_network(live, chrome, runs, tmp_path):
    show(live, "Compare")
    at(live, 9, 1)
    assert saved(live, "Page (HTML)", tmp_path / "a.html").endswith(".html")
    context, asked = chrome.new_context(viewport={"width": 1400, "height": 1600}), []
    context.set_offline(True)
    page, problems = context.new_page(), []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
    page.on("request", lambda r: asked.append(r.url))
    page.goto((tmp_path / "a.html").as_uri())
    page.wait_for_selector(".d2-stage")
    show(page, "Compare")
    for step in (9, 0, 23):
        at(live, step, 1)
        at(page, step, 1)
        want = [text_at(run, min(step, len(run.seconds) - 1)) for run in runs]
        soon(lambda: lane_texts(live), want)
        soon(lambda: lane_texts(page), want)
    facts = ".d2-panel-compare .d2-facts"
    soon(page.locator(facts).all_inner_texts, live.locator(facts).all_inner_texts())
    for tab in ("Stage", "Cache", "Token"):
        show(page, tab)
        show(live, tab)
        at(live, 9, 1)
        at(page, 9, 1)
        words = f".d2-panel-{tab.lower()} .d2-sentence"
        soon(page.locator(words).all_inner_texts, live.locator(words).all_inner_texts())
    assert [url for url in asked if url[:5] not in ("file:", "blob:", "data:")] == []
    assert not problems, problems
    context.close()


def test_the_trace_taken_along_is_the_lane_in_hand(live, runs):
    for lane, run in enumerate(runs):
        assert same_run(saved_trace(live, lane), run)


def test_the_copied_cell_makes_the_run_again(live, runs):
    live.evaluate("D2Stage.stage.setLane(1)")
    live.wait_for_function("D2Stage.stage.state().lane === 1")
    said, names = io.StringIO(), {}
    with contextlib.redirect_stdout(said):
        exec(compile(copied(live, "Notebook cell"), "cell", "exec"), names)
    assert same_run(names["trace"], runs[1])
    answer = "".join(runs[1].text_of(int(i)) for i in runs[1].answer)
    assert answer.strip() in said.getvalue()


@pytest.mark.parametrize("tab", ["Stage", "Compare", "Cache", "Truth"])
def test_a_picture_of_the_live_page_is_of_its_size(live, tmp_path, tab):
    show(live, tab)
    at(live, 9, 1)
    assert saved(live, "Picture (PNG)", tmp_path / "a.png") == "d2cache-d2-step-10.png"
    with Image.open(tmp_path / "a.png") as image:
        size = live.locator(".d2-stage").bounding_box()
        assert abs(image.width - 2 * (size["width"] + 40)) <= 2  # a margin of 20 on both sides
        assert size["height"] / 2 < image.height < 2 * size["height"] + 400
        assert len(image.convert("RGB").getcolors(1 << 24)) > 200


def test_the_animation_of_the_live_page_has_a_frame_a_step(live, runs, tmp_path):
    assert saved(live, "Animation (WebP)", tmp_path / "a.webp").endswith(".webp")
    with Image.open(tmp_path / "a.webp") as film:
        assert film.n_frames == max(len(run.seconds) for run in runs)


def test_a_copied_link_makes_the_same_board_and_view_in_another_tab(live, chrome, address, runs):
    show(live, "Cache")
    at(live, 9, 1)
    live.evaluate("p => D2Stage.stage.select(p)", runs[0].prompt_length + 3)
    where = ["tab=cache", "at=10", "see=2", f"pos={runs[0].prompt_length + 4}"]
    live.wait_for_function(
        "where => where.every(one => location.search.slice(1).split('&').includes(one))", arg=where
    )
    link = copied(live, "Copy link")
    assert link == live.url and link.startswith(address)
    with open_tab(chrome, link) as page:
        page.set_viewport_size({"width": 1400, "height": 1600})
        ended(page, 2)
        view = ("tab", "step", "lane", "selected", "clock")
        soon(lambda: [state(page)[k] for k in view], [state(live)[k] for k in view])
        assert state(page)["board"] != state(live)["board"], "another run, not the same one"
        show(page, "Compare")
        soon(lambda: lane_texts(page), [text_at(run, 9) for run in runs])
    live.evaluate("D2Stage.stage.select(null)")
