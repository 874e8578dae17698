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
MIX = {"word": 30, "arithmetic": 18, "code": 14, "facts": 14, "lists": 12, "stories": 12}

PROMPT, EXAMPLE, ANSWER, PADDING = range(4)  # what a position of a row is


def row(tokenizer, rng: random.Random, eos_id: int, lengths=LENGTHS) -> np.ndarray:
    """One row (2, L) int16: token ids, and for each position what it is.

    Three rows in ten carry solved examples before the question, as few-shot prompts do. The
    answer ends with one end-of-text token (ANSWER) and is padded with more (PADDING).
    """
    family = rng.choices(list(MIX), list(MIX.values()))[0]
    solved = rng.randint(1, 4) if rng.random() < 0.3 and family != "facts" else 0
    texts, kinds = [], []
    for shot in range(solved + 1):
        problem = tasks.draw(family, rng, held_out=False)
        texts += [("\n\nQ: " if shot else "Q: ") + problem.prompt + "\nA:", " " + problem.answer]
        kinds += [PROMPT, ANSWER if shot == solved else EXAMPLE]
    ids = [e.ids for e in tokenizer.encode_batch(texts, add_special_tokens=False)]
    # drop examples from the front until the prompt fits
    while len(ids) > 2 and sum(map(len, ids[:-1])) > 512:
        ids, kinds = ids[2:], kinds[2:]
        ids[0] = tokenizer.encode(texts[-len(ids)].lstrip("\n"), add_special_tokens=False).ids
    tokens = [t for part in ids for t in part] + [eos_id]
    what = [k for part, k in zip(ids, kinds, strict=True) for _ in part] + [ANSWER]
    room = [n for n in lengths if n >= len(tokens) + 8] or [lengths[-1]]
    if len(tokens) > room[0]:
        return row(tokenizer, rng, eos_id, lengths)
    length = room[min(rng.choices((0, 1, 2), (5, 3, 2))[0], len(room) - 1)]
    pad = length - len(tokens)
    return np.array([tokens + [eos_id] * pad, what + [PADDING] * pad], dtype=np.int16)


def produce(folder: str, tokenizer_file: str, eos_id: int, seed: str) -> None:
    """Write chunks of rows into a folder for ever, one file (2, CHUNK_ROWS, L) a chunk."""
    from tokenizers import Tokenizer

    os.nice(5)  # the training process comes first
    tokenizer, rng = Tokenizer.from_file(tokenizer_file), random.Random(seed)
    waiting = {length: [] for length in LENGTHS}
    count = 0
    while True:
        one = row(tokenizer, rng, eos_id)
        rows = waiting[one.shape[1]]
        rows.append(one)
        # small first chunks, so that training starts at once
        if len(rows) == (CHUNK_ROWS if count > len(LENGTHS) else CHUNK_ROWS // 4):
            path = Path(folder) / f"{one.shape[1]}-{seed}-{count}.npy"
            np.save(path.with_suffix(".part.npy"), np.stack(rows, axis=1), allow_pickle=False)
            path.with_suffix(".part.npy").rename(path)
            rows.clear()
            count += 1
