"""Probes against plain recomputation: what is exact shows nothing, what is stale shows itself."""

from dataclasses import dataclass
from itertools import islice

import numpy as np
import pytest
import torch
from lab import (
    POLICIES,
    SMALL,
    Reference,
    random_prompt,
    run,
    small_model,
)

import d2cache
from analysis import metrics, probes
from d2cache import CachePolicy, Edit, Plan, Trace, ops

FAMILIES = [{}, dict(shift=1, kv_heads=2, qkv_bias=True)]
PROMPT, GEN, MASK = random_prompt(9), 12, SMALL.mask_id
LENGTH, P = len(PROMPT) + GEN, len(PROMPT)
every_policy = pytest.mark.parametrize("policy", POLICIES, ids=lambda p: p[0] + str(p[1]))
both_families = pytest.mark.parametrize("family", FAMILIES, ids=["llada", "dream"])


def looked_at(model, policy, **settings):
    """Steps, what is true of each, and the K,V that each left."""
    made = d2cache.make_policy(policy[0], **policy[1]) if isinstance(policy, tuple) else policy
    settings = dict(gen_length=GEN, block_length=6) | settings
    seen, truth = [], probes.Truth(model, made)
    for step, look in truth.watch(d2cache.generate(model, PROMPT, made, **settings)):
        seen.append((step, look, made.kv.k.clone(), made.kv.v.clone()))
    return seen


def plain_drift(kept, exact):
    """(L,1,H,T,D) and (L,T,H,D), position by position and layer by layer."""
    out = []
    for t in range(LENGTH):
        each = []
        for layer in range(len(exact)):
            a, b = kept[layer, 0, :, t].flatten(), exact[layer, t].flatten()
            each.append(1 - float(a @ b / ((a @ a) ** 0.5 * (b @ b) ** 0.5)))
        out.append(sum(each) / len(each))
    return np.array(out)


def exact_of(model, step):
    plain = Reference(model, LENGTH)
    logits, _ = plain.forward(step.before.tokens[0], torch.arange(LENGTH))
    logits[:, MASK] = -torch.inf
    return plain.k, plain.v, logits.roll(model.config.shift, 0)


@both_families
@every_policy
def test_truth_is_what_a_plain_recomputation_says(policy, family):
    model = small_model(31, **family)
    seen, before = looked_at(model, policy), None
    stale, recalls = 0, []
    for step, look, k, v in seen:
        true_k, true_v, logits = exact_of(model, step)
        assert look.step == step.index
        np.testing.assert_allclose(look.k_drift, plain_drift(k, true_k), atol=1e-6)
        np.testing.assert_allclose(look.v_drift, plain_drift(v, true_v), atol=1e-6)
        wanted, flips = {}, []
        for q, j in enumerate(step.rows.target[0].tolist()):
            own, exact = step.logits[0, q].softmax(-1), logits[j].softmax(-1)
            wanted[j - P] = float(torch.xlogy(exact, exact).sum() - torch.xlogy(exact, own).sum())
            flips += [j] if own.argmax() != exact.argmax() else []
        assert set(np.flatnonzero(~np.isnan(look.kl))) == set(wanted)
        np.testing.assert_allclose([look.kl[g] for g in wanted], list(wanted.values()), atol=1e-6)
        assert list(look.flips) == flips
        rows = set(step.recomputed[0].nonzero().flatten().tolist())
        if before is None or len(rows) in (0, LENGTH):
            assert look.recall is None and look.oracle == ()
        else:
            drift = plain_drift(before[0], true_k) + plain_drift(before[1], true_v)
            assert len(look.oracle) == len(rows)
            least = min(drift[list(look.oracle)])
            assert all(drift[t] <= least + 1e-9 for t in set(range(LENGTH)) - set(look.oracle))
            assert look.recall == pytest.approx(len(rows & set(look.oracle)) / len(rows))
            recalls.append(look.recall)
        before = k, v
        stale = max(stale, look.k_drift.max())
    assert (stale > 1e-3) == (policy[0] != "none"), "guard: a cache is stale somewhere"
    always_all = policy[0] == "none" or policy[1].get("first_layer", False)
    assert bool(recalls) != always_all, "guard: some steps have an oracle"


@both_families
def test_without_a_cache_all_is_true(family):
    for _, look, *_ in looked_at(small_model(31, **family), ("none", {})):
        assert look.k_drift.max() < 1e-12 and look.v_drift.max() < 1e-12
        assert np.nanmax(look.kl) < 1e-12 and look.flips == ()
        assert (look.oracle, look.recall) == ((), None)


