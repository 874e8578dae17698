"""Training rows: generated problems as token arrays, made by worker processes on the CPU."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from d2cache.teaching import tasks

LONGEST = 768  # tokens of a row
MOST_PADDING = 256  # as much as the largest answer length of the page leaves
CHUNK_TOKENS = 400_000  # of a file that a worker writes
FIRST_CHUNK_TOKENS = 40_000  # so that training starts at once
VARIANTS = 200  # training problems made of one, in families that can
# family -> share of the rows, relative to the others
MIX = {key: family.weight for key, family in tasks.FAMILIES.items()}

# What a position of a row is. CELL: of an answer that is a board. GAP: of a text with gaps, which
# may be anywhere in it.
PROMPT, EXAMPLE, ANSWER, PADDING, CELL, GAP = range(6)
BARE = ("stories", "word", "code", "arithmetic")  # families whose parts are also shown bare


class Source:
    """An endless supply of training problems; those of one hard problem come together."""

    def __init__(self, rng: random.Random):
        self.rng = rng
        self.streams = {key: self._stream(family) for key, family in tasks.FAMILIES.items()}

    def draw(self, family: str) -> tasks.Problem:
        return next(self.streams[family])

    def _stream(self, family: tasks.Family) -> Iterator[tasks.Problem]:
        while True:
            for problem in family.variants(family.make(self.rng), self.rng, VARIANTS):
                if not tasks.is_held_out(problem.prompt):
                    yield problem


def turns(source: Source) -> list[tuple[str, str, int]]:
    """The questions of one row, in order: (prompt, answer, kind of the answer).

    Three rows in ten put solved examples before the question, as few-shot prompts do; boards have
    none. Six in ten rows of facts ask several questions about one list, which is in the first
    prompt only: one answer per long list is too little for the model to learn to look things up in
    it. None of these answers is an example: all are masked, and weighted, alike.
    """
    rng = source.rng
    family = rng.choices(list(MIX), list(MIX.values()))[0]
    if tasks.FAMILIES[family].gaps:
        return [("", _text_with_gaps(source), GAP)]
    if family == "facts" and rng.random() < 0.6:
        facts, asked = tasks.draw_questions(rng, rng.randint(2, 4))
        return [
            (question if i else f"{facts} {question}", answer, ANSWER)
            for i, (question, answer) in enumerate(asked)
        ]
    first = source.draw(family)
    board = tasks.FAMILIES[family].board(first.prompt) is not None
    solved = rng.randint(1, 4) if rng.random() < 0.3 and family != "facts" and not board else 0
    problems = [source.draw(family) for _ in range(solved)] + [first]
    kinds = [EXAMPLE] * solved + [CELL if board else ANSWER]
    return [(p.prompt, p.answer, kind) for p, kind in zip(problems, kinds, strict=True)]


def _text_with_gaps(source: Source) -> str:
    """A text in which gaps will be masked: a question with its answer, or a part of them alone."""
    rng = source.rng
    texts = [key for key in MIX if not tasks.FAMILIES[key].gaps]
    family = rng.choices(texts, [MIX[key] for key in texts])[0]
    problem = source.draw(family)
    if family in BARE and rng.random() < 0.4:
        return rng.choice((problem.prompt, problem.answer))
    return f"Q: {problem.prompt}\nA: {problem.answer}"


def row(tokenizer, source: Source, eos_id: int) -> np.ndarray:
    """One row (2, L) int16: token ids, and for each position what it is.

    The last answer ends with one end-of-text token of its own kind and is padded with more
    (PADDING). A text with gaps has no padding: at decoding there is none. One board in seven ends
    with its last cell, as an answer length without spare room does.
    """
    rng = source.rng
    texts, kinds = [], []
    for prompt, answer, kind in turns(source):
        texts += [("\n\nQ: " if texts else "Q: ") + prompt + "\nA:", " " + answer]
        kinds += [PROMPT, kind]
    if kinds == [PROMPT, GAP]:
        texts, kinds = [texts[1][1:]], [GAP]
    ids = [e.ids for e in tokenizer.encode_batch(texts, add_special_tokens=False)]
    # drop examples from the front until the prompt fits
    while len(kinds) > 1 and kinds[1] == EXAMPLE and sum(map(len, ids[:-1])) > 512:
        ids, kinds = ids[2:], kinds[2:]
        ids[0] = tokenizer.encode(texts[-len(ids)].lstrip("\n"), add_special_tokens=False).ids
    tokens = [t for part in ids for t in part]
    what = [k for part, k in zip(ids, kinds, strict=True) for _ in part]
    last = kinds[-1]
    ends = rng.random() < (0.3 if last == GAP else 0.85 if last == CELL else 1)
    pad = _padding(rng) if ends and last != GAP else 0
    tokens += [eos_id] * (ends + pad)
    what += [last] * ends + [PADDING] * pad
    if len(tokens) > LONGEST:
        return row(tokenizer, source, eos_id)
    return np.array([tokens, what], dtype=np.int16)


def _padding(rng: random.Random) -> int:
    """Tokens after the first end of text: few as a rule, at times very many, as canvases have."""
    most = rng.choices((12, 48, 96, MOST_PADDING), (40, 25, 20, 15))[0]
    return rng.randint(0, most)


def produce(folder: str, tokenizer_file: str, eos_id: int, seed: str) -> None:
    """Write rows into a folder for ever: files (3, N) int16 of rows one after the other.

    The third line marks the first token of each row with 1.
    """
    # the tokenizer's own threads, many in each of many workers, would starve the training
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from tokenizers import Tokenizer

    os.nice(10)  # the training process has priority
    tokenizer, source = Tokenizer.from_file(tokenizer_file), Source(random.Random(seed))
    size, count = FIRST_CHUNK_TOKENS, 0
    while True:
        path = Path(folder) / f"{seed}-{count}.npy"
        np.save(path.with_suffix(".part.npy"), chunk(tokenizer, source, eos_id, size))
        path.with_suffix(".part.npy").rename(path)
        size, count = min(2 * size, CHUNK_TOKENS), count + 1


def chunk(tokenizer, source: Source, eos_id: int, size: int) -> np.ndarray:
    """Rows of at least `size` tokens together, (3, N) int16 as `produce` writes them."""
    rows, total = [], 0
    while total < size:
        one = row(tokenizer, source, eos_id)
        rows.append(np.concatenate([one, np.zeros_like(one[:1])]))
        rows[-1][2, 0] = 1
        total += one.shape[1]
    return np.concatenate(rows, axis=1)
