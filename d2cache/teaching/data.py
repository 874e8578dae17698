"""Training rows: generated problems as token arrays, made by worker processes on the CPU."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np

from d2cache.teaching import tasks

LENGTHS = (64, 96, 128, 192, 256, 384, 512, 768)  # row lengths; all divide BATCH_TOKENS
BATCH_TOKENS = 98304
CHUNK_ROWS = 2048
# family -> share of the rows, relative to the others
MIX = {key: family.weight for key, family in tasks.FAMILIES.items()}

PROMPT, EXAMPLE, ANSWER, PADDING = range(4)  # what a position of a row is


def turns(rng: random.Random) -> list[tuple[str, str, int]]:
    """The questions of one row, in order: (prompt, answer, kind of the answer).

    Three rows in ten put solved examples before the question, as few-shot prompts do. Six in ten
    rows of facts ask several questions about one list, which is in the first prompt only: one
    answer per long list is too little for the model to learn to look things up in it. None of
    these answers is an example: all are masked, and weighted, alike.
    """
    family = rng.choices(list(MIX), list(MIX.values()))[0]
    if family == "facts" and rng.random() < 0.6:
        facts, asked = tasks.draw_questions(rng, rng.randint(2, 4))
        return [
            (question if i else f"{facts} {question}", answer, ANSWER)
            for i, (question, answer) in enumerate(asked)
        ]
    solved = rng.randint(1, 4) if rng.random() < 0.3 and family != "facts" else 0
    problems = [tasks.draw(family, rng, held_out=False) for _ in range(solved + 1)]
    kinds = [EXAMPLE] * solved + [ANSWER]
    return [(p.prompt, p.answer, kind) for p, kind in zip(problems, kinds, strict=True)]


def row(tokenizer, rng: random.Random, eos_id: int, lengths=LENGTHS) -> np.ndarray:
    """One row (2, L) int16: token ids, and for each position what it is.

    The last answer ends with one end-of-text token (ANSWER) and is padded with more (PADDING).
    """
    texts, kinds = [], []
    for prompt, answer, kind in turns(rng):
        texts += [("\n\nQ: " if texts else "Q: ") + prompt + "\nA:", " " + answer]
        kinds += [PROMPT, kind]
    ids = [e.ids for e in tokenizer.encode_batch(texts, add_special_tokens=False)]
    # drop examples from the front until the prompt fits
    while kinds[1] == EXAMPLE and sum(map(len, ids[:-1])) > 512:
        ids, kinds = ids[2:], kinds[2:]
        ids[0] = tokenizer.encode(texts[-len(ids)].lstrip("\n"), add_special_tokens=False).ids
    tokens = [t for part in ids for t in part] + [eos_id]
    what = [k for part, k in zip(ids, kinds, strict=True) for _ in part] + [ANSWER]
    # at most as much padding as the largest answer length of the page
    room = [n for n in lengths if 8 <= n - len(tokens) <= 256] or [lengths[-1]]
    if len(tokens) > room[0]:
        return row(tokenizer, rng, eos_id, lengths)
    length = room[min(rng.choices((0, 1, 2), (5, 3, 2))[0], len(room) - 1)]
    pad = length - len(tokens)
    return np.array([tokens + [eos_id] * pad, what + [PADDING] * pad], dtype=np.int16)


def produce(folder: str, tokenizer_file: str, eos_id: int, seed: str) -> None:
    """Write chunks of rows into a folder for ever, one file (2, CHUNK_ROWS, L) per chunk."""
    from tokenizers import Tokenizer

    os.nice(5)  # the training process has priority
    tokenizer, rng = Tokenizer.from_file(tokenizer_file), random.Random(seed)
    waiting = {length: [] for length in LENGTHS}
    count = 0
    while True:
        one = row(tokenizer, rng, eos_id)
        rows = waiting[one.shape[1]]
        rows.append(one)
        # the first chunks are small, so that training starts at once
        if len(rows) == (CHUNK_ROWS if count > len(LENGTHS) else CHUNK_ROWS // 4):
            path = Path(folder) / f"{one.shape[1]}-{seed}-{count}.npy"
            np.save(path.with_suffix(".part.npy"), np.stack(rows, axis=1), allow_pickle=False)
            path.with_suffix(".part.npy").rename(path)
            rows.clear()
            count += 1