@every_policy
def test_right_after_a_full_pass_nothing_has_drifted(policy):
    model = small_model(31, dtype=torch.float32)
    seen = looked_at(model, policy, edits=[Edit(4, refresh="all")])
    for s in (0, 5):
        step, look = seen[s][:2]
        assert step.recomputed.all() and look.recall is None
        assert max(look.k_drift.max(), look.v_drift.max()) < 1e-5
        assert np.nanmax(look.kl) < 1e-4 and look.flips == ()
        assert (~np.isnan(look.kl)).sum() == step.before.masked.sum()


@dataclass
class Seer(CachePolicy):
    """Knows the oracle: recomputes the rows that drifted most, no others."""

    key = "seer"
    rows: int = 12
    best: bool = True

    def begin(self, model, canvas):
        super().begin(model, canvas)
        self.exact = probes._Exact(model)

    def plan(self, canvas):
        full = super().plan(canvas)
        if canvas.step == 0:
            return full
        self.exact.run(canvas.tokens)
        kept, true = (self.kv.k, self.kv.v), (self.exact.kv.k, self.exact.kv.v)
        drift = sum(probes._drift(a, b) for a, b in zip(kept, true, strict=True))[None]
        some = ops.top_k_mask(drift if self.best else -drift, canvas.own, self.rows)
        return Plan(canvas.masked & some, some, some.byte())


def test_who_picks_what_drifted_most_has_recall_1_and_who_picks_the_rest_0():
    model = small_model(31)
    for best, want in ((True, 1.0), (False, 0.0)):
        made = Seer(rows=10, best=best)
        steps = d2cache.generate(model, PROMPT, made, gen_length=GEN)
        looks = [look for _, look in probes.Truth(model, made).watch(islice(steps, 4))]
        assert [look.recall for look in looks] == [None, want, want, want]


def test_a_step_not_looked_at_leaves_the_next_without_an_oracle():
    model, made = small_model(31), d2cache.make_policy("dual")
    truth, recalls = probes.Truth(model, made), []
    for step in d2cache.generate(model, PROMPT, made, gen_length=GEN, block_length=6):
        if step.index != 3:
            recalls.append(truth.look(step).recall)
    assert [recall is None for recall in recalls[:5]] == [True, False, False, True, False]


def test_looking_changes_nothing_of_the_run_and_a_batch_is_refused():
    model = small_model(31)
    for policy in POLICIES:
        plain = run(model, PROMPT, policy, gen_length=GEN, block_length=6)
        for a, (b, *_) in zip(plain, looked_at(model, policy), strict=True):
            assert torch.equal(a.logits, b.logits) and torch.equal(a.after.tokens, b.after.tokens)
    made = d2cache.make_policy("none")
    step = next(d2cache.generate(model, [[1, 2], [3, 4]], made, gen_length=4))
    with pytest.raises(ValueError, match="the batch has 2 prompts"):
        probes.Truth(model, made).look(step)


@pytest.fixture(scope="module", params=FAMILIES, ids=["llada", "dream"])
def recorded(request):
    model = small_model(32, **request.param)
    steps = run(model, PROMPT, "dual", gen_length=GEN, block_length=6)
    return model, Trace.record(iter(steps))


def test_a_layers_map_is_the_mean_of_its_heads_on_that_canvas(recorded):
    model, trace = recorded
    for step, layer in ((0, 0), (5, 2), (11, 1)):
        tokens = torch.from_numpy(trace.tokens[step])
        _, maps = Reference(model, LENGTH).forward(tokens, torch.arange(LENGTH))
        got = probes.attention_map(model, trace, step, layer)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, maps[layer], atol=1e-6)
        np.testing.assert_allclose(probes.column_sums(got), maps[layer].sum(0), atol=1e-5)
        assert probes.column_sums(got).mean() == pytest.approx(1)
    for step, layer, says in (
        (12, 0, "step is 12; this run has steps 0 to 11"),
        (0, -1, "layer is -1"),
        (0, 3, "layer is 3; this run has layers 0 to 2"),
    ):
        with pytest.raises(IndexError, match=says):
            probes.attention_map(model, trace, step, layer)


