"""The training: rows, masks, the pool, the optimiser, and steps that go on where they ended."""

import copy
import multiprocessing
import os
import random
import re
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lab import full_pass, run, small_model
from safetensors import safe_open
from safetensors.torch import load_file
from tokenizers import Tokenizer, models

import d2cache
from d2cache.model import CONFIGS, Model
from d2cache.teaching import data, masks, tasks, train
from d2cache.teaching import tokenizer as words
from d2cache.teaching.data import (
    ANSWER,
    CELL,
    EXAMPLE,
    GAP,
    LONGEST,
    MOST_PADDING,
    PADDING,
    PROMPT,
    Source,
    chunk,
    row,
)
from d2cache.teaching.pool import PARTS, Part, Pool
from d2cache.teaching.tasks import is_held_out

B, LENGTH = 4000, 40
CELLS = 81
EOS = 1022


@pytest.fixture(scope="module")
def tokenizer():
    return words.train_tokenizer(samples=300)


@pytest.fixture(scope="module")
def drawn():
    """Kinds of 4000 rows (16 prompt or example, 4 to 16 answer, then padding) and their masks."""
    rng = torch.Generator().manual_seed(0)
    place = torch.arange(LENGTH)
    size = torch.randint(4, 17, (B, 1), generator=rng)
    what = torch.where(place < 16 + size, ANSWER, PADDING)
    what[:, :16] = PROMPT
    what[: B // 2, 4:8] = EXAMPLE
    return what, masks.draw_mask(what, torch.Generator().manual_seed(1))


def test_the_prompt_is_never_masked_and_every_row_has_something_to_learn(drawn):
    what, mask = drawn
    assert mask.dtype == torch.bool and mask.shape == what.shape
    assert not (mask & (what == PROMPT)).any()
    assert (mask & (what == ANSWER)).any(1).all() or mask.any(1).all()


def test_many_rows_start_as_decoding_does_with_everything_masked(drawn):
    what, mask = drawn
    rest = (what == ANSWER) | (what == PADDING)
    share = (mask | ~rest).all(1).double().mean()
    assert 0.25 < share < 0.40


def test_many_rows_are_half_way_a_written_start_and_nothing_after(drawn):
    what, mask = drawn
    answer = what == ANSWER
    count, size = (mask & answer).sum(1), answer.sum(1)
    edge = size - count
    place = answer.cumsum(1) - 1
    suffix = (mask & answer) == (answer & (place >= edge[:, None]))
    assert 0.1 < (suffix.all(1) & (count > 0) & (count < size)).double().mean() < 0.5


def test_padding_is_sometimes_hidden_whole_while_some_of_the_answer_is_written(drawn):
    """Else the answer's length could be read off the padding."""
    what, mask = drawn
    padding, answer = what == PADDING, what == ANSWER
    hidden = (mask | ~padding).all(1)
    some = ((answer & ~mask).sum(1) > 0) & ((answer & mask).sum(1) > 0)
    assert 0.3 < (hidden & some).double().sum() / some.double().sum() < 0.95


def test_every_rate_of_masking_occurs(drawn):
    what, mask = drawn
    answer = what == ANSWER
    share = (mask & answer).sum(1) / answer.sum(1)
    counts = torch.histc(share, bins=5, min=0, max=1)
    assert (counts > 0.04 * B).all()


def test_examples_are_masked_in_half_of_the_rows_at_most(drawn):
    what, mask = drawn
    with_some = (mask & (what == EXAMPLE))[: B // 2].any(1).double().mean()
    assert 0.2 < with_some < 0.5


def test_masks_follow_their_generator(drawn):
    what, mask = drawn
    assert torch.equal(masks.draw_mask(what, torch.Generator().manual_seed(1)), mask)
    assert not torch.equal(masks.draw_mask(what, torch.Generator().manual_seed(2)), mask)


def test_rows_weigh_alike_and_padding_a_tenth(drawn):
    what, mask = drawn
    weight = masks.loss_weights(what, mask)
    assert ((weight > 0) == mask).all()
    torch.testing.assert_close(weight.sum(1), torch.full((B,), 1 / B))
    for b in range(B):
        parts = {k: weight[b][mask[b] & (what[b] == k)] for k in (ANSWER, PADDING, EXAMPLE)}
        if all(len(p) for p in parts.values()):
            assert abs(parts[PADDING][0] / parts[ANSWER][0] - 0.1) < 1e-5
            assert abs(parts[EXAMPLE][0] / parts[ANSWER][0] - 0.5) < 1e-5
            break
    else:
        raise AssertionError("guard: a row with all three kinds")


@pytest.fixture(scope="module")
def boards():
    """Kinds of 4000 rows (8 prompt, 81 cells, 0 to 11 padding) and their masks."""
    padding = torch.arange(B)[:, None] % 12
    place = torch.arange(8 + CELLS + 11)
    what = torch.where(place < 8 + CELLS, CELL, PADDING).expand(B, -1).clone()
    what[:, :8] = PROMPT
    what[place[None] >= 8 + CELLS + padding] = PROMPT  # rows as if of several lengths
    return what, masks.draw_mask(what, torch.Generator().manual_seed(2))


def test_a_board_is_masked_at_one_rate_or_whole_never_half_way(boards):
    what, mask = boards
    assert not (mask & (what == PROMPT)).any() and mask.any(1).all()
    cells = mask[:, 8 : 8 + CELLS]
    count = cells.sum(1)
    whole = count == CELLS
    assert 0.14 < whole.double().mean() < 0.19, "0.15, and those whose rate is close to 1"
    shares = torch.histc(count[~whole] / CELLS, bins=5, min=0, max=1) / (~whole).sum()
    assert (shares > 0.14).all(), "every rate is as likely"
    some = cells[(count > 8) & (count < CELLS - 8)].double()
    assert len(some) > B // 2
    # a half-way mask depends on the place, and its cells depend on those before
    assert (some.mean(0) - some.mean()).abs().max() < 0.05
    rate = some.mean(1, keepdim=True)
    runs = (some[:, 1:] != some[:, :-1]).double().mean(1)
    expected = (2 * rate * (1 - rate))[:, 0] * CELLS / (CELLS - 1)
    assert ((runs - expected).abs() < 0.25).all(), "each cell by itself"
    assert abs(float((runs - expected).mean())) < 0.01


def test_padding_after_a_whole_board_is_masked_and_half_of_the_others_hide_it(boards):
    what, mask = boards
    padding = what == PADDING
    whole = mask[:, 8 : 8 + CELLS].all(1)
    several = padding.sum(1) > 5
    hidden = (mask | ~padding).all(1)
    assert hidden[whole].double().mean() > 0.97
    assert 0.4 < hidden[~whole & several].double().mean() < 0.7


def stretch_counts(line):
    """How many runs of True each row has, and the longest one: (B,) int64 and int."""
    edge = F.pad(line.int(), (1, 1)).diff(dim=1)
    ends = (edge == -1).nonzero()[:, 1] - (edge == 1).nonzero()[:, 1]
    return (edge == 1).sum(1), int(ends.max())


def test_gaps_are_one_to_three_stretches_and_never_none():
    size = torch.randint(1, 61, (B, 1), generator=torch.Generator().manual_seed(3))
    text = (torch.arange(60) < size).expand(B, -1)
    what = torch.where(text, GAP, PROMPT)
    mask = masks.draw_mask(what, torch.Generator().manual_seed(4))
    assert mask.any(1).all() and not (mask & ~text).any()
    long = size[:, 0] > 40
    count, _ = stretch_counts(mask[long])
    for n in (1, 2, 3):
        assert (count == n).double().mean() > 0.15
    assert (count <= 3).double().mean() > 0.75, "more only where a gap is written in part"
    assert mask[long].sum(1).max() <= masks.MOST_GAPS * masks.LONGEST_GAP
    share = mask[long, :40].double().mean(0)
    assert share[0] > 0 and share[10:].min() > 0.7 * share.max(), "anywhere"


def test_no_gap_is_longer_than_ten_and_some_are_written_in_part(monkeypatch):
    monkeypatch.setattr(masks, "MOST_GAPS", 1)
    text = torch.ones(B, 60, dtype=torch.bool)
    gaps = masks.draw_gaps(text, torch.Generator().manual_seed(5))
    count, longest = stretch_counts(gaps)
    assert longest == masks.LONGEST_GAP
    split = (count > 1).double().mean()
    assert 0.1 < split < 0.45, "a single gap with a written position in it"


def test_rows_without_a_text_with_gaps_have_no_gap():
    text = torch.zeros(8, 20, dtype=torch.bool)
    assert not masks.draw_gaps(text, torch.Generator().manual_seed(0)).any()


def test_cells_and_gaps_weigh_as_answers_do():
    what = torch.tensor([[PROMPT, CELL, CELL, CELL, PADDING], [GAP] * 5, [PROMPT, *[ANSWER] * 4]])
    mask = torch.tensor([[0, 1, 0, 1, 1], [0, 1, 1, 0, 0], [0, 1, 1, 1, 1]]).bool()
    got = masks.loss_weights(what, mask) * 3
    want = torch.tensor([[0, 1, 0, 1, 0.1], [0, 1, 1, 0, 0], [0, 1, 1, 1, 1]])
    torch.testing.assert_close(got, want / want.sum(1, keepdim=True))


class Remembering(Source):
    """A source that keeps the problems drawn from it."""

    def __init__(self, rng):
        super().__init__(rng)
        self.drawn = []

    def draw(self, family):
        self.drawn.append(super().draw(family))
        return self.drawn[-1]


@pytest.fixture(scope="module")
def rows(tokenizer):
    """1500 rows, each with the problems that it was made of."""
    source, found = Remembering(random.Random(0)), []
    for _ in range(1500):
        source.drawn.clear()
        found.append((row(tokenizer, source, EOS), tuple(source.drawn)))
    return found


def stretches(ids, what):
    """The row's runs of one kind, padding left out: (kind, ids) each."""
    cuts = [0, *((what[1:] != what[:-1]).nonzero()[0] + 1).tolist(), len(what)]
    runs = [(int(what[a]), ids[a:b].tolist()) for a, b in pairwise(cuts)]
    return runs[:-1] if runs[-1][0] == PADDING else runs


def test_a_row_is_prompts_and_answers_then_one_end_and_padding(tokenizer, rows):
    paddings = []
    for (ids, what), _ in rows:
        assert ids.dtype == np.int16 and len(ids) <= LONGEST and (ids <= EOS).all()
        kinds = [kind for kind, _ in stretches(ids, what)]
        if GAP in kinds:
            continue
        assert kinds[::2] == [PROMPT] * (len(kinds) // 2)
        assert (ids[what == PADDING] == EOS).all(), "and all of it at the end:"
        padding = int((what == PADDING).sum())
        written = len(ids) - padding
        assert (what[written:] == PADDING).all()
        if kinds[-1] == ANSWER:
            assert ids[written - 1] == EOS and (ids[: written - 1] != EOS).all()
            paddings.append(padding)
        for kind, run_ids in stretches(ids, what):
            if kind == PROMPT:
                text = tokenizer.decode(run_ids).removeprefix("\n\n")
                assert text.startswith("Q: ") and text.endswith("\nA:")
    assert min(paddings) == 0 and 200 < max(paddings) <= MOST_PADDING
    assert sum(p <= 12 for p in paddings) > 0.4 * len(paddings), "few as a rule"


def test_examples_come_in_three_rows_of_ten_and_never_before_a_board_or_in_facts(rows):
    texts = [
        EXAMPLE in what
        for (_, what), problems in rows
        if ANSWER in what and problems and problems[-1].family != "facts"
    ]
    assert 0.2 < sum(texts) / len(texts) < 0.4
    for (ids, what), problems in rows:
        if CELL in what:
            assert [kind for kind, _ in stretches(ids, what)] == [PROMPT, CELL]
        if EXAMPLE in what:
            assert all(p.family != "facts" for p in problems)


def test_an_answer_is_of_cells_exactly_where_its_family_has_a_board(rows):
    full, boards = 0, 0
    for (ids, what), problems in rows:
        board = tasks.board(problems[-1].prompt) if GAP not in what and problems else None
        assert (board is not None) == (CELL in what)
        if board is None:
            continue
        boards += 1
        ended = int((ids[what == CELL] == EOS).sum())
        assert ended <= 1 and (what == CELL).sum() == board.rows * board.columns + ended
        if not ended:
            full += 1
            assert what[-1] == CELL, "its last cell is the row's last token"
    assert boards > 400 and 0.1 < full / boards < 0.2


def test_a_text_with_gaps_has_no_padding_and_at_most_one_end(tokenizer, monkeypatch):
    keys = [key for key, family in tasks.FAMILIES.items() if not family.gaps]
    monkeypatch.setattr(data, "MIX", dict.fromkeys(keys, 1))
    source = Remembering(random.Random(1))
    monkeypatch.setattr(data, "turns", lambda s: [("", data._text_with_gaps(s), GAP)])
    ended, bare, families = 0, 0, set()
    for _ in range(400):
        ids, what = row(tokenizer, source, EOS)
        problem = source.drawn[-1]
        assert (what == GAP).all() and (ids[:-1] != EOS).all()
        ended += ids[-1] == EOS
        text = tokenizer.decode(ids.tolist(), skip_special_tokens=True)
        whole = f"Q: {problem.prompt}\nA: {problem.answer}"
        assert text in (whole, problem.prompt, problem.answer)
        assert text == whole or problem.family in data.BARE
        bare += text != whole
        families.add(problem.family)
        assert not is_held_out(problem.prompt)
    assert 0.2 < ended / 400 < 0.4 and bare > 20 and families == set(keys)


def test_one_kind_of_row_in_a_mix_is_a_text_with_gaps(rows):
    share = sum(GAP in what for (_, what), _ in rows) / len(rows)
    expected = tasks.FAMILIES["holes"].weight / sum(data.MIX.values())
    assert 0.6 * expected < share < 1.5 * expected


def test_no_row_shows_a_prompt_of_the_test(tokenizer, rows):
    shown = set()
    for (ids, _), problems in rows:
        assert not any(is_held_out(p.prompt) for p in problems)
        shown |= {p.family for p in problems}
        text = tokenizer.decode(ids.tolist(), skip_special_tokens=True)
        asked = re.findall(r"Q: (.*?)\nA:", text, re.DOTALL)
        if problems:  # facts with several questions are made without: another test looks at them
            assert {p.prompt for p in problems} >= set(asked)
    texts = {key for key, family in tasks.FAMILIES.items() if not family.gaps}
    assert shown == texts, "guard: all families are in the rows"


def test_no_problem_of_any_family_is_drawn_from_the_test():
    source = Source(random.Random(3))
    for family in tasks.FAMILIES:
        assert not any(is_held_out(source.draw(family).prompt) for _ in range(100))


def test_a_file_of_rows_says_where_each_starts(tokenizer):
    whole = chunk(tokenizer, Source(random.Random(5)), EOS, 3000)
    assert whole.dtype == np.int16 and 3000 <= whole.shape[1] < 3000 + LONGEST
    source = Source(random.Random(5))
    for one in np.split(whole, np.flatnonzero(whole[2])[1:], axis=1):
        assert np.array_equal(one[:2], row(tokenizer, source, EOS))


def some_chunk(rng, count):
    """Rows of random lengths and numbers, as `data.chunk` lays them out; and the rows."""
    rows = [rng.integers(0, 1000, (2, rng.integers(1, 30))).astype(np.int16) for _ in range(count)]
    starts = [np.eye(1, one.shape[1], dtype=np.int16) for one in rows]
    laid = np.concatenate([np.concatenate(pair) for pair in zip(rows, starts, strict=True)], axis=1)
    return laid, rows


def test_the_pool_gives_rows_as_they_were_added_after_it_has_grown(tmp_path):
    rng, full = np.random.default_rng(0), Pool(torch.device("cpu"), str(tmp_path))
    added = []
    for i, count in enumerate((5, 60, 1, 40, 3)):
        laid, rows = some_chunk(rng, count)
        added += rows
        if i % 2:
            full.add(laid)
        else:
            np.save(tmp_path / f"0.{i}-0.npy", laid)
            full.take_in()
    np.save(tmp_path / "0.9-0.part.npy", laid)  # a file that a worker still writes
    full.take_in()
    assert [p.name for p in tmp_path.iterdir()] == ["0.9-0.part.npy"]
    assert full.tokens() == sum(one.shape[1] for one in added)
    known, seen, draw = {one.tobytes() for one in added}, set(), random.Random(0)
    for _ in range(400):
        parts = full.batch(draw, 400)
        assert len(parts) == PARTS and sum(p.tokens.numel() for p in parts) <= 400
        for part in parts:
            assert part.tokens.shape == part.what.shape
            assert part.tokens.shape[0] == 400 // PARTS // part.tokens.shape[1]
            both = torch.stack([part.tokens, part.what], 1).numpy().astype(np.int16)
            seen |= {one.tobytes() for one in both}
    assert seen == known


def test_lengths_are_drawn_by_their_share_of_the_tokens(tmp_path):
    full, draw = Pool(torch.device("cpu"), str(tmp_path)), random.Random(0)
    laid = np.zeros((3, 30 * 10 + 10 * 90), np.int16)
    laid[2, [*range(0, 300, 10), *range(300, 1200, 90)]] = 1
    full.add(laid)
    drawn = [part.tokens.shape[1] for _ in range(300) for part in full.batch(draw, 400)]
    assert 0.70 < drawn.count(90) / len(drawn) < 0.80


@pytest.fixture(scope="module")
def facts_rows(tokenizer):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "MIX", {"facts": 1})
        source = Source(random.Random(4))
        return [row(tokenizer, source, EOS) for _ in range(300)]


def test_most_rows_of_facts_ask_several_questions_about_one_list(tokenizer, facts_rows):
    several = 0
    for ids, what in facts_rows:
        runs = stretches(ids, what)
        assert [kind for kind, _ in runs] == [PROMPT, ANSWER] * (len(runs) // 2)
        texts = [tokenizer.decode(run, skip_special_tokens=True) for _, run in runs]
        facts, question = re.fullmatch(r"Q: (.*\.) ([^.]*\?)\nA:", texts[0]).groups()
        questions = [question]
        for text in texts[2::2]:
            questions.append(re.fullmatch(r"\n\nQ: ([^.]*\?)\nA:", text).group(1))
        for question, answer in zip(questions, texts[1::2], strict=True):
            assert not is_held_out(f"{facts} {question}")
            assert re.fullmatch(r" .*\. The answer is [A-Za-z ]+\.", answer)
        assert runs[-1][1][-1] == EOS and sum(run.count(EOS) for _, run in runs) == 1
        assert len(questions) <= 4
        several += len(questions) > 1
    assert 0.5 < several / len(facts_rows) < 0.7


def test_all_answers_of_such_a_row_are_masked_and_count_alike(facts_rows):
    rows = [torch.tensor(r[1]).long() for r in facts_rows if len(stretches(*r)) > 2]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PADDING)
    what = padded.repeat(20, 1)
    mask = masks.draw_mask(what, torch.Generator().manual_seed(3))
    weight = masks.loss_weights(what, mask)
    assert not (mask & (what == PROMPT)).any()
    answer = what == ANSWER
    first = answer & ((answer & ~answer.roll(1, 1)).cumsum(1) == 1)
    last = answer & (answer.flip(1).cumsum(1).flip(1) <= 8)
    shares = [((mask & part).sum() / part.sum()).item() for part in (first, last)]
    assert all(share > 0.5 for share in shares), "every answer is learned from"
    whole = [(mask | ~part).all(1).double().mean().item() for part in (first, answer)]
    assert all(share > 0.25 for share in whole), "as decoding begins"
    written = ~(mask & first).any(1) & (mask & answer).any(1)
    assert written.double().mean() > 0.1, "earlier answers are written while a later one is learned"
    for b in range(len(what)):
        assert len(weight[b][mask[b] & answer[b]].unique()) <= 1


def test_muon_is_torchs_muon():
    torch.manual_seed(0)
    shapes = [(64, 32), (64, 32), (32, 64), (48, 48)]
    ours = [torch.nn.Parameter(torch.randn(s)) for s in shapes]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    mine = train.Muon(ours, lr=0.01)
    other = torch.optim.Muon(
        theirs, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw", momentum=0.95
    )
    for _ in range(5):
        before = [p.detach().clone() for p in theirs]
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        mine.step()
        other.step()
        for p, q, b in zip(ours, theirs, before, strict=True):
            assert (p - q).norm() < 0.05 * (q - b).norm(), "within bfloat16 of one step"
            with torch.no_grad():
                p.copy_(q)


def smoothed(logits, target):
    """The loss of one position by its definition: smoothed targets, and the z-loss."""
    log_p = logits.log_softmax(-1)
    goal = torch.full_like(log_p, train.SMOOTHING / len(log_p))
    goal[target] += 1 - train.SMOOTHING
    return -(goal * log_p).sum() + train.Z_LOSS * logits.logsumexp(-1) ** 2


@pytest.fixture
def packed(monkeypatch):
    """A model, parts of rows of several lengths, and the masks that the training pass will draw."""
    model = small_model(70).requires_grad_(True)
    rng = torch.Generator().manual_seed(0)
    parts = []
    for b, length in ((3, 7), (1, 12), (2, 4), (4, 9)):
        what = torch.full((b, length), ANSWER)
        what[:, :2], what[:, -1] = PROMPT, PADDING
        parts.append(Part(torch.randint(0, 58, (b, length), generator=rng), what))
    source = torch.Generator().manual_seed(6)
    drawn = {id(part.what): masks.draw_mask(part.what, source) for part in parts}
    monkeypatch.setattr(train, "draw_mask", lambda what, rng: drawn[id(what)])
    return model, parts, drawn, train.Net(model, compiled=False)


def test_the_loss_of_a_packed_batch_is_the_mean_of_its_rows_by_the_decoding_pass(packed):
    model, parts, drawn, net = packed
    got, want = net.loss(parts, None, 100), []
    for part in parts:
        for tokens, what, mask in zip(*part, drawn[id(part.what)], strict=True):
            with torch.no_grad():
                logits = full_pass(model, tokens.masked_fill(mask, model.config.mask_id)[None])[0]
            weight = masks.loss_weights(what[None], mask[None])[0]
            at = mask.nonzero()[:, 0].tolist()
            want.append(sum(weight[j] * smoothed(logits[j], int(tokens[j])) for j in at))
    assert len(want) == 10
    torch.testing.assert_close(got.double(), torch.stack(want).mean(), atol=1e-5, rtol=1e-5)


def test_the_gradient_of_a_packed_batch_is_the_mean_of_its_rows_trained_alone(packed):
    model, parts, drawn, net = packed
    named = dict(model.named_parameters())
    got = torch.autograd.grad(net.loss(parts, None, 100), list(named.values()))
    alone = [torch.zeros_like(p) for p in named.values()]
    for part in parts:
        for i in range(len(part.tokens)):
            one = Part(*(t[i : i + 1] for t in part))
            drawn[id(one.what)] = drawn[id(part.what)][i : i + 1]
            grads = torch.autograd.grad(net.loss([one], None, 12), list(named.values()))
            torch._foreach_add_(alone, list(grads))
    for name, a, b in zip(named, got, alone, strict=True):
        torch.testing.assert_close(a, b / 10, atol=1e-6, rtol=1e-4, msg=name)


def test_attention_stays_within_each_row():
    shapes, rng = [torch.Size((2, 3)), torch.Size((1, 5))], torch.Generator().manual_seed(0)
    line = [torch.randn(1, 2, 14, 4, generator=rng, dtype=torch.float64) for _ in range(3)]
    q, k, v = (t.requires_grad_() for t in line)
    out = train._attended(q, k, v, shapes)
    assert out.shape == (1, 14, 8) and not out[:, 11:].any()
    for start, end in ((0, 3), (3, 6), (6, 11)):
        row_qkv = [t[:, :, start:end] for t in (q, k, v)]
        alone = F.scaled_dot_product_attention(*row_qkv).transpose(1, 2).flatten(2)
        torch.testing.assert_close(out[:, start:end], alone)
        loss = out[:, start:end].square().sum()
        for grad in torch.autograd.grad(loss, (q, k, v), retain_graph=True):
            assert grad[:, :, start:end].any()
            assert not grad[:, :, :start].any() and not grad[:, :, end:].any()


def test_no_confidence_is_drawn_to_one_and_no_logits_to_infinity():
    """Where the loss is least: a confidence below 1, and logits whose log-sum is near 0."""
    vocab, target = 50, 7
    logits = torch.zeros(1, vocab, dtype=torch.float64, requires_grad=True)

    class AsGiven:
        """Its logits are its input."""

        norm = head = staticmethod(lambda x: x)

    one = torch.ones(1)
    for confidence, pull in ((1 - 2e-4, -1), (1 - 1e-5, 1)):
        p = torch.full((1, vocab), (1 - confidence) / (vocab - 1), dtype=torch.float64)
        p[0, target] = confidence
        with torch.no_grad():
            logits.copy_(p.log())
        loss = train._score(AsGiven, logits[None], torch.tensor([target]), one)
        (grad,) = torch.autograd.grad(loss, logits)
        assert grad[0, target] * pull > 0, "towards a confidence of 1 - 1e-4"
    for shift in (-5.0, 5.0):
        loss = train._score(AsGiven, logits[None] + shift, torch.tensor([target]), one)
        (grad,) = torch.autograd.grad(loss, logits)
        assert float(grad.sum()) * shift > 0, "towards a log-sum of 0"


def test_the_rate_warms_up_stays_and_falls():
    assert train.rate_at(0.0, 0) == 1 / train.WARM_UP
    assert train.rate_at(0.3, 10**4) == 1.0 == train.rate_at(train.STEADY, 10**4)
    assert abs(train.rate_at((1 + train.STEADY) / 2, 10**4) - 0.5) < 1e-9
    assert train.rate_at(1.0, 10**4) == 0.01


@pytest.fixture(scope="module")
def short():
    """Two layers instead of eight."""
    return replace(CONFIGS["tiny"], layers=2, width=64, mlp=96)


@pytest.fixture
def quick(monkeypatch, tokenizer, short):
    """A small model, and the tokenizer made once; torch's settings put back."""
    monkeypatch.setitem(train.CONFIGS, "tiny", short)
    monkeypatch.setattr(train, "train_tokenizer", lambda: tokenizer)
    monkeypatch.setattr(words, "token_frequency", partial(words.token_frequency, samples=30))
    precision = torch.get_float32_matmul_precision()
    yield short
    torch.set_float32_matmul_precision(precision)


def saved_state(folder):
    with safe_open(folder / "state.safetensors", "pt") as file:
        return {n: file.get_tensor(n) for n in file.keys()}, file.metadata()  # noqa: SIM118


def test_training_goes_on_where_it_ended_and_leaves_a_model(quick, tmp_path, monkeypatch, capsys):
    arguments = ["--out", str(tmp_path), "--batch-tokens", "3072", "--minutes", "60", "--steps"]
    fresh = Model(quick).state_dict()
    train.main([*arguments, "3"])
    first, meta = saved_state(tmp_path)
    assert meta["step"] == "3" and "from step 0" in capsys.readouterr().out
    for name in fresh:
        assert first[f"param.{name}"].isfinite().all()
    moved = first["param.blocks.0.qkv_proj.weight"] - first["average.blocks.0.qkv_proj.weight"]
    assert moved.abs().max() > 0, "the average follows behind"

    loop, entered = train._loop, {}

    def watched(args, training, *rest):
        entered["step"] = training.step
        entered["param"] = {n: p.detach().clone() for n, p in training.model.named_parameters()}
        entered["average"] = {n: p.clone() for n, p in training.average.items()}
        entered["optim"] = copy.deepcopy([o.state_dict()["state"] for o in training.optims])
        loop(args, training, *rest)

    monkeypatch.setattr(train, "_loop", watched)
    monkeypatch.setattr(train, "train_tokenizer", None)
    kept = (tmp_path / "tokenizer.json").read_bytes()
    train.main([*arguments, "5"])
    assert (tmp_path / "tokenizer.json").read_bytes() == kept, "the tokenizer of the folder stays"
    second, meta = saved_state(tmp_path)
    assert entered["step"] == 3 and meta["step"] == "5"
    for kind in ("param", "average"):
        for name, value in entered[kind].items():
            assert torch.equal(value.cpu(), first[f"{kind}.{name}"].cpu()), (
                f"{kind} {name} was not resumed"
            )
    states = {
        f"optim.{i}.{j}.{k}": torch.as_tensor(value)
        for i, optim in enumerate(entered["optim"])
        for j, state in optim.items()
        for k, value in state.items()
    }
    assert states.keys() == {n for n in first if n.startswith("optim.")} != set()
    assert all(torch.equal(states[n], first[n]) for n in states)
    assert any(not torch.equal(first[n], second[n]) for n in first)

    model = d2cache.load(str(tmp_path), device="cpu")
    weight = model.blocks[0].qkv_proj.weight
    assert torch.equal(weight, second["average.blocks.0.qkv_proj.weight"].bfloat16().float())
    ids = model.encode("What is 2 + 3?")
    steps = run(model, ids, "d2", gen_length=4)
    assert isinstance(model.decode(steps[-1].after.tokens[0, len(ids) :]), str)


def test_training_starts_from_the_weights_of_a_checkpoint(quick, tmp_path, monkeypatch):
    arguments = ["--batch-tokens", "3072", "--minutes", "60", "--steps", "1", "--out"]
    assert train.main([*arguments, str(tmp_path / "a")]) == 0
    stored = d2cache.load(str(tmp_path / "a"), device="cpu").state_dict()
    loop, entered, rates = train._loop, {}, []

    def watched(args, training, *rest):
        entered.update({n: p.detach().clone() for n, p in training.model.named_parameters()})
        assert training.step == 0 and not any(o.state_dict()["state"] for o in training.optims)
        assert all(torch.equal(training.average[n], p) for n, p in entered.items())
        loop(args, training, *rest)
        rates.extend(group["lr"] for optim in training.optims for group in optim.param_groups)

    monkeypatch.setattr(train, "_loop", watched)
    start = ["--start", str(tmp_path / "a"), "--rate", "0.25"]
    assert train.main([*arguments, str(tmp_path / "b"), *start]) == 0
    assert entered.keys() == stored.keys()
    assert all(torch.equal(entered[n], stored[n]) for n in entered)
    full = 0.25 * train.rate_at(0.0, 0)
    assert rates == pytest.approx([train.MUON_RATE * full, train.ADAM_RATE * full])


def of_words(*texts):
    return Tokenizer(models.WordLevel({text: i for i, text in enumerate(texts)}, unk_token="?"))


def test_weights_are_taken_token_by_token_where_the_text_is_the_same():
    model, other = small_model(1), small_model(2)
    other.tokenizer = of_words("?", "a", "b", "c")
    own = {n: p.detach().clone() for n, p in model.named_parameters()}
    train.take_weights(model, other, of_words("c", "new", "?", "a"))
    for name, p in other.named_parameters():
        got = model.get_parameter(name)
        if name not in ("embed.weight", "head.weight"):
            assert torch.equal(got, p), name
            continue
        assert torch.equal(got[[0, 2, 3]], p[[3, 0, 1]])
        kept = [1, *range(4, 60)]
        assert torch.equal(got[kept], own[name][kept])


def test_a_model_of_another_shape_cannot_be_the_start(
    quick, tmp_path, monkeypatch, capsys, tokenizer
):
    other = Model(replace(quick, layers=1))
    words.save_tokenizer(tokenizer, tmp_path / "a")
    train.export(other, dict(other.named_parameters()), tmp_path / "a")
    arguments = ["--out", str(tmp_path / "b"), "--start", str(tmp_path / "a"), "--steps", "1"]
    assert train.main([*arguments, "--batch-tokens", "3072"]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "layers is 1" in message


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--batch-tokens", "1535"], ["1535", "1536 or more"]),
        (["--minutes", "0"], ["--minutes is 0", "more than 0"]),
    ],
)
def test_what_cannot_be_trained_is_said_before_the_tokenizer_is_made(
    monkeypatch, tmp_path, capsys, flags, words
):
    monkeypatch.setattr(train, "train_tokenizer", None)
    assert train.main(["--out", str(tmp_path / "a"), *flags]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and all(word in message for word in words)
    assert not (tmp_path / "a").exists()


def test_a_pool_that_nobody_fills_says_so(tmp_path):
    with pytest.raises(ValueError, match="the processes that make rows have ended"):
        Pool(torch.device("cpu"), str(tmp_path), alive=lambda: False).wait()


def test_worker_processes_fill_the_pool_and_end_with_it(quick, tmp_path, tokenizer):
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    args = train.parse(["--out", str(tmp_path), "--workers", "1"])
    training = train.start(args, torch.device("cpu"), tokenizer)
    with train.making_rows(args, tokenizer, training) as filled:
        filled.wait()
        assert filled.tokens() >= data.FIRST_CHUNK_TOKENS
        part = filled.batch(random.Random(0), 3072)[0]
        text = tokenizer.decode(part.tokens[0].tolist(), skip_special_tokens=True)
        assert re.search("[a-z]", text) or "Sudoku" in text or part.what[0, 0] == GAP
        workers = multiprocessing.active_children()
        assert len(workers) == 1
    for worker in workers:
        worker.join(10)
        assert worker.exitcode == -signal.SIGTERM
    assert not filled.folder.exists()


ONE_OF_TWO = """
import dataclasses, sys
import torch
from safetensors.torch import save_file
from d2cache.model import CONFIGS
from d2cache.teaching import train

out = sys.argv[1]
CONFIGS["tiny"] = dataclasses.replace(CONFIGS["tiny"], layers=2, width=64, mlp=96)
mean, loop, step, kept = train._average_gradients, train._loop, train._step, {}

def stepped(training, net, parts, *rest):
    kept["rows"] = torch.cat([part.tokens.reshape(-1) for part in parts])
    return step(training, net, parts, *rest)

def averaged(model):
    kept.update({f"own.{n}": p.grad.clone() for n, p in model.named_parameters()})
    mean(model)
    kept.update({f"mean.{n}": p.grad.clone() for n, p in model.named_parameters()})

def ended(args, training, pool):
    kept.update({f"first.{n}": p.detach().clone() for n, p in training.model.named_parameters()})
    loop(args, training, pool)
    kept.update({f"last.{n}": p.detach() for n, p in training.model.named_parameters()})
    save_file(kept, f"{out}/{train._rank()}.kept")

train._average_gradients, train._loop, train._step = averaged, ended, stepped
sys.exit(train.main(["--out", out, "--batch-tokens", "3072", "--minutes", "60", "--steps", "2"]))
"""


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def test_two_processes_train_one_model_with_the_mean_gradient(short, tokenizer, tmp_path):
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", ONE_OF_TWO, str(tmp_path)],
            env={**os.environ, **shared, "RANK": str(i), "LOCAL_RANK": str(i)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    try:
        told = [one.communicate(timeout=120) for one in both]
    finally:
        for one in both:
            one.kill()
    assert [one.returncode for one in both] == [0, 0], told
    assert "from step 0" in told[0][0] and not told[1][0], "the first speaks for both"
    first, second = (load_file(tmp_path / f"{i}.kept") for i in range(2))
    assert not torch.equal(first["rows"], second["rows"]), "each has its own rows"
    for name in Model(short).state_dict():
        for kind in ("first", "mean", "last"):
            assert torch.equal(first[f"{kind}.{name}"], second[f"{kind}.{name}"]), (kind, name)
        own = [kept[f"own.{name}"] for kept in (first, second)]
        assert not torch.equal(*own)
        torch.testing.assert_close(first[f"mean.{name}"], sum(own) / 2)
        assert not torch.equal(first[f"first.{name}"], first[f"last.{name}"])
    state, meta = saved_state(tmp_path)
    assert meta["step"] == "2"
    assert all(
        torch.equal(state[f"param.{n}"], first[f"last.{n}"]) for n in Model(short).state_dict()
    )


def test_the_loss_of_one_batch_falls(quick, tokenizer, tmp_path):
    torch.manual_seed(0)
    model = Model(quick)
    train.first_weights(model)
    full = Pool(torch.device("cpu"), str(tmp_path))
    full.add(chunk(tokenizer, Source(random.Random(0)), EOS, 8192))
    parts = full.batch(random.Random(0), 3072)
    net, optims, losses = train.Net(model, compiled=False), train.optimisers(model), []
    for _ in range(12):
        loss = net.loss(parts, torch.Generator().manual_seed(0), 3072)
        losses.append(float(loss.detach()))
        loss.backward()
        for optim in optims:
            optim.step()
            optim.zero_grad(set_to_none=True)
    assert losses[0] > 6 and losses[-1] < 0.7 * losses[0]
