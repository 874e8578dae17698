"""Held-out accuracy of a model on the generated problems, under any policy and decoder."""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from d2cache.canvas import Step
from d2cache.decoders import Decoder, make_decoder
from d2cache.generate import generate
from d2cache.model import Model
from d2cache.policies import make_policy
from d2cache.teaching import tasks

Progress = Callable[[Callable[[], int]], None]  # called with what counts the answers


def held_out(family: str, count: int, seed: int) -> list[tasks.Problem]:
    """`count` problems that training never sees; the same seed gives the same problems."""
    rng = random.Random(f"exam {family} {seed}")
    return [tasks.draw(family, rng, held_out=True) for _ in range(count)]


def exam(
    model: Model,
    family: str,
    policy: str,
    decoder: Decoder,
    count: int,
    seed: int,
    batch: int = 16,
    shots: int = 0,
    block_length: int | None = None,
    progress: Progress | None = None,
) -> dict:
    """Decode `count` held-out problems; -> accuracy, mean steps per problem, seconds, failures.

    shots: solved training problems of the family shown before each question; ValueError in a family
    of texts with gaps. block_length: of semi-autoregressive decoding, None for the whole answer as
    one block. progress: called after each step with a function that counts the answers so far.

    Each answer of a batch stops at its own end of text, which changes no answer: what is written
    before the end stays. accuracy: share of the answers that are `tasks.correct`, 0 to 1.
    failures: [(problem, text)].
    """
    problems = held_out(family, count, seed)
    settings = {"block_length": block_length}
    if tasks.FAMILIES[family].gaps:
        if shots:
            raise ValueError(f"shots is {shots}; it must be 0 for {family}: texts with gaps")
        prompts = model.encode_gaps([problem.prompt for problem in problems])
        settings |= {"gen_length": 0, "stop_at_eos": False}
    else:
        rng = random.Random(f"shots {family} {seed}")
        solved = [[tasks.draw(family, rng, held_out=False) for _ in range(shots)] for _ in problems]
        shown = [tasks.few_shot(s, p) for s, p in zip(solved, problems, strict=True)]
        prompts = [model.encode(text) for text in shown]
        settings |= {"gen_length": tasks.ANSWER_LENGTH[family], "stop_at_eos": True}
    failures, total, begin = [], 0, time.perf_counter()
    for i, text, steps in _answers(model, prompts, policy, decoder, batch, settings, progress):
        total += steps
        if not tasks.correct(problems[i], text):
            failures.append((problems[i], text))
    return {
        "family": family,
        "policy": policy,
        "decoder": decoder.key,
        "sigma": decoder.sigma,
        "problems": count,
        "accuracy": 1 - len(failures) / count,
        "steps": total / count,
        "seconds": time.perf_counter() - begin,
        "failures": failures,
    }


def _answers(
    model: Model,
    prompts: list[Tensor],
    policy: str,
    decoder: Decoder,
    batch: int,
    settings: dict,
    progress: Progress | None,
) -> Iterator[tuple[int, str, int]]:
    """Index, text and number of steps of each answer; the shortest prompts first."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # less padding in a batch
    for at in range(0, len(prompts), batch):
        part = order[at : at + batch]
        chosen = [prompts[i] for i in part]
        run = generate(model, chosen, make_policy(policy), decoder, **settings)
        steps = torch.zeros(len(part), dtype=torch.long, device=model.device)
        for step in run:
            steps += step.before.live  # answers that have ended take no more steps
            if progress is not None:
                progress(functools.partial(_ended, at, step))
        canvas = step.after
        # of a text with gaps the whole, of a question the answer
        first = canvas.firsts if canvas.given is None else canvas.start.tolist()
        ends = zip(part, canvas.tokens.cpu(), first, steps.tolist(), strict=True)
        for i, ids, at, count in ends:
            yield i, model.decode(ids[at:]).strip(), count


def _ended(earlier: int, step: Step) -> int:
    """Answers that have ended, given those of earlier batches."""
    return earlier + int((~step.after.live).sum())


def exam_table(model: Model, policies: list[str], count: int, seed: int, batch: int = 128) -> str:
    """A text table of accuracy in percent: one line per family, one column per policy."""
    lines = [f"{'family':12}" + "".join(f"{p:>8}" for p in policies)]
    for family in tasks.FAMILIES:
        cells = [
            exam(model, family, p, make_decoder("confidence"), count, seed, batch)["accuracy"]
            for p in policies
        ]
        lines.append(f"{family:12}" + "".join(f"{100 * c:8.1f}" for c in cells))
    return "\n".join(lines)