def test_rollout_columns_are_those_of_every_steps_dense_rollout(recorded, monkeypatch):
    model, trace = recorded
    columns = probes.rollout_columns(model, trace)
    assert columns.shape == (12, LENGTH) and columns.dtype == np.float32
    for step in range(12):
        dense = probes.rollout_map(model, trace, step)
        np.testing.assert_allclose(columns[step], probes.column_sums(dense), atol=1e-5)
    monkeypatch.setattr(probes, "MOST_CELLS", 1)  # one canvas at a time
    np.testing.assert_allclose(probes.rollout_columns(model, trace), columns, atol=1e-6)


def test_a_life_is_the_positions_own_exact_keys_and_values(recorded):
    """Distances between the steps are kept by the components, so far as they explain them."""
    model, trace = recorded
    for position in (3, 12):
        got = probes.life(model, trace, position)
        own = {"k": [], "v": []}
        for step in range(12):
            plain = Reference(model, LENGTH)
            plain.forward(torch.from_numpy(trace.tokens[step]), torch.arange(LENGTH))
            for name in own:
                own[name].append(getattr(plain, name)[:, position].mean(0).flatten().numpy())
        for name, rows in own.items():
            rows = np.array(rows)
            two, share = got[name], got["explained"][name]
            moved = [0, *(np.linalg.norm(b - a) for a, b in zip(rows, rows[1:], strict=False))]
            np.testing.assert_allclose(got["moved"][name], moved, atol=1e-9)
            spread = ((rows - rows.mean(0)) ** 2).sum()
            np.testing.assert_allclose((two**2).sum(0), share * spread, rtol=1e-9)
            assert two.shape == (12, 2) and share[0] >= share[1] > 0 and share.sum() <= 1 + 1e-9
            variance = np.sort(np.linalg.eigvalsh(np.cov(rows.T, bias=True)))[::-1] * len(rows)
            np.testing.assert_allclose((two**2).sum(0), variance[:2], rtol=1e-6)
            gap = np.linalg.norm(two[0] - two[-1])
            assert gap <= np.linalg.norm(rows[0] - rows[-1]) + 1e-9
    with pytest.raises(IndexError, match=f"position is {LENGTH}; this run has positions 0 to"):
        probes.life(model, trace, LENGTH)


def test_components_have_a_sign_of_their_own_and_stand_still_where_nothing_moves():
    line = np.array([[3.0, 4, 0], [0, 0, 0], [-3, -4, 0], [6, 8, 0]]) + 7
    two, share = probes._components(line)
    np.testing.assert_allclose(two[:, 0], [2.5, -2.5, -7.5, 7.5])
    np.testing.assert_allclose(two[:, 1], 0, atol=1e-12)
    np.testing.assert_allclose(share, [1, 0], atol=1e-12)
    np.testing.assert_allclose(probes._components(14 - line)[0][:, 0], -two[:, 0])
    noise = 7 + 1e-6 * np.random.default_rng(0).random((5, 3))
    for still in (np.ones((5, 3)), np.ones((1, 3)), np.zeros((4, 2)), noise):
        two, share = probes._components(still)
        assert two.shape == (len(still), 2) and not two.any() and not share.any()


def test_premature_confidence_is_told_of_every_prediction():
    model = small_model(33)
    steps = run(model, PROMPT, ("d2", dict(current_k=5)), gen_length=GEN, block_length=6)
    frame = metrics.premature(Trace.record(iter(steps)))
    assert list(frame) == ["step", "position", "confidence", "written", "ahead", "tail"]
    lines = {(row.step, row.position): row for row in frame.itertuples()}
    for step in steps:
        seen = np.flatnonzero(np.isfinite(step.confidence[0, P:].numpy()))
        assert [g for s, g in lines if s == step.index] == seen.tolist()
        for g in seen:
            row = lines[step.index, g]
            assert row.confidence == pytest.approx(float(step.confidence[0, P + g]))
            assert row.written == bool(step.accepted[0, P + g])
            assert row.ahead == int(step.before.masked[0, P : P + g].sum())
            assert row.tail == pytest.approx(g / (GEN - 1))
    assert frame["written"].sum() == GEN and frame["ahead"].max() > 3


def test_a_token_of_an_edit_has_no_confidence_in_the_table():
    steps = run(
        small_model(33),
        PROMPT,
        ("dual", {}),
        gen_length=GEN,
        block_length=6,
        edits=[Edit(2, {P + 11: 4})],
    )
    frame = metrics.tokens(Trace.record(iter(steps))).set_index("position")
    assert np.isnan(frame["confidence"][11]) and frame["step"][11] == 2
    assert frame["confidence"].drop(11).between(0, 1).all()
