"""Measure the first screen as a newcomer meets it: python -m analysis.tools.first_screen

Starts `python app.py` and opens the page, as on a first visit, at several sizes, light and dark.
Prints for each: words and controls within the window (the tokens of the runs, which are the
picture, are counted apart), the cumulative layout shift, when the stage was first painted and when
it first moved by itself, both since navigation, and what axe-core finds on the whole page. With -o
also pictures of the first ten seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from dataclasses import dataclass
from pathlib import Path

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import sync_playwright

from analysis.tools import browser

SIZES = ((360, 740), (1024, 768), (1440, 900), (1920, 1080))
SCHEMES = ("light", "dark")
MOMENTS = (0.5, 2, 5, 10)  # seconds after navigation at which pictures are taken
MOST_SECONDS = 60  # that the stage may take to be there

# Set up before the page is: shifts, and the times of the stage's first paint and first own step.
WATCH = """(() => {
  window.seen = {shift: 0, painted: null, moved: null};
  new PerformanceObserver((list) => {
    for (const e of list.getEntries()) if (!e.hadRecentInput) seen.shift += e.value;
  }).observe({type: 'layout-shift', buffered: true});
  let first = null;
  document.addEventListener('d2:paint', ({detail}) => {
    if (detail.step < 0) return;
    seen.painted ??= performance.now();
    first ??= detail.step;
    if (detail.step !== first) seen.moved ??= performance.now();
  }, true);
})()"""

# Words that can be read in the window: of the run's tokens, and of everything else.
WORDS = """() => {
  const words = {all: 0, tokens: 0};
  const count = (text) => text.split(/\\s+/).filter((word) => /[\\p{L}\\p{N}]/u.test(word)).length;
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = walk.nextNode());) {
    const el = node.parentElement, range = document.createRange();
    if (!el.checkVisibility({opacityProperty: true, visibilityProperty: true})) continue;
    if (el.closest('script, style, noscript, .d2-sr, .d2-skip')) continue;
    range.selectNode(node);
    const box = range.getBoundingClientRect();
    if (!box.width || box.bottom <= 0 || box.top >= innerHeight) continue;
    words[el.closest('.d2-chips') ? 'tokens' : 'all'] += count(node.textContent);
  }
  for (const field of document.querySelectorAll('textarea, input:not([type=range])'))
    if (field.checkVisibility() && field.getBoundingClientRect().top < innerHeight)
      words.all += count(field.value);
  return words;
}"""
CONTROLS = """() => [...document.querySelectorAll(
    'button, input, select, textarea, summary, a[href]')]
  .filter((el) => {
    const box = el.getBoundingClientRect();
    return !el.matches('.d2-skip:not(:focus)')  // out of sight
      && el.checkVisibility({visibilityProperty: true}) && box.width > 1 && box.height > 1
      && box.bottom > 0 && box.top < innerHeight && box.right > 0;
  })
  .map((el) => el.ariaLabel || el.textContent.trim() || el.closest('[id]')?.id || el.tagName)"""


@dataclass(frozen=True)
class Seen:
    """What a newcomer has met: words and controls within the window, the tokens of the runs apart;
    the cumulative layout shift; and when the stage was first painted and first moved by itself, in
    ms since navigation."""

    words: int
    tokens: int
    controls: list[str]
    shift: float
    painted: float
    moved: float


@contextlib.contextmanager
def visit(chrome, address: str, size: tuple[int, int], **settings):
    """A page that is being opened by somebody who has not been here; `settings` are those of a
    Playwright context, such as color_scheme."""
    width, height = size
    context = chrome.new_context(viewport={"width": width, "height": height}, **settings)
    context.add_init_script(WATCH)
    page = context.new_page()
    page.set_default_timeout(1000 * MOST_SECONDS)
    page.goto(address, wait_until="commit")
    yield page
    context.close()


def seen(page) -> Seen:
    """What is on the page as soon as the stage has moved by itself."""
    page.wait_for_function("seen.moved")
    words, controls = page.evaluate(WORDS), page.evaluate(CONTROLS)
    return Seen(words["all"], words["tokens"], controls, **page.evaluate("seen"))


def faults(page) -> list[str]:
    """Serious and critical faults that axe-core finds on the whole page."""
    found = Axe().run(page).response["violations"]
    bad = (one for one in found if one["impact"] in ("serious", "critical"))
    return [f"{one['id']} x {len(one['nodes'])}: {one['nodes'][0]['html'][:90]}" for one in bad]


def take_pictures(page, folder: Path, name: str) -> None:
    before = 0.0
    for moment in MOMENTS:
        page.wait_for_timeout(1000 * (moment - before))
        page.screenshot(path=folder / f"{name}-{moment:g}s.png")
        before = moment


def look(chrome, address: str, size: tuple[int, int], scheme: str, folder: Path | None) -> None:
    """One first visit: prints what was measured."""
    width, height = size
    with visit(chrome, address, size, color_scheme=scheme) as page:
        if folder:
            take_pictures(page, folder, f"{width}-{scheme}")
        met = seen(page)
        print(
            f"{width} x {height} {scheme:5}  words {met.words:4} (+ {met.tokens} tokens)"
            f"  controls {len(met.controls):3}  shift {met.shift:.3f}"
            f"  painted {met.painted:6.0f} ms  moving {met.moved:6.0f} ms"
        )
        print(f"    controls: {', '.join(name[:24] for name in met.controls)}")
        for fault in faults(page):
            print(f"    axe: {fault}")


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.tools.first_screen",
        description="Measure the first screen as a newcomer meets it.",
    )
    parser.add_argument("-o", "--out", type=Path, help="a folder for pictures")
    parser.add_argument("--address", help="of a page that runs already")
    parser.add_argument("--sizes", nargs="*", type=int, help="widths to look at; default: all")
    args = parser.parse_args(argv)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
    sizes = [size for size in SIZES if not args.sizes or size[0] in args.sizes]
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        chrome = playwright.chromium.launch(executable_path=browser.chromium(), args=browser.FLAGS)
        with browser.served(args.address, Path(folder) / "log") as address:
            for size in sizes:
                for scheme in SCHEMES:
                    look(chrome, address, size, scheme, args.out)
        chrome.close()


if __name__ == "__main__":
    main()
