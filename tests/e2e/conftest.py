"""One browser for all page tests; each test has a tab of its own."""

import contextlib
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import browser


@pytest.fixture(scope="session")
def address(tmp_path_factory):
    with browser.server(tmp_path_factory.mktemp("app") / "log") as (url, _):
        yield url


@pytest.fixture(scope="session")
def chrome():
    from playwright.sync_api import sync_playwright

    path = browser.chromium()
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=browser.FLAGS)
        yield running
        running.close()


@pytest.fixture
def tab(chrome, address):
    """A fresh tab on the page; console errors of the page fail the test."""
    with open_tab(chrome, address) as page:
        yield page


@contextlib.contextmanager
def open_tab(chrome, address):
    context = chrome.new_context(viewport={"width": 1400, "height": 950}, accept_downloads=True)
    page, problems = context.new_page(), []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
    page.set_default_timeout(60_000)
    page.goto(address)
    page.wait_for_selector(".d2-stage")
    page.wait_for_function("window.d2stage !== undefined")
    yield page
    context.close()
    assert not problems, problems
