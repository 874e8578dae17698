"""Solves Sudokus of any box size, to draw puzzles that have exactly one solution.

What is possible is one integer per digit, with a bit for each cell where the digit may stand. So
all cells with one candidate are found by a few operations on whole grids.
"""

import functools
import random
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """The cells, as bits, of a grid with boxes of n x n cells."""

    size: int  # digits, and cells of a row: n * n
    cells: int
    units: tuple[int, ...]  # every row, column and box
    peers: tuple[int, ...]  # for each cell, the others of its row, column and box


@functools.cache
def shape(n: int) -> Shape:
    """The grid whose boxes have n x n cells."""
    size = n * n
    places = [divmod(cell, size) for cell in range(size * size)]
    kinds = (lambda r, c: r, lambda r, c: c, lambda r, c: r // n * n + c // n)
    units = tuple(
        sum(1 << cell for cell, place in enumerate(places) if kind(*place) == i)
        for kind in kinds
        for i in range(size)
    )
    peers = []
    for cell in range(size * size):
        around = 0
        for unit in units:
            around |= unit if unit >> cell & 1 else 0
        peers.append(around & ~(1 << cell))
    return Shape(size, size * size, units, tuple(peers))


def _possible(grid: Shape, given: list[int]) -> list[int]:
    """Where each digit may stand, by the given cells alone (0: not given)."""
    everywhere = (1 << grid.cells) - 1
    free = everywhere & ~sum(1 << cell for cell, digit in enumerate(given) if digit)
    fixed, barred = [0] * grid.size, [0] * grid.size
    for cell, digit in enumerate(given):
        if digit:
            fixed[digit - 1] |= 1 << cell
            barred[digit - 1] |= grid.peers[cell]
    return [(free | own) & ~no for own, no in zip(fixed, barred, strict=True)]


def _place(grid: Shape, possible: list[int], cell: int, digit: int) -> None:
    """Write a digit (from 0) into a cell, in place."""
    bit = 1 << cell
    for other in range(grid.size):
        possible[other] &= ~bit
    possible[digit] = possible[digit] & ~grid.peers[cell] | bit


def _singles(possible: list[int]) -> tuple[int, int, int]:
    """Cells with at least one, two and three candidates."""
    one = two = three = 0
    for cells in possible:
        three |= two & cells
        two |= one & cells
        one |= cells
    return one, two, three


def _only_places(grid: Shape, possible: list[int], placed: int) -> list[tuple[int, int]] | None:
    """(cell, digit) where a unit has one place left for a digit; None where one has no place."""
    found = []
    for digit, cells in enumerate(possible):
        for unit in grid.units:
            left = cells & unit
            if not left:
                return None
            if not left & (left - 1) and not left & placed:
                found.append((left.bit_length() - 1, digit))
    return found


def _propagate(grid: Shape, possible: list[int], placed: int) -> tuple[int, int, int] | None:
    """Write every cell that follows, in place: (placed, cells with two or more, with three or
    more candidates); None where the grid has no solution."""
    everywhere = (1 << grid.cells) - 1
    while True:
        one, two, three = _singles(possible)
        if one != everywhere:
            return None
        single = one & ~two & ~placed
        if single:
            for digit in range(grid.size):
                own = single & possible[digit]
                while own:
                    cell = own.bit_length() - 1
                    own ^= 1 << cell
                    possible[digit] &= ~grid.peers[cell]
            placed |= single
            continue
        if placed == everywhere:
            return placed, two, three
        forced = _only_places(grid, possible, placed)
        if forced is None:
            return None
        if not forced:
            return placed, two, three
        for cell, digit in forced:
            if not possible[digit] >> cell & 1:
                return None
            _place(grid, possible, cell, digit)
            placed |= 1 << cell


def _search(
    grid: Shape, possible: list[int], placed: int, rng: random.Random | None
) -> Iterator[list[int]]:
    """All solutions; the candidates of a cell are tried in random order if there is an rng."""
    settled = _propagate(grid, possible, placed)
    if settled is None:
        return
    placed, two, three = settled
    if not two:
        yield possible
        return
    # a cell with the fewest candidates: two where there is one
    few = two & ~three or two
    cell = (few & -few).bit_length() - 1
    digits = [digit for digit in range(grid.size) if possible[digit] >> cell & 1]
    if rng:
        rng.shuffle(digits)
    for digit in digits:
        branch = possible.copy()
        _place(grid, branch, cell, digit)
        yield from _search(grid, branch, placed | 1 << cell, rng)


def solutions(n: int, given: list[int], rng: random.Random | None = None) -> Iterator[list[int]]:
    """The solutions of a grid with n x n boxes, each as its digits in reading order.

    ``given`` has the digits in reading order, 0 for a blank.
    """
    grid = shape(n)
    for possible in _search(grid, _possible(grid, given), 0, rng):
        found = [0] * grid.cells
        for digit, cells in enumerate(possible, start=1):
            for cell in range(grid.cells):
                if cells >> cell & 1:
                    found[cell] = digit
        yield found


def count_solutions(n: int, given: list[int], most: int = 2) -> int:
    """How many solutions a grid has; the search ends at ``most``."""
    found = solutions(n, given)
    return sum(1 for _ in zip(range(most), found, strict=False))


def _needed(grid: Shape, given: list[int], cell: int) -> bool:
    """Whether a puzzle with one solution would have more without one of its given cells."""
    less = given.copy()
    less[cell] = 0
    possible = _possible(grid, less)
    possible[given[cell] - 1] &= ~(1 << cell)  # another digit there: is there a solution?
    return next(_search(grid, possible, 0, None), None) is not None


def dig(n: int, given: list[int], rng: random.Random, fewest: int) -> list[int]:
    """Blank cells of a puzzle with one solution, in random order, while it keeps that solution.

    Ends at ``fewest`` given cells, or above where no other cell can be blanked.
    """
    grid, left = shape(n), given.copy()
    cells = [cell for cell in range(grid.cells) if given[cell]]
    count = len(cells)
    rng.shuffle(cells)
    for cell in cells:
        if count <= fewest:
            break
        if not _needed(grid, left, cell):
            left[cell] = 0
            count -= 1
    return left
