"""Sudoku with 9 x 9 and with 4 x 4 cells: puzzles that have exactly one solution."""

import random
import re
from collections.abc import Iterator

import numpy as np

from d2cache.teaching.tasks.base import Board, Family, Problem
from d2cache.teaching.tasks.solver import dig, shape, solutions


def _text(digits: list[int]) -> str:
    return "".join(map(str, digits))


def _digits(text: str) -> list[int]:
    return list(map(int, text))


def _line_orders(draw: np.random.Generator, n: int, count: int) -> np.ndarray:
    """Orders of the rows (or columns) that keep the boxes: (count, n * n), bands and their rows."""
    bands = draw.random((count, n)).argsort(axis=1)
    within = draw.random((count, n, n)).argsort(axis=2)
    return (bands[:, :, None] * n + within).reshape(count, n * n)


def _cell_orders(draw: np.random.Generator, n: int, count: int) -> np.ndarray:
    """Which cell of the old grid each cell of the new one takes: (count, cells)."""
    rows, columns = _line_orders(draw, n, count), _line_orders(draw, n, count)
    across = rows[:, :, None] * n * n + columns[:, None, :]
    down = rows[:, :, None] + columns[:, None, :] * n * n
    turned = draw.random(count) < 0.5
    return np.where(turned[:, None, None], down, across).reshape(count, -1)


class Puzzles:
    """What both sizes share; n is the side of a box."""

    n: int
    fewest: int  # given cells of a puzzle, at the least
    most: int  # and at the most
    hard: int  # with at most so many given cells a puzzle is hard; four in ten are drawn so

    def given(self, prompt: str) -> str | None:
        """The cells that a prompt gives at its end, in reading order; None where it has none."""
        size = self.n * self.n
        cells = f"[0-{size}]{{{size * size}}}"
        found = re.search(rf"\bSudoku: ?({cells})\s*(?:A:\s*)?$", prompt)
        return found.group(1) if found else None

    def board(self, prompt: str) -> Board | None:
        size = self.n * self.n
        known = self.given(prompt) is not None
        return Board(size, size, box=(self.n, self.n)) if known else None

    def problem(self, given: str, solution: str) -> Problem:
        return Problem(self.key, f"Sudoku: {given}", solution)

    def make(self, rng: random.Random) -> Problem:
        solution = next(solutions(self.n, [0] * shape(self.n).cells, rng))
        if rng.random() < 0.4:
            wanted = rng.randint(self.fewest, self.hard)
        else:
            wanted = rng.randint(self.hard + 1, self.most)
        given = dig(self.n, solution, rng, wanted)
        return self.problem(_text(given), _text(solution))

    def variants(self, problem: Problem, rng: random.Random, count: int) -> Iterator[Problem]:
        """Puzzles with one solution made from one: other digits, order of lines, given cells.

        The puzzle is dug as far as it goes. Every set of cells of its solution that contains those
        left has the same single solution.
        """
        given = dig(self.n, _digits(self.given(problem.prompt)), rng, self.fewest)
        draw = np.random.default_rng(rng.getrandbits(64))
        old, solution = np.array(given, np.uint8), np.array(_digits(problem.answer), np.uint8)
        # the given cells come first, then others in random order, up to the number wanted
        rank = (
            np.where(old > 0, -1.0, draw.random((count, len(old)))).argsort(axis=1).argsort(axis=1)
        )
        wanted = draw.integers(np.count_nonzero(old), self.most + 1, count)
        shown = rank < wanted[:, None]
        names = draw.random((count, self.n**2)).argsort(axis=1).astype(np.uint8) + 49  # "1" is 49
        full = np.take_along_axis(names, solution.astype(np.intp)[None] - 1, axis=1)
        order = _cell_orders(draw, self.n, count)
        answers = np.take_along_axis(full, order, axis=1)
        prompts = np.where(np.take_along_axis(shown, order, axis=1), answers, ord("0"))
        for prompt, answer in zip(prompts.astype(np.uint8), answers, strict=True):
            yield self.problem(prompt.tobytes().decode(), answer.tobytes().decode())

    def read(self, text: str) -> str | None:
        """The digits in reading order, white space left out."""
        size = self.n * self.n
        digits = "".join(text.split())
        return digits if re.fullmatch(f"[1-{size}]{{{size * size}}}", digits) else None

    def correct(self, problem: Problem, text: str) -> bool:
        """Whether the rules of the game and the given cells hold."""
        digits, given = self.read(text), self.given(problem.prompt)
        if digits is None or given is None:
            return False
        if any(one != "0" and one != own for one, own in zip(given, digits, strict=True)):
            return False
        grid = shape(self.n)
        return all(
            digits[cell] != digits[other]
            for cell, peers in enumerate(grid.peers)
            for other in range(cell)
            if peers >> other & 1
        )


class Sudoku(Puzzles, Family, key="sudoku"):
    title = "Sudoku 9 x 9"
    order = 6
    answer_length = 96
    weight = 48
    n, fewest, hard, most = 3, 22, 28, 45


class SmallSudoku(Puzzles, Family, key="sudoku4"):
    title = "Sudoku 4 x 4"
    order = 7
    answer_length = 32
    weight = 4
    n, fewest, hard, most = 2, 4, 6, 10
