"""A run whose answer is a grid, in a file that plays it offline."""

import random

import pytest
from playwright.sync_api import expect

import d2cache
from analysis.page.export import lanes, page
from d2cache.teaching import tasks
from d2cache.trace import Trace


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    model = d2cache.load("tiny", device="cpu")
    prompt = tasks.draw("sudoku", random.Random(5), held_out=True).prompt
    decoder = d2cache.make_decoder("confidence", tokens_per_step=9)
    traces = [
        Trace.record(d2cache.generate(model, model.encode(prompt), policy, decoder, gen_length=83))
        for policy in ("none", "d2")
    ]
    path = tmp_path_factory.mktemp("file") / "board.html"
    path.write_text(page(lanes(traces), "A puzzle", {"tab": "watch", "at": 2}))
    return path


@pytest.mark.parametrize(("width", "height"), [(1440, 900), (360, 740)])
def test_each_lane_has_a_board_that_fits_the_screen(chrome, file, width, height):
    tab = chrome.new_page(viewport={"width": width, "height": height})
    tab.goto(file.as_uri())
    boards = tab.get_by_role("grid")
    expect(boards).to_have_count(2)
    for board in boards.all():
        expect(board.get_by_role("gridcell")).to_have_count(81)
        box = board.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= width
        assert abs(box["width"] - box["height"]) < 3, "square"
        cell = board.get_by_role("gridcell").first.bounding_box()
        assert cell["height"] >= 30
    first, second = (board.bounding_box() for board in boards.all())
    beside = abs(first["y"] - second["y"]) < 2
    assert beside == (width > 1000)
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    expect(tab.locator(".d2-watch-answer").first.locator(".d2-chip")).to_have_count(2)
    tab.close()
