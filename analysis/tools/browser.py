"""A Chromium and a server of the page for it, for the page tests and for the commands here."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# errors that Gradio logs when a page is left or reloaded while a response is on its way
LEAVING = ("AbortError: signal is aborted", "Unexpected error Connection errored out")
# what the page remembers, set before its first visit in this tab alone: a test may change it
BEEN_HERE = """if (location.protocol.startsWith("http") && !localStorage.getItem("d2-been")) {
  localStorage.setItem("d2-been", "1");
  localStorage.setItem("d2-inside", "stage");
  localStorage.setItem("d2-folds", '["more"]');
}"""
NEEDED = (
    "a Chromium is needed: install Debian's package (apt-get install chromium), "
    "or run python -m playwright install chromium"
)


@functools.cache
def chromium() -> str:
    """Path of a Chromium, installed now if there is none; RuntimeError if that fails."""
    found = _installed()
    if found:
        return found
    if hasattr(os, "geteuid") and os.geteuid() == 0 and shutil.which("apt-get"):
        for command in (["apt-get", "update"], ["apt-get", "install", "-y", "chromium"]):
            subprocess.run(command, capture_output=True, timeout=900)
    if not _installed():
        install = [sys.executable, "-m", "playwright", "install", "chromium"]
        subprocess.run(install, capture_output=True, timeout=900)
    found = _installed()
    if not found:
        raise RuntimeError(NEEDED)
    return found


def _installed() -> str | None:
    for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"):
        if shutil.which(name):
            return shutil.which(name)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
    return own if Path(own).exists() else None


@contextlib.contextmanager
def server(log: Path, port: int = 0, **settings: str):
    """Run `python app.py` on this port, 0 for a free one, with these environment variables; yields
    its address and the moment it was started, in seconds of `time.perf_counter`."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server itself does
        probe.bind(("127.0.0.1", port))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    env = os.environ | {"GRADIO_SERVER_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "False"}
    env |= settings
    with log.open("w") as out:
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "app.py"], cwd=ROOT, env=env, stdout=out, stderr=subprocess.STDOUT
        )
        try:
            while True:
                with contextlib.suppress(urllib.error.URLError, ConnectionError):
                    urllib.request.urlopen(address + "/config", timeout=5)
                    break
                if process.poll() is not None or time.perf_counter() - started > 300:
                    raise RuntimeError(f"app.py did not come up:\n{log.read_text()[-2000:]}")
                time.sleep(0.05)
            yield address, started
        finally:
            process.terminate()
            process.wait(timeout=30)


@contextlib.contextmanager
def served(address: str | None, log: Path):
    """The address of a page that runs already, or that of one that is started for this."""
    if address:
        yield address
        return
    with server(log) as (started, _):
        yield started


@contextlib.contextmanager
def open_tab(chrome, address, first_visit=False):
    """A new tab on the page; AssertionError at the end if its console had errors.

    first_visit: of a reader who has not been here; else of one who has looked inside the stage and
    unfolded the settings.
    """
    context = chrome.new_context(viewport={"width": 1400, "height": 950}, accept_downloads=True)
    if not first_visit:
        context.add_init_script(BEEN_HERE)
    page, problems = context.new_page(), []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
    page.set_default_timeout(120_000)
    page.goto(address)
    page.wait_for_selector(".d2-stage")
    page.wait_for_function("() => globalThis.D2Stage?.stage")  # no eval: pages forbid it
    yield page
    context.close()
    problems = [one for one in problems if not one.startswith(LEAVING)]
    assert not problems, problems


def choose(page, kind: str, name: str):
    """Pick a policy or decoder by its key."""
    page.locator(f"#{kind} input").click()
    page.locator(f"[data-testid=dropdown-option][aria-label^='{name}: ']").click()
