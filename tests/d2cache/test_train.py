"""The training script: its masks, its optimiser, and three steps that go on where they ended."""

import random
import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from lab import run, small_model
from safetensors import safe_open

import d2cache
from d2cache.model import Model
from d2cache.teaching import data, train
from d2cache.teaching.data import ANSWER, EXAMPLE, PADDING, PROMPT, row
from d2cache.teaching.tasks import is_held_out
from d2cache.teaching.tokenizer import train_tokenizer

B, LENGTH = 4000, 40


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer()


@pytest.fixture(scope="module")
def drawn():
    """Kinds of 4000 rows (16 prompt or example, 4 to 16 answer, then padding) and their masks."""
    rng = torch.Generator().manual_seed(0)
    place = torch.arange(LENGTH)
    size = torch.randint(4, 17, (B, 1), generator=rng)
    what = torch.where(place < 16 + size, ANSWER, PADDING)
    what[:, :16] = PROMPT
    what[: B // 2, 4:8] = EXAMPLE
    return what, train.draw_mask(what, torch.Generator().manual_seed(1))


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
    assert torch.equal(train.draw_mask(what, torch.Generator().manual_seed(1)), mask)
    assert not torch.equal(train.draw_mask(what, torch.Generator().manual_seed(2)), mask)


def test_rows_weigh_alike_and_padding_a_tenth(drawn):
    what, mask = drawn
    weight = train.loss_weights(what, mask)
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


def test_a_row_is_prompt_answer_one_end_and_padding(tokenizer):
    rng = random.Random(0)
    for _ in range(30):
        ids, what = row(tokenizer, rng, 1022)
        answer = what == ANSWER
        assert (ids[what == PADDING] == 1022).all() and (what == PADDING).sum() >= 8
        assert ids[answer][-1] == 1022 and (ids[answer][:-1] != 1022).all()
        assert what[0] == PROMPT and (ids < 1023).all()
        text = tokenizer.decode(ids[what == PROMPT].tolist())
        assert text.startswith("Q: ") and text.endswith("A:")


def stretches(ids, what):
    """The row's runs of one kind, padding left out: (kind, ids) each."""
    cuts = [0, *((what[1:] != what[:-1]).nonzero()[0] + 1).tolist(), len(what)]
    runs = [(int(what[a]), ids[a:b].tolist()) for a, b in pairwise(cuts)]
    return runs[:-1] if runs[-1][0] == PADDING else runs


@pytest.fixture(scope="module")
def facts_rows(tokenizer):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "MIX", {"facts": 1})
        rng = random.Random(4)
        return [row(tokenizer, rng, 1022) for _ in range(300)]


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
        assert runs[-1][1][-1] == 1022 and sum(run.count(1022) for _, run in runs) == 1
        assert len(questions) <= 4
        several += len(questions) > 1
    assert 0.5 < several / len(facts_rows) < 0.7


def test_all_answers_of_such_a_row_are_masked_and_count_alike(facts_rows):
    length = 384
    rows = [r for r in facts_rows if r.shape[1] == length and len(stretches(*r)) > 2]
    what = torch.tensor(np.stack([r[1] for r in rows])).long().repeat(40, 1)
    mask = train.draw_mask(what, torch.Generator().manual_seed(3))
    weight = train.loss_weights(what, mask)
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


def test_the_training_pass_is_the_decoding_pass():
    """Net flattens rows into one; its loss is that of the engine's logits."""
    model = small_model(70, kv_heads=4)
    prompt = torch.tensor([[3, 4, 5], [6, 7, 8]])
    step = run(model, prompt, "none", gen_length=5)[0]
    targets = torch.randint(0, 50, (2, 8), generator=torch.Generator().manual_seed(0))
    mask = step.before.masked
    weight = torch.rand(2, 8, generator=torch.Generator().manual_seed(1)) * mask
    logits = step.logits.clone()
    net = train.Net(model, compiled=False)
    model.head.weight.data[59] = 0  # the loop bans [MASK]; here its logit is 0
    logits[..., 59] = 0
    want = sum(
        -logits[b, q].log_softmax(-1)[targets[b, j]] * weight[b, j]
        for b in range(2)
        for q, j in enumerate(step.rows.target[b].tolist())
    )
    got = net.loss(targets, step.before.tokens, weight)
    assert abs(float(got) - float(want)) < 1e-5


