"""A message costs what it changes, a visitor costs little, and Gradio's answers stay the same."""

import asyncio

import gradio as gr
import pytest
from gradio.state_holder import SessionState

from analysis.page.untouched import Untouched

UPDATES = (
    {"board": "a message"},
    {"said": "Running.", "download": gr.DownloadButton(value=None, interactive=False)},
    {"awaited": "tiny", "board": ""},
    {"said": gr.skip()},
)


class Quick(Untouched, gr.Blocks):
    pass


def made(kind):
    """A page of this kind, its components by name and its one handler."""
    with kind() as page:
        parts = {"board": gr.HTML("first"), "said": gr.HTML(), "awaited": gr.State("")}
        parts["download"] = gr.DownloadButton("Download", interactive=False)
        page.load(lambda: None, None, list(parts.values()))
    (handler,) = page.fns.values()
    return page, parts, handler


def answers(kind) -> list:
    page, parts, handler = made(kind)
    state = SessionState(page)

    async def all_of_them():
        return [
            await page.postprocess_data(handler, {parts[n]: v for n, v in one.items()}, state)
            for one in UPDATES
        ]

    told = asyncio.run(all_of_them())
    return [*told, state[parts["awaited"]._id], list(state.components)]


def known(answer):
    """An answer without the "props" that Gradio puts into its updates and reads nowhere."""
    if isinstance(answer, dict):
        return {name: value for name, value in answer.items() if name != "props"}
    return answer


def test_what_the_browser_is_told_and_the_session_holds_is_what_gradio_makes():
    own, quick = answers(gr.Blocks), answers(Quick)
    for mine, its in zip(own[:-2], quick[:-2], strict=True):
        assert [known(one) for one in mine] == [known(one) for one in its]
    assert own[-2] == quick[-2] == "tiny"
    # Gradio's has more: it keeps another description for each component that it made again
    assert [one["props"].get("value") for one in quick[-1]] == ["", "Running.", None, None]


@pytest.mark.parametrize("changed", ["board", "said"])
def test_components_that_a_message_leaves_are_not_made_again(changed):
    page, parts, handler = made(Quick)
    state = SessionState(page)
    before = dict(state.blocks_config.blocks), dict(state.config_values)
    asyncio.run(page.postprocess_data(handler, {parts[changed]: "new"}, state))
    for name, part in parts.items():
        if name != changed:
            assert state.blocks_config.blocks[part._id] is before[0][part._id], name
            assert state.config_values[part._id] is before[1][part._id], name


def test_visitors_have_the_pages_descriptions_and_values_of_their_own():
    page, parts, handler = made(Quick)
    one, two = SessionState(page), SessionState(page)
    at = parts["board"]._id
    assert (
        one.config_values[at]["props"]["js_on_load"] is two.config_values[at]["props"]["js_on_load"]
    )
    asyncio.run(page.postprocess_data(handler, {parts["board"]: gr.HTML("mine")}, one))
    assert one.config_values[at]["props"]["value"] == "mine"
    assert two.config_values[at]["props"]["value"] == "first"
    assert SessionState(page).config_values[at]["props"]["value"] == "first"


def test_a_component_is_described_once_for_all_visitors(monkeypatch):
    page, parts, _ = made(Quick)
    SessionState(page)
    monkeypatch.setattr(gr.HTML, "get_config", lambda *_: pytest.fail("described again"))
    SessionState(page)
