"""Where an answer that is a grid lies on the canvas, for the stage to draw it as one."""

from __future__ import annotations

from collections.abc import Sequence

from d2cache.teaching import tasks

ANSWERED = "\nA:"  # after a question, in the chat template


def grid(prompt: Sequence[str], gen_length: int) -> dict | None:
    """The grid of a run's answer, as its start event has it; None where it has none.

    prompt: the text of each token; gen_length: positions of the answer. A family says which prompts
    ask for a grid (`tasks.board`). There is none where the tokens of the prompt are not one a cell,
    nor where the answer is shorter than the grid.
    """
    text = "".join(prompt)
    board = tasks.board(text.removesuffix(ANSWERED)) if text.endswith(ANSWERED) else None
    if board is None or gen_length < board.rows * board.columns:
        return None
    given = _cells(prompt, board.rows * board.columns)
    if given is None:
        return None
    return {
        "rows": board.rows,
        "columns": board.columns,
        "box": list(board.box),
        "blank": board.blank,
        "names": dict(board.names),
        "given": given,
        "at": len(prompt),
    }


def _cells(prompt: Sequence[str], count: int) -> list[int] | None:
    """The positions of the last `count` tokens before the answer's mark; None unless each is one
    character, the first perhaps with the space before it."""
    end = len(prompt)
    while end and len("".join(prompt[end:])) < len(ANSWERED):
        end -= 1
    first = end - count
    if first < 0 or "".join(prompt[end:]) != ANSWERED:
        return None
    cells = [prompt[first].removeprefix(" "), *prompt[first + 1 : end]]
    return list(range(first, end)) if all(len(cell) == 1 for cell in cells) else None
