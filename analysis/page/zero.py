"""ZeroGPU, where a Space borrows a GPU for the time of a call: how it is found, how long a call
asks for it, and what a visitor is told when there is none.

The package `spaces` is there on such a Space. Its decorator runs a function in a forked process
that has the GPU; arguments and what it yields cross by pickle.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
import re
from collections.abc import Callable, Mapping

from analysis.page.analyses import SIGMAS
from analysis.page.worker import Analysis, Lanes, Order

# `spaces.GPU`: called with duration, a function of the order that says how many seconds it takes;
# -> a decorator of a generator function.
Borrow = Callable[..., Callable]

# Before anything is measured here. The slowest policy on a whole H200 takes 77 ms a step at a
# canvas of 512 (assets/measured), and a Space has half of one.
FIRST_STEP = 0.15  # seconds
FIRST_LOADING = 30.0  # seconds, as long as 15 GB take at 0.5 GB/s
MARGIN = 1.5  # of the seconds that are expected
LEAST = 10  # seconds: what is asked for is a bound, and only what is used is paid
MOST = 120  # seconds that a visitor's call may ask for

STILL = "stored runs and the bundled model still work"
CLOCK = "The run is made in one go on a shared GPU: pause and step move this page's clock over it."
ASKING = "Asking for a GPU."


def borrow(environment: Mapping[str, str] = os.environ) -> Borrow | None:
    """`spaces.GPU` on a ZeroGPU Space, None elsewhere. Call it before anything touches CUDA: it
    changes torch so that this process never does."""
    wanted = environment.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")
    if not wanted or importlib.util.find_spec("spaces") is None:
        return None
    return importlib.import_module("spaces").GPU


class Pace:
    """How long orders take, as far as it was measured here."""

    def __init__(self) -> None:
        self.loading: dict[str, float] = {}  # label of a model -> seconds of the last loading
        # label, policy and whether the truth was asked for -> seconds of a step, slowly forgotten
        self.step: dict[tuple[str, str, bool], float] = {}

    def loaded(self, model: str, seconds: float) -> None:
        if seconds:
            self.loading[model] = seconds

    def stepped(self, order: Lanes, policy: str, seconds: float) -> None:
        key = (order.model, policy, order.asked.truth)
        self.step[key] = 0.9 * self.step.get(key, seconds) + 0.1 * seconds

    def seconds(self, order: Order) -> int:
        """What to ask for: loading, since any call may get a new process, and all steps there can
        be, one for each mask."""
        if isinstance(order, Lanes):
            asked = order.asked
            rates = (self.rate(order.model, lane.policy, asked.truth) for lane in asked.lanes)
            steps = asked.gen_length * sum(rates)
        else:
            steps = order.steps * self.rate(order.model, "none", False) * repeats(order)
        loading = self.loading.get(order.model, FIRST_LOADING)
        return min(MOST, max(LEAST, math.ceil(MARGIN * (loading + steps))))

    def rate(self, model: str, policy: str, truth: bool) -> float:
        return self.step.get((model, policy, truth), FIRST_STEP)


def repeats(order: Analysis) -> int:
    """How often an analysis goes through the run."""
    return len(SIGMAS) if order.name == "orders" else 1


def in_words(error: Exception) -> str:
    """Why a call came to nothing, as a clause for a visitor.

    `spaces` raises Gradio's errors, which have a title and a message, and others.
    """
    text = str(getattr(error, "message", None) or error)
    title = str(getattr(error, "title", ""))
    if "No GPU was available" in text or "timeout" in type(error).__name__.lower():
        return f"no GPU was free within a minute, so try again later; {STILL}"
    if "quota" in title or "credits" in title or "limit" in text:
        return f"the GPU quota for today is spent{_until(text)}; {STILL}"
    if "duration" in title:
        return f"it would take longer than a GPU is lent for, so ask for fewer masks; {STILL}"
    if "aborted" in text:
        return f"its GPU was taken back before the end, so press Run again; {STILL}"
    if "Connection closed by visitor" in text:
        return "the page was closed while it waited for a GPU"
    return f"the GPU could not be used ({_short(text)}), so try again later; {STILL}"


def _until(text: str) -> str:
    """When there is quota again, as far as `spaces` says so."""
    found = re.search(r"Try again in (\d+ days?, [\d:]+|[\d:]+)", text)
    return f", and there is more in {found[1]}" if found else ""


def _short(text: str) -> str:
    return (text.strip().splitlines() or ["no reason was given"])[0][:120].rstrip(".")
