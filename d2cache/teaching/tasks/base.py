"""A problem, and what every family of problems provides."""

import hashlib
import random
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Problem:
    """One question and its reference answer, both plain text without outer white space."""

    family: str
    prompt: str
    answer: str
    of: str = ""  # the family of the text that has the gaps, where the problem is to fill gaps


@dataclass(frozen=True)
class Board:
    """An answer that is a grid: its cells in reading order, one token a cell.

    Cell i is position i of the answer, and what the prompt gives of it is the i-th of the prompt's
    last rows x columns tokens before "A:".
    """

    rows: int
    columns: int
    box: tuple[int, int] = (0, 0)  # rows and columns of a box with a bold edge; (0, 0): no boxes
    blank: str = "0"  # what the prompt writes where nothing is given
    names: tuple[tuple[str, str], ...] = ()  # a cell's text -> what it is called, where not itself


class Family(ABC):
    """One kind of problem. Subclassing with a key registers it; each family has its own file.

    The tokenizer and the training rows are made from all families. A new one changes both, so the
    bundled model must be trained again.
    """

    registry: ClassVar[dict[str, type["Family"]]] = {}

    key: str
    title: str  # what a visitor reads
    order: int  # place among the families: the rows of tables and the draws of a seed follow it
    answer_length: int  # canvas, in tokens: the longest answer, its end token and spare room
    weight: int  # share of the training rows, relative to the other families
    gaps: ClassVar[bool] = False  # whether its problems are texts with gaps, not questions

    def __init_subclass__(cls, key: str, **kwargs):
        super().__init_subclass__(**kwargs)
        other = cls.registry.setdefault(key, cls)
        if other.__module__ != cls.__module__:
            raise ValueError(
                f"the family {key!r} is already in {other.__module__}; choose another name"
            )
        cls.key = key

    def board(self, prompt: str) -> Board | None:
        """The grid that the answer to a prompt is; None where it is a text."""
        return None

    @abstractmethod
    def make(self, rng: random.Random) -> Problem:
        """Draw a problem, whether its prompt is held out or not."""

    def variants(self, problem: Problem, rng: random.Random, count: int) -> Iterator[Problem]:
        """Up to ``count`` new problems of the kind of one, quicker to get than by drawing.

        They may be held out. A family that has none gives the problem itself.
        """
        yield problem

    def read(self, text: str) -> str | None:
        """The part of an answer that is compared; None where the text has none."""
        return text

    def correct(self, problem: Problem, text: str) -> bool:
        """Whether a text answers the problem. Any text is allowed; none is ever executed."""
        found = self.read(text)
        return found is not None and found == self.read(problem.answer)


def is_held_out(prompt: str) -> bool:
    """Whether a prompt belongs to the test part: 1 of 16, decided by a hash of its text alone."""
    return hashlib.blake2b(prompt.encode("utf-8"), digest_size=1).digest()[0] % 16 == 0


def stated_answer(text: str) -> str | None:
    """What follows the last "The answer is", up to the end of its sentence or line."""
    found = re.findall(r"The answer is[ \n]+([^.\n]*)", text)
    return " ".join(found[-1].split()) if found else None
