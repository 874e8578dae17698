"""A run whose answer is a grid, as a visitor meets it."""

import random
from urllib.parse import urlencode

import pytest
from playwright.sync_api import expect
from test_page import state

from analysis.tools.browser import open_tab
from d2cache.teaching import tasks

CELLS = 81
SHOWN = ".d2-panel:not([hidden]) .d2-cell"


@pytest.fixture(scope="module")
def prompt():
    return tasks.draw("sudoku", random.Random(5), held_out=True).prompt


def lit(tab) -> list[tuple[int, str]]:
    """Position and text of the cells that are shown as just written."""
    return tab.eval_on_selector_all(
        f"{SHOWN}-now", "all => all.map(el => [Number(el.dataset.p), el.textContent.trim()])"
    )


def test_a_sudoku_is_a_board_on_which_the_current_step_is_lit(chrome, address, prompt):
    query = urlencode({"prompt": prompt, "gen": CELLS, "full": 1, "lane": "d2", "tab": "watch"})
    with open_tab(chrome, f"{address}/?{query}", first_visit=True) as tab:
        tab.wait_for_function(
            """() => { const { page } = D2Stage.stage;
            return page.run.grid && page.run.records.length > 4; }"""
        )
        tab.evaluate("D2Stage.stage.goto(3)")
        tab.wait_for_function("document.querySelector('.d2-range').value === '3'")
        cells = tab.locator(SHOWN)
        expect(cells).to_have_count(CELLS)
        expect(tab.get_by_role("gridcell")).to_have_count(CELLS)
        given = tab.evaluate(
            "D2Stage.stage.page.run.grid.given.map(p => "
            "D2Stage.stage.page.run.prompt[p].trim()).join('')"
        )
        assert given == prompt.split()[-1]
        # where the answer has not been written yet, a cell is as the prompt has it
        open_ = tab.eval_on_selector_all(
            SHOWN,
            """all => all.map(el => el.classList.contains("d2-cell-masked") ? "0"
              : el.ariaLabel.includes("written") ? "?" : el.textContent)""",
        )
        assert all(a in (b, "?") for a, b in zip(open_, given, strict=True)), (open_, given)
        assert open_.count("?") == 4, "one cell a step"
        (wrote,) = tab.evaluate("D2Stage.stage.page.run.records[3].w")
        ((at, _),) = lit(tab)
        assert at == wrote[0]

        # a chosen cell is chosen everywhere; what it reads is laid over the board
        first = cells.first
        first.focus()
        tab.keyboard.press("ArrowDown")
        tab.keyboard.press("ArrowRight")
        expect(cells.nth(10)).to_be_focused()
        expect(tab.get_by_role("tooltip")).to_contain_text("row 2, column 2")
        tab.keyboard.press("Enter")
        expect(cells.nth(10)).to_have_attribute("aria-selected", "true")
        assert state(tab)["step"] == 3, "arrow keys walk the board, not the run"
        assert state(tab)["selected"] == tab.evaluate("D2Stage.stage.page.run.grid.at") + 10
        expect(tab.locator(".d2-grid-says")).to_contain_text("Row 2, column 2:")
        expect(tab.locator(".d2-grid-heated")).to_have_count(1)
        for other in ("stage", "compare"):
            tab.evaluate("tab => D2Stage.stage.show(tab)", other)
            expect(tab.locator(SHOWN)).to_have_count(CELLS)
            expect(tab.locator(f"{SHOWN}-now")).to_have_attribute("data-p", str(at))
