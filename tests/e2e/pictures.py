"""Screenshots for the README: python tests/e2e/pictures.py [FOLDER] [NAME...]

Runs stories on the page and saves what it shows: the stage light, dark and at phone width, and its
tabs Compare, Truth and Attention. Each is a PNG below MOST bytes.
"""

import io
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2]))
import browser

from analysis.page import lessons

MOST = 300_000
SIZES = {"light": (1500, 1120, "light"), "dark": (1500, 1120, "dark"), "phone": (390, 1400, "dark")}
TABS = {"compare": "light", "truth": "dark", "attention": "light"}  # of the stage alone


def main():
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else browser.ROOT / "assets" / "pictures"
    wanted = sys.argv[2:] or [*SIZES, *TABS]
    folder.mkdir(parents=True, exist_ok=True)
    with (
        sync_playwright() as playwright,
        browser.server(Path(tempfile.mkdtemp()) / "log") as (url, _),
    ):
        chrome = playwright.chromium.launch(executable_path=browser.chromium(), args=browser.FLAGS)
        for name in wanted:
            width, height, scheme = SIZES.get(name) or (1500, 1400, TABS[name])
            context = chrome.new_context(
                viewport={"width": width, "height": height}, color_scheme=scheme
            )
            page = context.new_page()
            page.set_default_timeout(120_000)
            page.goto(url)
            page.wait_for_function("globalThis.D2Stage?.stage && D2Stage.stage.state().steps > 0")
            picture = whole_page(page, name) if name in SIZES else one_tab(page, name)
            save(picture, folder / f"{name}.png")
            context.close()
        chrome.close()


def whole_page(page, name: str) -> bytes:
    """The page after a run, at a step where much is known and much is masked."""
    page.click("#run")
    page.wait_for_function(
        "!D2Stage.stage.state().run.startsWith('stored') && D2Stage.stage.state().status === 'done'"
    )
    page.evaluate("D2Stage.stage.goto(Math.round(D2Stage.stage.state().steps * 0.7))")
    page.wait_for_timeout(800)
    if name == "phone":
        page.locator(".d2-stats").scroll_into_view_if_needed()
        page.evaluate("document.querySelector('.d2-stats').scrollIntoView()")
    else:
        page.locator(".d2-chips:not(.d2-prompt) .d2-chip").nth(10).hover()
    page.wait_for_timeout(400)
    return page.screenshot()


def one_tab(page, name: str) -> bytes:
    """The stage with three lanes of which one goes stale, shown in one tab."""
    prompt = next(one for one in lessons.presets() if one["key"] == "prefix-stale")["query"]
    prompt = next(part for part in prompt.split("&") if part.startswith("prompt="))
    query = f"{prompt}&gen=32&block=16&truth=1&lane=none&lane=prefix&lane=d2"
    page.evaluate("query => { D2Stage.stage.send(query); }", query)
    page.wait_for_function(
        "D2Stage.stage.state().lanes === 3 && D2Stage.stage.state().status === 'done'"
    )
    page.wait_for_function("document.querySelectorAll('.d2-lane').length === 3")
    see, step = {"compare": (1, 16), "truth": (2, 14), "attention": (2, 9)}[name]
    page.evaluate(
        """([tab, lane, step]) => { const { stage } = D2Stage;
        stage.setLane(lane); stage.show(tab); stage.goto(step); }""",
        [name, see, step],
    )
    if name == "attention":
        page.locator(".d2-square-box:not(.d2-old)").wait_for()
    page.wait_for_timeout(1500)
    return page.locator("#stage").screenshot()


def save(picture: bytes, path: Path):
    """RuntimeError for a picture that is too large: a palette would change what colours say."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    image.save(path, optimize=True)
    size = path.stat().st_size
    if size > MOST:
        raise RuntimeError(f"{path.name} has {size} bytes; {MOST} are allowed: make it smaller")
    print(f"{path.name}: {image.width} x {image.height}, {size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
