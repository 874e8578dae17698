"""Sudoku and mazes: what is drawn is fair, and the rules alone judge an answer."""

import random
import re

import pytest

from d2cache.teaching import tasks
from d2cache.teaching.tasks import FAMILIES, Board, Problem
from d2cache.teaching.tasks.solver import count_solutions

BOXES = {"sudoku": 3, "sudoku4": 2}
GIVENS = {"sudoku": (22, 45), "sudoku4": (4, 10)}
PUZZLE = "530070000600195000098000060800060003400803001700020006060000280000419005000080079"
# the two rows left may be exchanged, whole or in every other column
SEVERAL = "1234341200000000"


@pytest.fixture(scope="module", params=BOXES)
def drawn(request) -> list[Problem]:
    rng = random.Random(5)
    return [FAMILIES[request.param].make(rng) for _ in range(40)]


def cells_of(problem: Problem) -> str:
    return problem.prompt.removeprefix("Sudoku: ")


def blanks(text: str) -> int:
    return text.count("0")


def exact_covers(n: int, given: str, most: int) -> int:
    """Solutions by exact cover (Knuth's Algorithm X), which shares nothing with our solver."""
    size, demands = n * n, {}
    choices = {}
    for cell, digit in enumerate(given):
        row, column = divmod(cell, size)
        box = row // n * n + column // n
        for value in range(1, size + 1) if digit == "0" else [int(digit)]:
            choices[cell, value] = [
                ("cell", cell),
                ("row", row, value),
                ("column", column, value),
                ("box", box, value),
            ]
            for demand in choices[cell, value]:
                demands.setdefault(demand, set()).add((cell, value))
    if len(demands) < 4 * size * size:
        return 0

    def cover(open_demands: dict) -> int:
        if not open_demands:
            return 1
        demand = min(open_demands, key=lambda one: len(open_demands[one]))
        count = 0
        for choice in open_demands[demand]:
            met = choices[choice]
            gone = set().union(*(open_demands[one] for one in met if one in open_demands))
            if all(one in open_demands for one in met):
                rest = {one: ways - gone for one, ways in open_demands.items() if one not in met}
                count += cover(rest)
            if count >= most:
                break
        return count

    return min(cover(demands), most)


def test_two_judges_agree_on_puzzles_with_none_one_and_several_solutions():
    wrong = PUZZLE[:2] + "5" + PUZZLE[3:]  # a second 5 in a row
    for n, given, count in ((3, PUZZLE, 1), (3, wrong, 0), (2, SEVERAL, 4), (2, "0" * 16, 9)):
        assert count_solutions(n, list(map(int, given)), 9) == count
        assert exact_covers(n, given, 9) == count
    assert count_solutions(2, [0] * 16, 999) == exact_covers(2, "0" * 16, 999) == 288


def test_a_drawn_puzzle_has_one_solution_that_is_its_answer(drawn):
    for problem in drawn[:12]:
        n = BOXES[problem.family]
        assert re.fullmatch(rf"Sudoku: [0-{n * n}]{{{n**4}}}", problem.prompt)
        assert exact_covers(n, cells_of(problem), 2) == 1
        assert tasks.correct(problem, problem.answer)
        board = Board(n * n, n * n, box=(n, n))
        for prompt in (
            problem.prompt,
            f"Q: {problem.prompt}\nA:",
            f"Q: x\nA: 1\n\nQ: {problem.prompt}",
        ):
            assert tasks.board(prompt) == board


def test_given_cells_are_in_their_range_and_hard_puzzles_are_not_rare(drawn):
    low, high = GIVENS[drawn[0].family]
    given = [len(cells_of(one)) - blanks(cells_of(one)) for one in drawn]
    assert all(low <= count <= high for count in given)
    hard = FAMILIES[drawn[0].family].hard
    assert 0.2 <= sum(count <= hard for count in given) / len(given) <= 0.8


def test_variants_have_one_solution_and_are_all_different(drawn):
    low, high = GIVENS[drawn[0].family]
    n, family = BOXES[drawn[0].family], FAMILIES[drawn[0].family]
    made = list(family.variants(drawn[0], random.Random(3), 200))
    assert len(made) == 200 and len({one.prompt for one in made}) >= 195
    assert len({one.answer for one in made}) >= (195 if n == 3 else 100)
    given = [len(cells_of(one)) - blanks(cells_of(one)) for one in made]
    assert all(low <= count <= high for count in given) and len(set(given)) >= (high - low) * 2 // 3
    assert all(tasks.correct(one, one.answer) for one in made)
    for one in made[:10]:
        assert exact_covers(n, cells_of(one), 2) == 1
    assert made == list(family.variants(drawn[0], random.Random(3), 200))


