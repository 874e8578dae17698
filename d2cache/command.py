"""What all command lines of the project share: numbers and names as flags, errors in one line."""

from __future__ import annotations

import argparse
import difflib
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from d2cache.memory import is_out_of_memory

DONE, NOT_DONE, INTERRUPTED = 0, 2, 130  # exit codes


def guarded(name: str, work: Callable[[], int | None]) -> int:
    """Do a command's work; -> its exit code: 0 done, 2 not done, 130 interrupted.

    ValueError, a lack of memory and files or output that cannot be written are one line on stderr,
    which begins with the command's name. What stdout cannot encode becomes a replacement character.
    """
    try:
        _open_streams()
        try:
            return work() or DONE
        finally:
            sys.stdout.flush()  # raises here if the pipe was closed or the disk is full
    except ValueError as error:
        return _failed(name, str(error))
    except BrokenPipeError:  # the reader of the output has closed it: not an error
        _drop_unwritten()
        return DONE
    except KeyboardInterrupt:
        return _failed(name, "interrupted", INTERRUPTED)
    except OSError as error:
        _drop_unwritten()
        where = f"{error.filename}: " if error.filename else ""
        where = where or ("cannot write the output: " if error.errno else "")
        return _failed(name, where + reason(error))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return _failed(name, "out of memory: make the answer or the batch smaller, or the model")


def reason(error: Exception) -> str:
    """Why something failed, in one line, without the names that the caller knows."""
    text = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return text.splitlines()[0]


def _failed(name: str, text: str, code: int = NOT_DONE) -> int:
    if sys.stderr is not None:  # print would take stdout instead
        print(f"{name}: {text}", file=sys.stderr)
    return code


def _open_streams() -> None:
    if sys.stdout is None:
        raise ValueError("standard output is closed; open it, or redirect it to a file")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def _drop_unwritten() -> None:
    """Drop what stdout cannot write: the interpreter would try again at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


class Parser(argparse.ArgumentParser):
    """Raises ValueError on a bad command line, so that `guarded` reports it in one line."""

    def error(self, message: str) -> NoReturn:
        # of the types below: "--seed is -1; it must be ..."
        text = re.sub(r"^argument (?:\S+/)?(\S+): is ", r"\1 is ", message)
        raise ValueError(f"{text}; see {self.prog} --help")

    def parse_known_args(self, args=None, namespace=None):
        known, unknown = super().parse_known_args(args, namespace)
        if unknown:  # refused by the parser whose flags they should be, which can name a close one
            self.error(f"unrecognized arguments: {' '.join(unknown)}{self._meant(unknown)}")
        return known, unknown

    def _meant(self, unknown: Sequence[str]) -> str:
        flags = [flag for action in self._actions for flag in action.option_strings]
        near = difflib.get_close_matches(unknown[0].partition("=")[0], flags, 1, 0.75)
        return f"; did you mean {near[0]}?" if near else ""


def whole(low: int | None = None, high: int | None = None) -> Callable[[str], int]:
    """The type of a flag that takes a whole number within these inclusive bounds."""
    return lambda text: _number(text, int, "a whole number", low, high)


def real(low: float | None = None, high: float | None = None) -> Callable[[str], float]:
    """The type of a flag that takes a number within these inclusive bounds; not NaN or infinite."""
    return lambda text: _number(text, float, "a number", low, high)


def _number(text: str, kind: type, what: str, low: Any, high: Any) -> Any:
    try:
        value = kind(text)
        good = math.isfinite(value)
    except (ValueError, OverflowError):
        good = False
    if not good or (low is not None and value < low) or (high is not None and value > high):
        bounds = "" if low is None else f" of at least {low}"
        bounds = bounds if high is None else f" from {low} to {high}"
        got = text if text.lstrip("+-").isdigit() else repr(text)
        raise argparse.ArgumentTypeError(f"is {got:.40}; it must be {what}{bounds}")
    return value


def names(text: str) -> list[str]:
    """The type of a flag that takes a list by commas: its names, each once, in their order."""
    found = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not found:
        raise argparse.ArgumentTypeError(f"is {text!r}; give at least one name, several by commas")
    return found


def reals(text: str) -> list[float]:
    """The type of a flag that takes numbers by commas, each once, in their order."""
    return list(dict.fromkeys(real()(one) for one in text.split(",")))


def places(text: str) -> list[str]:
    """The type of a flag that takes devices by commas; the same one may be there twice."""
    return [name.strip() for name in text.split(",")]


def wholes(text: str) -> list[int]:
    """The type of a flag that takes positive whole numbers by commas."""
    return [whole(1)(part) for part in names(text)]
