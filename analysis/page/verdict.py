"""What the page says when a board has ended."""

from __future__ import annotations

from analysis.page.boards import Board, Run, summary
from d2cache.teaching import tasks

Said = tuple[str, str]  # a sentence, and its kind: info, right, wrong or error


def verdict(board: Board, problem: tasks.Problem | None) -> Said:
    """Whether the problem was solved, or how the lanes compare.

    problem: the generated problem that was run, None for a prompt of the visitor's own.
    """
    failed = [run for run in board.runs if run.error]
    if failed:
        where = f" in lane {failed[0].name}" if len(board.runs) > 1 else ""
        return f"The run failed{where}: {failed[0].error}", "error"
    done = [run for run in board.runs if run.trace]
    if board.stopped or not done:
        return "Stopped.", "info"
    if len(done) > 1:
        return f"Done. {compared(done)}", "info"
    if problem is None:
        return "Done. Scrub through the steps, or open another tab of the stage.", "info"
    return judged(done[0], problem)


def judged(run: Run, problem: tasks.Problem) -> Said:
    """Whether the answer of a finished run is right."""
    story = problem.family == "stories"
    if run.maker.config.name != "tiny":  # other models phrase their answers differently
        return "Done." if story else f"Done. Expected: {problem.answer}", "info"
    trace = run.finished
    text = run.maker.decode(trace.tokens[-1][trace.prompt_length :]).strip()
    if tasks.correct(problem, text):
        return f"Done, and the {'story is well formed' if story else 'answer is right'}.", "right"
    if story:
        return "Done, but the story breaks the rules of its grammar.", "wrong"
    return f"Done, but the answer is wrong. Expected: {problem.answer}", "wrong"


def compared(runs: list[Run]) -> str:
    """The time of each lane, and how much of the first lane's answer it also wrote."""
    parts = []
    for run in runs:
        totals = summary(run, runs[0])
        same = "" if run is runs[0] else f", {100 * totals['agreement']:.0f} % the same as lane 1"
        parts.append(f"{run.name}: {totals['seconds']:.2f} s{same}")
    return "; ".join(parts) + "."
