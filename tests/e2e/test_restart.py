"""The server goes away in the middle of a run and comes back: the page says so and goes on."""

from analysis.tools import browser

PROMPT = "Ann has 31 pens. She buys 3 bags of 4 pens. How many pens does Ann have?"
LINK = "?lane=none&gen=256&full=1&prompt=" + PROMPT.replace(" ", "+")
TYPED = PROMPT + " And Bob?"


def box(tab) -> str:
    return tab.locator("#prompt textarea").input_value()


def stage(tab) -> dict:
    return tab.evaluate("D2Stage.stage.state()")


def test_a_run_goes_on_and_what_was_shown_and_typed_stays(chrome, tmp_path):
    with browser.server(tmp_path / "first") as (address, _):
        context = chrome.new_context()
        tab = context.new_page()
        tab.set_default_timeout(120_000)
        tab.goto(f"{address}/{LINK}")
        tab.wait_for_function("() => globalThis.D2Stage?.stage?.state().steps > 5")
        tab.locator("#prompt textarea").fill(TYPED)
    before = stage(tab)
    assert before["status"] == "running" and before["steps"] > 5
    tab.wait_for_selector("text=The server cannot be reached.")
    assert stage(tab)["run"] == before["run"] and box(tab) == TYPED
    tab.evaluate("globalThis.notLoadedAgain = true")
    # what the page shows between its loading and the first step of the new run
    tab.add_init_script(
        """addEventListener("load", () => { const seen = setInterval(() => {
        const state = globalThis.D2Stage?.stage?.state();
        if (state?.run) { globalThis.shownFirst ??= state; clearInterval(seen); } }, 5); });"""
    )
    port = int(address.rpartition(":")[2])
    with browser.server(tmp_path / "second", port=port):
        tab.wait_for_function("() => !globalThis.notLoadedAgain && globalThis.shownFirst")
        shown = tab.evaluate("globalThis.shownFirst")
        assert shown["run"] == before["run"] and shown["steps"] >= before["steps"]
        tab.wait_for_function(
            "old => D2Stage.stage.state().run !== old && D2Stage.stage.state().steps > 5",
            arg=before["run"],
        )
        assert box(tab) == TYPED
        assert not tab.locator("text=The server cannot be reached.").is_visible()
        context.close()
