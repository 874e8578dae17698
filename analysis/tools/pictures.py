"""Take the README's screenshots: python -m analysis.tools.pictures [--out FOLDER] [NAME...]

Saves what the page shows: what it opens with, also on a phone, a run seen from the inside, and the
tabs Compare, Truth and Attention. Each is a PNG of at most 300 kB.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from analysis.page import lessons
from analysis.tools import browser
from d2cache import command

MOST = 300_000
FOLDER = browser.ROOT / "assets" / "pictures"
SIZES = {"light": (1440, 860, "light"), "dark": (1500, 1120, "dark"), "phone": (390, 844, "dark")}
TABS = {"compare": "light", "truth": "dark", "attention": "light"}  # of the stage alone


def main(argv=None) -> int:
    return command.guarded("pictures", lambda: make(argv))


def make(argv) -> None:
    parser = command.Parser(
        prog="python -m analysis.tools.pictures", description=__doc__.split("\n\n")[1]
    )
    known = [*SIZES, *TABS]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: {', '.join(known)}")
    parser.add_argument("--out", type=Path, default=FOLDER, metavar="FOLDER")
    args = parser.parse_args(argv)
    unknown = [name for name in args.names if name not in known]
    if unknown:
        parser.error(f"there is no picture {unknown[0]!r}; choose from {', '.join(known)}")
    args.out.mkdir(parents=True, exist_ok=True)
    log = Path(tempfile.mkdtemp()) / "log"
    with sync_playwright() as playwright, browser.server(log) as (url, _):
        chrome = playwright.chromium.launch(executable_path=browser.chromium(), args=browser.FLAGS)
        for name in args.names or known:
            save(take(chrome, url, name), args.out / f"{name}.png")
        chrome.close()


def take(chrome, url: str, name: str) -> bytes:
    """One picture, as PNG."""
    width, height, scheme = SIZES.get(name) or (1500, 1400, TABS[name])
    context = chrome.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(120_000)
    page.goto(url)
    page.wait_for_function("globalThis.D2Stage?.stage && D2Stage.stage.state().steps > 0")
    picture = whole_page(page, name) if name in SIZES else one_tab(page, name)
    context.close()
    return picture


def whole_page(page, name: str) -> bytes:
    """What the page opens with, at a step where much is written and much is masked; `dark`: a run
    of the reader's own, from the inside."""
    if name == "dark":
        page.click("#run")
        page.wait_for_function(
            "D2Stage.stage.state().lanes === 1 && D2Stage.stage.state().status === 'done'"
        )
        page.click(".d2-unfold")
    page.evaluate("D2Stage.stage.goto(Math.round(D2Stage.stage.state().steps * 0.5))")
    page.wait_for_timeout(800)
    if name == "dark":
        page.locator(".d2-panel-stage .d2-chips:not(.d2-prompt) .d2-chip").nth(10).hover()
    page.wait_for_timeout(400)
    return page.screenshot()


def one_tab(page, name: str) -> bytes:
    """One tab of the stage, with three lanes, one of which goes stale."""
    prompt = next(one for one in lessons.presets() if one["key"] == "prefix-stale")["query"]
    prompt = next(part for part in prompt.split("&") if part.startswith("prompt="))
    query = f"{prompt}&gen=32&block=16&truth=1&lane=none&lane=prefix&lane=d2"
    page.evaluate("query => { D2Stage.stage.send(query); }", query)
    page.wait_for_function(
        "D2Stage.stage.state().lanes === 3 && D2Stage.stage.state().status === 'done'"
    )
    page.evaluate("D2Stage.stage.show('compare')")
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


def save(picture: bytes, path: Path) -> None:
    """RuntimeError for a picture that is too large: a palette would change the colours."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    image.save(path, optimize=True)
    size = path.stat().st_size
    if size > MOST:
        raise RuntimeError(
            f"{path.name} has {size} bytes; {MOST} are allowed: make the page smaller"
        )
    print(f"{path.name}: {image.width} x {image.height}, {size / 1e3:.0f} kB")


if __name__ == "__main__":
    sys.exit(main())
