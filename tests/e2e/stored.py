"""The run that the page opens with: python tests/e2e/stored.py

Records d2 on the page's first problem; to be made again whenever the model changes.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import app
import d2cache
from d2cache.teaching import tasks


def record() -> d2cache.Trace:
    problem = app.first_problem()
    model = d2cache.load("tiny", device="cpu")
    runs = [
        d2cache.Trace.record(
            d2cache.generate(
                model, model.encode(problem.prompt), "d2", stop_at_eos=True,
                gen_length=tasks.ANSWER_LENGTH[problem.family],
            )
        )
        for _ in range(5)
    ]  # fmt: skip
    trace = min(runs, key=lambda run: run.seconds.sum())  # they differ in their clocks alone
    answer = model.decode(trace.answer)
    print(problem.prompt, answer, trace.totals, sep="\n")
    if not tasks.correct(problem, answer.strip()):
        raise SystemExit(f"the answer is wrong; wanted: {problem.answer}")
    return trace


if __name__ == "__main__":
    record().save(app.ASSETS / "traces" / "d2-word.safetensors")