def test_the_other_families_have_no_variants_but_the_problem():
    problem = tasks.draw("lists", random.Random(0), held_out=False)
    assert list(FAMILIES["lists"].variants(problem, random.Random(0), 5)) == [problem]


def test_every_wrong_cell_is_refused(drawn):
    for problem in drawn[:3]:
        answer, size = problem.answer, BOXES[problem.family] ** 2
        for cell, digit in enumerate(answer):
            other = str(int(digit) % size + 1)
            assert not tasks.correct(problem, answer[:cell] + other + answer[cell + 1 :])
        spaced = "\n".join(answer[at : at + size] for at in range(0, len(answer), size))
        assert tasks.correct(problem, f" {spaced}\n")
        for text in (answer[:-1], answer + "1", answer[:-1] + "0", "\u0661" * len(answer)):
            assert not tasks.correct(problem, text)


def test_a_legal_grid_that_changes_what_is_given_is_refused(drawn):
    for problem, other in zip(drawn[:5], drawn[5:10], strict=True):
        assert tasks.correct(other, other.answer) and problem.answer != other.answer
        assert not tasks.correct(problem, other.answer)


def test_any_solution_of_a_puzzle_with_several_is_right():
    first, second = "1234341221434321", "1234341243212143"
    problem = Problem("sudoku4", f"Sudoku: {SEVERAL}", first)
    assert tasks.correct(problem, first) and tasks.correct(problem, second)


@pytest.mark.parametrize(
    "prompt",
    [
        "Sudoku: 123",
        "Sudoku: 5034341021434321",  # no digit 5 in a grid of four
        f"Sudoku: {PUZZLE}0",
        f"Solve {PUZZLE}",
        f"Sudoku: {PUZZLE} please",
        "Maze: 012",
        "Maze: " + "0" * 49,
        "Maze: 23" + "0" * 46,
        "Make 24 from 1, 2 and 8.",
    ],
)
def test_a_prompt_without_a_whole_grid_at_its_end_has_no_board(prompt):
    assert tasks.board(prompt) is None


def mazes(count: int = 60) -> list[Problem]:
    rng = random.Random(2)
    return [FAMILIES["maze"].make(rng) for _ in range(count)]


def beside(cell: int) -> list[int]:
    up_down = [other for other in (cell - 7, cell + 7) if 0 <= other < 49]
    return up_down + [other for other in (cell - 1, cell + 1) if other // 7 == cell // 7]


def moves_to_goal(maze: str) -> int:
    """Moves from the start to the goal, by widening the set of cells reached."""
    reached, moves = {maze.index("2")}, 0
    while maze.index("3") not in reached:
        reached |= {other for one in reached for other in beside(one) if maze[other] != "1"}
        moves += 1
        assert moves < 49
    return moves


def test_a_maze_s_answer_is_a_shortest_path_and_not_a_short_one():
    lengths = []
    for problem in mazes():
        maze = problem.prompt.removeprefix("Maze: ")
        assert re.fullmatch("[0-3]{49}", maze) and problem.answer.replace("4", "0") == maze
        lengths.append(problem.answer.count("4") + 1)
        assert lengths[-1] == moves_to_goal(maze) >= 6
        assert tasks.correct(problem, problem.answer)
        assert problem.answer.count("0") >= 1, "ways that lead elsewhere"
        assert tasks.board(f"Q: {problem.prompt}\nA:").names[4] == ("4", "path")
    assert len(set(lengths)) >= 6


def test_a_path_with_a_cell_more_or_less_is_refused():
    for problem in mazes(8):
        for cell, value in enumerate(problem.answer):
            for other in {"0", "1", "4"} - {value}:
                changed = problem.answer[:cell] + other + problem.answer[cell + 1 :]
                assert not tasks.correct(problem, changed)


def test_any_shortest_path_is_right_and_a_longer_one_is_not():
    rest = "0" * 42
    problem = Problem("maze", "Maze: 2000000" + "0" * 6 + "3" + "0" * 35, "")
    assert tasks.correct(problem, "2444444" + "0000003" + rest[7:])
    assert tasks.correct(problem, "2000000" + "4444443" + rest[7:])
    longer = "2000000" + "4000003" + "4444444" + rest[14:]
    assert not tasks.correct(problem, longer)
