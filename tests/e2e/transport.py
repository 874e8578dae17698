"""A run while it is made, told what to do as a visitor does: by the stage's transport."""

from urllib.parse import urlencode

STORY = "Tell a story about a brave fox named Max who finds a key in the forest."
# Two passes over a thousand positions for each of 256 tokens take minutes anywhere: whatever a
# test does to this run, it is not at its end.
LONG = urlencode(
    {"prompt": " ".join([STORY] * 30), "lane": "none", "gen": 256, "full": 1, "truth": 1}
)


def begin_long(tab) -> None:
    """A run that goes on for as long as a test may take; it has made a step."""
    tab.evaluate("query => D2Stage.stage.send(query)", LONG)
    tab.wait_for_function(
        "(({status, received, paused}) => status === 'running' && !paused && received > 0)"
        "(D2Stage.stage.state())"
    )


def begin_paused(tab) -> None:
    """A run of what the controls say that has made one step and waits, however quick it is. The
    page shows no button for this, which the stage's own presses once a run is there."""
    press(tab, "step")
    tab.wait_for_function("D2Stage.stage.state().paused && D2Stage.stage.state().received === 1")


def press(tab, name: str) -> None:
    """What the stage presses: pause, resume, step or stop."""
    tab.evaluate("name => document.getElementById(name).click()", name)


def step(tab) -> None:
    """The next step of a paused run, and until it is there."""
    made = tab.evaluate("D2Stage.stage.state().received")
    tab.click(".d2-transport [aria-label='Step forward']")
    tab.wait_for_function("n => D2Stage.stage.state().received > n", arg=made)
    tab.wait_for_function(
        "D2Stage.stage.state().paused || D2Stage.stage.state().status !== 'running'"
    )


def pause(tab) -> None:
    tab.click(".d2-play[aria-label=Pause]")


def resume(tab) -> None:
    tab.click(".d2-play[aria-label=Play]")


def stop(tab) -> None:
    tab.click("[aria-label='End the run here']")
