"""Progress bars, on a terminal or in a notebook; none where output is piped, unless asked for."""

from __future__ import annotations

import functools
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator

from d2cache.canvas import Step

with warnings.catch_warnings():  # in a notebook without widgets, text is shown instead: no matter
    warnings.simplefilter("ignore")
    from tqdm.auto import tqdm

DELAY = 2.0  # seconds: what takes less shows no bar
EVERY = 0.1  # seconds between looks: a look at a GPU's tensors waits for them


def wanted(asked: bool | None = None) -> bool:
    """Whether to show progress: as asked; by default in a notebook and where stdout and stderr are
    a terminal."""
    if asked is not None:
        return asked
    if "ipykernel.zmqshell" in sys.modules:
        return True
    return all(stream is not None and stream.isatty() for stream in (sys.stdout, sys.stderr))


class Bar:
    """A bar on stderr while a `with` block runs; `asked` as in `wanted`."""

    def __init__(self, what: str, total: int, asked: bool | None = None, **look):
        self.bar = tqdm(
            desc=what,
            total=total,
            disable=not wanted(asked),
            leave=False,
            delay=0 if asked else DELAY,
            mininterval=0,
            miniters=0,
            **look,
        )
        self.seen = 0.0

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_) -> None:
        self.bar.close()

    def show(self, count: Callable[[], int]) -> None:
        """Show how many are done; `count` is called only when the bar is drawn again."""
        if self.bar.disable or time.monotonic() - self.seen < EVERY:
            return
        self.bar.update(count() - self.bar.n)
        self.seen = time.monotonic()


def say(line: str) -> None:
    """A line on stderr, above the bars."""
    tqdm.write(line, file=sys.stderr)
    sys.stderr.flush()


def watched(steps: Iterable[Step], what: str = "", asked: bool | None = None) -> Iterator[Step]:
    """The steps of a run, with a bar of the tokens written so far."""
    steps = iter(steps)
    first = next(steps, None)
    if first is None:
        return
    run = first.run
    total = run.gen_length * len(run.seeds)
    if first.before.given is not None:
        total = int(first.before.masked.sum())
    with Bar(what or run.policy, total, asked, unit="token") as bar:
        yield first
        for step in steps:
            bar.show(functools.partial(_written, step, total))
            yield step


def _written(step: Step, total: int) -> int:
    """Answer tokens on the canvas after a step, all rows together."""
    return total - int(step.after.masked.sum())
