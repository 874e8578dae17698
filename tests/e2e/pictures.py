"""Screenshots for the README: python tests/e2e/pictures.py [FOLDER]

Runs one story on the page and saves it light, dark and at phone width.
"""

import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).parent))
import browser

SIZES = {"light": (1500, 1010, "light"), "dark": (1500, 1010, "dark"), "phone": (390, 1400, "dark")}


def main():
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else browser.ROOT / "assets" / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    with (
        sync_playwright() as playwright,
        browser.server(Path(tempfile.mkdtemp()) / "log") as (url, _),
    ):
        chrome = playwright.chromium.launch(executable_path=browser.chromium(), args=browser.FLAGS)
        for name, (width, height, scheme) in SIZES.items():
            context = chrome.new_context(
                viewport={"width": width, "height": height}, color_scheme=scheme
            )
            page = context.new_page()
            page.goto(url)
            page.wait_for_function("window.d2stage !== undefined")
            page.click("#run")
            page.wait_for_function(
                "d2stage.state().run !== 'stored' && d2stage.state().status === 'done'"
            )
            page.evaluate("d2stage.goto(Math.round(d2stage.state().steps * 0.7))")
            page.wait_for_timeout(800)
            if name == "phone":
                page.locator("#stage").scroll_into_view_if_needed()
            else:
                page.locator(".d2-chips:not(.d2-prompt) .d2-chip").nth(10).hover()
            page.wait_for_timeout(300)
            page.screenshot(path=folder / f"{name}.png")
            context.close()
        chrome.close()


if __name__ == "__main__":
    main()
