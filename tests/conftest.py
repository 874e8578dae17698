"""Imported before any test: the package goes first, since it sets how torch's threads wait."""

import pytest

import d2cache  # noqa: F401
from analysis.tools import browser


@pytest.fixture(scope="session")
def chrome():
    """One browser for all tests: a second Playwright in the same process would be refused."""
    from playwright.sync_api import sync_playwright

    path = browser.chromium()
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=browser.FLAGS)
        yield running
        running.close()
