"""One server for the page tests; each test has a tab of its own."""

import pytest

from analysis.tools import browser


@pytest.fixture(scope="session")
def address(tmp_path_factory):
    with browser.server(tmp_path_factory.mktemp("app") / "log") as (url, _):
        yield url


@pytest.fixture
def tab(chrome, address):
    with browser.open_tab(chrome, address) as page:
        yield page
