"""A maze of 7 x 7 cells; the answer is the maze with a shortest path."""

import random
import re
from collections import deque

from d2cache.teaching.tasks.base import Board, Family, Problem

SIDE = 7
CELLS = SIDE * SIDE
FREE, WALL, START, GOAL, PATH = "01234"
SHORTEST = 6  # moves from the start to the goal, at the least
NAMES = ((FREE, "free"), (WALL, "wall"), (START, "start"), (GOAL, "goal"), (PATH, "path"))


def _neighbours(cell: int) -> list[int]:
    row, column = divmod(cell, SIDE)
    beside = ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1))
    return [r * SIDE + c for r, c in beside if 0 <= r < SIDE and 0 <= c < SIDE]


NEIGHBOURS = tuple(map(_neighbours, range(CELLS)))


def _distances(maze: str | list[str], start: int) -> dict[int, int]:
    """Moves from the start to each cell that can be reached."""
    moves, waiting = {start: 0}, deque([start])
    while waiting:
        cell = waiting.popleft()
        for other in NEIGHBOURS[cell]:
            if other not in moves and maze[other] != WALL:
                moves[other] = moves[cell] + 1
                waiting.append(other)
    return moves


def _carve(rng: random.Random) -> list[str]:
    """Corridors between walls with dead ends, and a few walls broken through for other ways."""
    maze, corner = [WALL] * CELLS, rng.choice((0, 0, 1, SIDE))
    maze[corner] = FREE
    trail = [corner]
    while trail:
        row, column = divmod(trail[-1], SIDE)
        steps = [
            (r * SIDE + c, (r + row) // 2 * SIDE + (c + column) // 2)
            for r, c in ((row - 2, column), (row + 2, column), (row, column - 2), (row, column + 2))
            if 0 <= r < SIDE and 0 <= c < SIDE and maze[r * SIDE + c] == WALL
        ]
        if steps:
            cell, between = rng.choice(steps)
            maze[cell] = maze[between] = FREE
            trail.append(cell)
        else:
            trail.pop()
    for cell in rng.sample(range(CELLS), rng.randint(0, 8)):
        maze[cell] = FREE
    return maze


def _walk(rng: random.Random, moves: dict[int, int], goal: int) -> list[int]:
    """The cells between the start and the goal on one of the shortest paths."""
    cells = []
    cell = goal
    while moves[cell] > 1:
        cell = rng.choice([c for c in NEIGHBOURS[cell] if moves.get(c) == moves[cell] - 1])
        cells.append(cell)
    return cells


def _given(prompt: str) -> str | None:
    """The maze at the end of a prompt, with one start and one goal; None where it has none."""
    found = re.search(rf"\bMaze: ?([0-3]{{{CELLS}}})\s*(?:A:\s*)?$", prompt)
    maze = found.group(1) if found else ""
    return maze if maze.count(START) == maze.count(GOAL) == 1 else None


class Maze(Family, key="maze"):
    title = "maze"
    order = 9
    answer_length = 64
    weight = 8

    def board(self, prompt: str) -> Board | None:
        return Board(SIDE, SIDE, blank=FREE, names=NAMES) if _given(prompt) else None

    def make(self, rng: random.Random) -> Problem:
        far = []
        while not far:
            maze = _carve(rng)
            start = rng.choice([cell for cell in range(CELLS) if maze[cell] == FREE])
            moves = _distances(maze, start)
            far = sorted({count for count in moves.values() if count >= SHORTEST})
        # every length is as likely as the others, though most goals are near
        length = rng.choice(far)
        goal = rng.choice([cell for cell, count in moves.items() if count == length])
        maze[start], maze[goal] = START, GOAL
        prompt = f"Maze: {''.join(maze)}"
        for cell in _walk(rng, moves, goal):
            maze[cell] = PATH
        return Problem("maze", prompt, "".join(maze))

    def read(self, text: str) -> str | None:
        """The cells in reading order, white space left out."""
        cells = "".join(text.split())
        return cells if re.fullmatch(f"[0-4]{{{CELLS}}}", cells) else None

    def correct(self, problem: Problem, text: str) -> bool:
        """Whether the maze is kept and the path is one of the shortest."""
        cells, maze = self.read(text), _given(problem.prompt)
        if cells is None or maze is None or cells.replace(PATH, FREE) != maze:
            return False
        path = {cell for cell in range(CELLS) if cells[cell] in START + GOAL + PATH}
        only = [FREE if cell in path else WALL for cell in range(CELLS)]
        start, goal = maze.index(START), maze.index(GOAL)
        shortest = _distances(maze, start).get(goal)
        # as many cells as a shortest path has, and they lead to the goal
        return _distances(only, start).get(goal) == shortest == len(path) - 1
