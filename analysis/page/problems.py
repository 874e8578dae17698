"""The problems that the page itself poses, with their answers: runs of them can be judged."""

from __future__ import annotations

import functools
import json
import random

from analysis.page.stored import ASSETS
from d2cache.teaching import tasks


@functools.cache
def known() -> dict[str, tasks.Problem]:
    """Prompt -> problem, of the stored runs, the lessons and the guided comparisons."""
    texts = (ASSETS / "lessons" / "problems.json").read_text(encoding="utf-8")
    return {one["prompt"]: tasks.Problem(**one) for one in json.loads(texts)}


def first_problem() -> tasks.Problem:
    """The problem that the page opens with, see `stored.OPENING`."""
    return tasks.draw("word", random.Random(9), held_out=True)
