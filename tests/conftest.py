"""Imported before any test: the package goes first, since it sets how torch's threads wait."""

import pytest

import d2cache  # noqa: F401
from analysis.tools import browser


@pytest.fixture(scope="session")
def chrome():
    """One browser for all tests: a second Playwright in the same process would be refused."""
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=60_000)  # as patient as the pages: a busy machine is no fault
    path = browser.chromium()
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=browser.FLAGS)
        yield running
        running.close()