def test_the_rate_warms_up_stays_and_falls():
    assert train.rate_at(0.0, 0) == 1 / train.WARM_UP
    assert train.rate_at(0.3, 10**4) == 1.0 == train.rate_at(train.STEADY, 10**4)
    assert abs(train.rate_at((1 + train.STEADY) / 2, 10**4) - 0.5) < 1e-9
    assert train.rate_at(1.0, 10**4) == 0.01


@pytest.fixture
def quick(monkeypatch, tokenizer):
    """Two layers instead of eight, and the tokenizer made once; torch's settings put back."""
    from dataclasses import replace

    from d2cache.model import CONFIGS

    short = replace(CONFIGS["tiny"], layers=2, width=64, mlp=96)
    monkeypatch.setitem(train.CONFIGS, "tiny", short)
    monkeypatch.setattr(train, "train_tokenizer", lambda: tokenizer)
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
        entered["optim"] = [o.state_dict()["state"] for o in training.optims]
        loop(args, training, *rest)

    monkeypatch.setattr(train, "_loop", watched)
    train.main([*arguments, "5"])
    second, meta = saved_state(tmp_path)
    assert entered["step"] == 3 and meta["step"] == "5"
    for kind in ("param", "average"):
        for name, value in entered[kind].items():
            assert torch.equal(value.cpu(), first[f"{kind}.{name}"].cpu()), (
                f"{kind} {name} was not resumed"
            )
    count = sum(len(s) for o in entered["optim"] for s in o.values())
    assert count == sum(n.startswith("optim.") for n in first) > 0
    assert any(not torch.equal(first[n], second[n]) for n in first)

    model = d2cache.load(str(tmp_path), device="cpu")
    weight = model.blocks[0].qkv_proj.weight
    assert torch.equal(weight, second["average.blocks.0.qkv_proj.weight"].bfloat16().float())
    ids = model.encode("What is 2 + 3?")
    steps = run(model, ids, "d2", gen_length=4)
    assert isinstance(model.decode(steps[-1].after.tokens[0, len(ids) :]), str)


def test_training_starts_from_the_weights_of_a_checkpoint(quick, tmp_path, monkeypatch):
    arguments = ["--batch-tokens", "3072", "--minutes", "60", "--steps", "1", "--out"]
    train.main([*arguments, str(tmp_path / "a")])
    stored = d2cache.load(str(tmp_path / "a"), device="cpu").state_dict()
    loop, entered = train._loop, {}

    def watched(args, training, *rest):
        entered.update({n: p.detach().clone() for n, p in training.model.named_parameters()})
        assert training.step == 0 and not any(o.state_dict()["state"] for o in training.optims)
        assert all(torch.equal(training.average[n], p) for n, p in entered.items())
        loop(args, training, *rest)

    monkeypatch.setattr(train, "_loop", watched)
    train.main([*arguments, str(tmp_path / "b"), "--start", str(tmp_path / "a")])
    assert entered.keys() == stored.keys()
    assert all(torch.equal(entered[n], stored[n]) for n in entered)


def test_the_loss_of_one_batch_falls(quick, tokenizer):
    torch.manual_seed(0)
    model = Model(quick)
    for p in model.parameters():
        if p.dim() == 2:
            torch.nn.init.normal_(p, std=0.02)
    rng = random.Random(0)
    rows = [row(tokenizer, rng, quick.eos_id, (64,)) for _ in range(16)]
    tokens, what = (torch.tensor([r[i].tolist() for r in rows]) for i in (0, 1))
    mask = train.draw_mask(what, torch.Generator().manual_seed(0))
    inputs, weight = tokens.masked_fill(mask, quick.mask_id), train.loss_weights(what, mask)
    net, optims, losses = train.Net(model, compiled=False), train.optimisers(model), []
    for _ in range(25):
        loss = net.loss(tokens, inputs, weight)
        losses.append(float(loss.detach()))
        loss.backward()
        for optim in optims:
            optim.step()
            optim.zero_grad(set_to_none=True)
    assert losses[0] > 6 and losses[-1] < 0.6 * losses[0]
