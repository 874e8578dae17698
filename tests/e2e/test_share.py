"""What is taken along, in a real browser and from a disk: pages that play, pictures that open."""

import numpy as np
import pytest
from PIL import Image

from analysis import export


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A page of two lanes and the page of the stored runs."""
    folder = tmp_path_factory.mktemp("pages")
    lanes = export.lanes([export.stored("none-word"), export.stored("d2-word")])
    (folder / "lanes.html").write_text(export.page(lanes, "Two <lanes>"), encoding="utf-8")
    (folder / "all.html").write_text(export.bundled_page(), encoding="utf-8")
    return folder


@pytest.fixture
def opened(chrome, pages, request):
    """A page opened from the disk: an error, or any request but for the file, fails the test."""
    name, width, scheme = getattr(request, "param", ("lanes", 1200, "light"))
    context = chrome.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, accept_downloads=True
    )
    page, problems = context.new_page(), []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
    page.on("request", lambda r: problems.append(r.url) if r.url[:5] == "http:" else None)
    page.goto((pages / f"{name}.html").as_uri())
    page.wait_for_selector(".d2-stage")
    yield page
    context.close()
    assert not problems, problems


def state(page) -> dict:
    return page.evaluate("d2stage.state()")


@pytest.mark.parametrize(
    "opened", [("lanes", 1200, "light"), ("lanes", 360, "dark")], indirect=True
)
def test_a_page_from_the_disk_plays_with_all_its_lanes(opened):
    assert state(opened)["lanes"] == 2 and state(opened)["status"] == "done"
    opened.locator(".d2-range").focus()
    opened.keyboard.press("Home")
    opened.wait_for_function("d2stage.state().step === 0")
    opened.keyboard.press("ArrowRight")
    opened.wait_for_function("d2stage.state().step === 1")
    assert opened.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert "Run for a live one" not in opened.locator("main").inner_text()


@pytest.mark.parametrize("opened", [("all", 1200, "dark")], indirect=True)
def test_the_static_page_shows_each_stored_run_and_its_address_says_which(opened):
    for name, one in export.bundled().items():
        opened.get_by_role("button", name=one["title"], exact=True).click()
        opened.wait_for_function("name => d2stage.state().run === name", arg=name)
        assert state(opened)["steps"] == len(export.stored(name).seconds)
        assert opened.locator(".file-words").inner_text() == one["words"]
        assert opened.url.endswith(f"#{name}")
    opened.reload()
    assert state(opened)["run"] == name


def saved(page, what: str, path):
    page.get_by_role("button", name="Export", exact=True).click()
    with page.expect_download() as download:
        page.get_by_role("button", name=what).click()
    download.value.save_as(path)
    page.keyboard.press("Escape")
    return download.value.suggested_filename


@pytest.mark.parametrize(
    "opened", [("lanes", 1200, "light"), ("lanes", 360, "dark")], indirect=True
)
def test_a_picture_of_the_view_is_no_blank_sheet(opened, tmp_path):
    opened.evaluate("d2stage.show('stage')")
    opened.wait_for_timeout(300)
    assert saved(opened, "Picture (PNG)", tmp_path / "a.png").endswith(".png")
    with Image.open(tmp_path / "a.png") as image:
        width = opened.evaluate("document.querySelector('.d2-stage').clientWidth")
        assert abs(image.width - 2 * width) <= 2 and image.height > image.width / 2
        colours = image.convert("RGB").getcolors(1 << 24)
        dark = opened.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
        most = max(colours)[1]
    assert len(colours) > 200 and (sum(most) < 150) == dark
    full_pass = np.array([0xA0, 0x84, 0x68])  # the map of a run without a cache
    assert min(np.abs(np.array(colour) - full_pass).max() for _, colour in colours) <= 2


def test_the_animation_has_a_frame_a_step_and_holds_the_last(opened, tmp_path):
    steps = len(export.stored("d2-word").seconds)
    assert saved(opened, "Animation (WebP)", tmp_path / "a.webp").endswith(".webp")
    with Image.open(tmp_path / "a.webp") as film:
        assert film.format == "WEBP" and film.n_frames == steps and film.info["loop"] == 0
        looks, times = set(), []
        for k in range(film.n_frames):
            film.seek(k)
            looks.add(film.convert("RGB").tobytes())
            times.append(film.info["duration"])
    assert len(looks) == steps and times[-1] >= 2000 and max(times[:-1]) <= 250


def test_an_animation_can_be_cancelled_and_the_page_goes_on_meanwhile(opened):
    opened.get_by_role("button", name="Export", exact=True).click()
    opened.get_by_role("button", name="Animation (WebP)").click()
    opened.evaluate("d2stage.goto(3)")
    opened.wait_for_function("d2stage.state().step === 3")
    opened.get_by_role("button", name="cancel").click()
    opened.get_by_text("Cancelled.").wait_for()
    assert opened.get_by_role("button", name="Animation (WebP)").is_enabled()


def test_without_an_encoder_the_menu_says_so(opened):
    opened.evaluate(
        """() => { HTMLCanvasElement.prototype.toBlob = function (done) {
            done(new Blob([], {type: 'image/png'}));
        }; }"""
    )
    opened.get_by_role("button", name="Export", exact=True).click()
    opened.get_by_role("button", name="Animation (WebP)").click()
    opened.get_by_text("cannot write WebP").wait_for()


def test_a_file_offers_nothing_that_needs_the_server(opened):
    opened.get_by_role("button", name="Export", exact=True).click()
    shown = opened.locator(".d2-export-item:visible b").all_inner_texts()
    assert shown == ["Picture (PNG)", "Animation (WebP)"]
    opened.keyboard.press("Escape")
    assert opened.locator(".d2-export-panel").is_hidden()
    opened.get_by_role("tab", name="Figures").click()
    opened.get_by_text("need the running app").wait_for()
