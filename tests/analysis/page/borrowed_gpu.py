"""A page with an 8B model that borrows its GPU: python -m borrowed_gpu FOLDER

Writes LLaDA-8B's shape with random weights and the bundled tokenizer to FOLDER, in the layout of
the hub. Then, each in a process of its own since the page's must not touch CUDA before it forks:
the loop alone (--alone), and the page through the real `spaces` against a stand-in for the
scheduler. Prints what was measured as one line of JSON.
"""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

MASKS = 128
PROMPT = "Sort 5 2 9 1."


def write(folder: str) -> None:
    """The checkpoint."""
    import torch

    from analysis.bench import random_model
    from d2cache import weights
    from d2cache.bundled import ASSETS

    model = random_model("llada-8b", [torch.device("cuda")], torch.bfloat16)
    weights.save(model, Path(folder), torch.bfloat16, 5_000_000_000)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ASSETS / "tiny" / name, folder)


def alone(folder: str) -> None:
    """Prints steps per second of the recorded loop, the second time, and its tokens."""
    import d2cache

    model = d2cache.load(folder, "cuda", progress=lambda *_: None)
    for _ in range(2):
        began, recorder = time.perf_counter(), d2cache.trace.Recorder()
        steps = d2cache.generate(model, model.encode(PROMPT), "d2", gen_length=MASKS)
        for step in steps:
            recorder.add(step)
        took = time.perf_counter() - began
    trace = recorder.trace()
    print(json.dumps([len(trace.seconds) / took, trace.tokens[-1].tolist()]))


def here(*arguments: str) -> str:
    """What this script prints with other arguments."""
    command = [sys.executable, __file__, *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def timed(session, controls: dict) -> dict:
    """A visitor's run: seconds from the click to the first step on the stage, and steps/s after."""
    began, times = time.perf_counter(), []
    for change in session.run(controls):
        events = json.loads(change["board"])["events"] if "board" in change else []
        times += [time.perf_counter()] * sum(event["k"] == "rec" for event in events)
    run = session.board.runs[0]
    pace = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else 0.0
    return {"first": times[0] - began if times else 0.0, "pace": pace, "run": run}


def page(folder: str) -> dict:
    """The page's figures, and whether a second visitor was served meanwhile."""
    from test_session import usual

    import app
    from analysis.page import zero
    from analysis.page.host import Host
    from analysis.page.session import Sessions

    label = Path(folder).name
    host = Host(borrow=zero.borrow(), offered={"tiny": "tiny", label: folder})
    host.models.start(label)
    list(host.models.watch(label))
    site = app.build(host)
    site.launch(prevent_thread_lock=True, quiet=True)
    sessions = Sessions(host)
    controls = usual(model=label, policy="d2", gen_length=MASKS, prompt=PROMPT, to_the_end=False)
    cold, warm = (timed(sessions.of("one"), controls) for _ in range(2))
    second = threading.Thread(target=timed, args=(sessions.of("other"), controls))
    second.start()
    timed(sessions.of("one"), controls)
    second.join()
    run = sessions.of("one").board.runs[0]
    asked = [["attention", {"step": 2}], ["life", {"position": 3}], ["figures", {}]]
    answers = [json.dumps([name, {"run": run.key} | given]) for name, given in asked]
    site.close()
    return {
        "cold": cold["first"],
        "warm": warm["first"],
        "steps per second": warm["pace"],
        "tokens": warm["run"].finished.tokens[-1].tolist(),
        "other": sessions.of("other").board.runs[0].error,
        "answers": [host.questions.answer(one).get("error", "") for one in answers],
    }


def main() -> None:
    folder = sys.argv[1]
    if "--write" in sys.argv:
        return write(folder)
    if "--alone" in sys.argv:
        return alone(folder)
    here(folder, "--write")
    steps, tokens = json.loads(here(folder, "--alone").splitlines()[-1])
    card = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
    gpu = subprocess.run(card, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[0]

    from scheduler import Scheduler

    scheduler = Scheduler(gpu)
    os.environ |= {"SPACES_ZERO_GPU": "true", "SPACES_ZERO_DEVICE_API_URL": scheduler.address}
    found = page(folder)
    same = found.pop("tokens") == tokens
    print(json.dumps(found | {"same": same, "alone, steps per second": steps}))


if __name__ == "__main__":
    main()
