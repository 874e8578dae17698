"""What the page says when a board has ended."""

from __future__ import annotations

from analysis.page.boards import Board, Run, summary
from analysis.page.familiar import UNLIKE, remark
from d2cache.teaching import tasks

LONGEST_ANSWER = 400  # characters of an answer in a table
SHORT = 24  # characters of an answer in a sentence
Said = tuple[str, str]  # a sentence, and its kind: info, right, wrong or error


def verdict(board: Board, problem: tasks.Problem | None) -> Said:
    """Whether the problem was solved, or how the lanes compare.

    problem: the one that was run, None for a prompt whose answer is not known here.
    """
    failed = [run for run in board.runs if run.error]
    if failed:
        where = f" in lane {failed[0].name}" if len(board.runs) > 1 else ""
        return f"The run failed{where}: {failed[0].error}", "error"
    done = [run for run in board.runs if run.trace]
    if board.stopped or not done:
        return "Stopped.", "info"
    if problem is None and knows_nothing(done[0], board.wanted.prompt):
        compared = f" {in_words(results(done, problem))}" if len(done) > 1 else ""
        return f"Done. {UNLIKE}{compared}", "info"
    if len(done) > 1:
        return f"Done. {in_words(results(done, problem))}", "info"
    if problem is None:
        return "Done. Scrub through the steps, or open another tab of the stage.", "info"
    return judged(done[0], problem)


def knows_nothing(run: Run, prompt: str) -> bool:
    """Whether a prompt is unlike all that the model was trained on, as far as that is known."""
    return remark(prompt, is_bundled(run)) == UNLIKE


def is_bundled(run: Run) -> bool:
    return run.finished.run["shape"]["name"] == "tiny"


def judged(run: Run, problem: tasks.Problem) -> Said:
    """Whether the answer of a finished run is right."""
    story, right = problem.family == "stories", is_right(run, problem)
    if right is None:
        return "Done." if story else f"Done. Expected: {problem.answer}", "info"
    if right:
        return f"Done, and the {'story is well formed' if story else 'answer is right'}.", "right"
    if story:
        return "Done, but the story breaks the rules of its grammar.", "wrong"
    return f"Done, but the answer is wrong. Expected: {problem.answer}", "wrong"


def is_right(run: Run, problem: tasks.Problem | None) -> bool | None:
    """Whether a finished run solved the problem; None where that cannot be judged: other models
    phrase their answers differently."""
    if problem is None or not is_bundled(run):
        return None
    return tasks.correct(problem, run.outcome)


def results(runs: list[Run], problem: tasks.Problem | None) -> list[dict]:
    """For each finished lane: run (its key), name, right (None: not known), answer (the part that
    is compared, where the problem is known), seconds, flops (share of a run without a cache) and
    equal, the share of tokens that lane 1 also has (None for lane 1)."""
    rows = []
    for run in runs:
        totals = summary(run, runs[0])
        rows.append(
            {
                "run": run.key,
                "name": run.name,
                "right": is_right(run, problem),
                "answer": _compared(totals["text"], problem),
                "seconds": round(totals["seconds"], 3),
                "flops": round(totals["flops_vs_none"], 4),
                "equal": None if run is runs[0] else round(totals["agreement"], 4),
            }
        )
    return rows


def _compared(text: str, problem: tasks.Problem | None) -> str:
    read = None if problem is None else tasks.FAMILIES[problem.family].read(text)
    return (read or text)[:LONGEST_ANSWER]


def in_words(rows: list[dict]) -> str:
    """The results of several lanes in a sentence."""
    return f"{'; '.join(map(_told, rows))}."


def _told(row: dict) -> str:
    parts = [] if row["right"] is None else ["right" if row["right"] else "wrong"]
    if row["right"] is False and len(row["answer"]) <= SHORT:
        parts = [f"wrong ({row['answer']})"]
    parts += [f"{row['seconds']:.2f} s", f"{100 * row['flops']:.0f} % of the FLOPs without a cache"]
    if row["equal"] is not None:
        parts.append(f"{100 * row['equal']:.0f} % of tokens equal lane 1")
    return f"{row['name']}: {', '.join(parts)}"
