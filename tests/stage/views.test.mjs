// Run with: node --test tests/stage/views.test.mjs
// What the cache, attention, truth and token views work out without a page.
import { test } from "node:test";
import assert from "node:assert/strict";
import { b64, plain, pure } from "./load.mjs";

const T = 6,
  P = 2,
  G = 4,
  LAYERS = 2;
const start = (more = {}) => ({
  k: "start",
  run: "a",
  T,
  P,
  G,
  layers: LAYERS,
  block_length: G,
  prompt: ["Q", ":"],
  policy: "x",
  decoder: "y",
  knobs: { policy: { current_k: 4 }, decoder: { sigma: 10, as_shipped: false } },
  eos: ["<end>"],
  ...more,
});
const record = (s, y, more = {}) => ({
  k: "rec",
  run: "a",
  seq: s,
  s,
  ms: 1,
  rows: y.filter(Boolean).length,
  w: [],
  c: b64([0, 0, 0, 0]),
  d: b64([0, 0, 0, 0]),
  r: null,
  y: b64(y),
  ...more,
});
const played = (events) => events.reduce(pure.applyEvent, pure.emptyRun());
const parts = (cells) => ({ a: b64(cells.flatMap((value) => [value, 1])) });
const FULL = [1, 1, 1, 1, 1, 1],
  NONE = [0, 0, 0, 0, 0, 0];
const truth = (more) => ({
  kd: new Uint8Array(T),
  vd: new Uint8Array(T),
  kl: new Uint8Array(G),
  flips: [],
  oracle: [],
  recall: null,
  ...more,
});

// ---- ages

test("without parts all layers and parts share the age of their row", () => {
  const run = played([start(), record(0, FULL), record(1, [0, 0, 2, 0, 0, 0]), record(2, NONE)]);
  for (const { bit } of pure.PARTS) {
    assert.deepEqual(Array.from(pure.agesAt(run, 0, bit)), Array(12).fill(0));
    assert.deepEqual(Array.from(pure.agesAt(run, 2, bit)), [2, 2, 1, 2, 2, 2, 2, 2, 1, 2, 2, 2]);
  }
});

test("a part that was never computed has no age", () => {
  const run = played([start(), record(0, [0, 0, 1, 1, 1, 1])]);
  assert.deepEqual(Array.from(pure.agesAt(run, 0, 1)).slice(0, 3), [-1, -1, 0]);
  assert.deepEqual(plain(pure.meanAges(run, pure.agesAt(run, 0, 1))), [0, 0]);
  assert.match(pure.cacheReadout(run, 0, 0, 0), /K and V never computed/);
});

test("with parts K, V and outputs of one row differ in age, layer by layer", () => {
  const all = Array(12).fill(15),
    some = Array(12).fill(0);
  some[6 + 3] = 2;
  some[6 + 4] = 16;
  some[3] = 15;
  const run = played([
    start({ by_layer: true }),
    record(0, FULL, parts(all)),
    record(1, [0, 0, 0, 2, 0, 0], parts(some)),
  ]);
  assert.deepEqual(plain(pure.agesOf(run, 1, 1, 3)), { K: 1, V: 0, attention: 1, MLP: 1 });
  assert.deepEqual(plain(pure.agesOf(run, 1, 0, 3)), { K: 0, V: 0, attention: 0, MLP: 0 });
  assert.equal(
    pure.cacheReadout(run, 1, 1, 3),
    "layer 2, answer position 2: K, attention output and MLP output 1 step old, V now",
  );
  assert.match(pure.cacheReadout(run, 1, 1, 4), /left out of attention in this step \(evicted\)$/);
  assert.deepEqual(plain(pure.meanAges(run, pure.agesAt(run, 1, 2))), [5 / 6, 5 / 6]);
});

test("a cell says why its part was computed, or that it was only looked at, evicted or reused", () => {
  const cells = Array(12).fill(0);
  cells[2] = 15;
  cells[3] = 2;
  cells[4] = 16;
  const run = played([start(), record(0, [0, 0, 8, 0, 0, 0], parts(cells))]);
  const named = (bit) => {
    const { states, names } = pure.cellStates(run, run.records[0], bit);
    return [2, 3, 4, 5].map((p) => names[states[p]]);
  };
  assert.deepEqual(named(2), ["rollout", "looked", "evicted", "reused"]);
  assert.equal(named(1)[1], "reused"); // V was computed, K was not
  assert.deepEqual(plain(pure.cellStates(run, run.records[0], 1).gone), [4]);
});

test("ages are the same whichever way the scrubber moved, and over a lost record", () => {
  let seed = 7;
  const luck = () => (seed = (seed * 1103515245 + 12345) % 2147483648) / 2147483648;
  const steps = 100,
    ys = Array.from({ length: steps }, () =>
      Array.from({ length: T }, () => (luck() < 0.1 ? 2 : 0)),
    );
  const events = ys.map((y, s) => record(s, y)).filter((_, s) => s !== 40);
  const run = played([start(), ...events]);
  const slow = (s, p) => {
    for (let i = s; i >= 0; i--) if (i !== 40 && ys[i][p]) return s - i;
    return -1;
  };
  for (const s of [99, 3, 50, 31, 32, 0, 98, 63, 64, 10]) {
    const ages = pure.agesAt(run, s, 1);
    for (let p = 0; p < T; p++) assert.equal(ages[T + p], slow(s, p), `step ${s}, position ${p}`);
  }
});

// ---- the life of a position

test("the rank counts the masked positions that have a guess, best first, by confidence times density", () => {
  const event = record(0, FULL, { c: b64([128, 255, 0, 200]), d: b64([255, 51, 255, 102]) });
  const run = played([start(), event]);
  assert.deepEqual(
    [2, 3, 4, 5].map((p) => plain(pure.rankOf(run, 0, p))),
    [{ rank: 1, of: 3 }, { rank: 3, of: 3 }, null, { rank: 2, of: 3 }],
  );
  assert.equal(pure.rankOf(run, 0, 0), null); // a prompt position
  const without = played([start({ knobs: { decoder: { sigma: 0 } } }), event]);
  assert.deepEqual(
    [2, 3, 5].map((p) => pure.rankOf(without, 0, p).rank),
    [3, 1, 2],
  );
  assert.equal(pure.rankedBy(run), "confidence × density");
  assert.equal(pure.rankedBy(without), "confidence");
});

test("only the open block competes, and what is written does not", () => {
  const c = b64([10, 20, 30, 40]),
    d = b64([255, 255, 255, 255]);
  const run = played([
    start({ block_length: 2 }),
    record(0, FULL, { c, d, w: [[3, "b", 0.5, []]] }),
    record(1, FULL, { c, d, w: [[2, "a", 0.5, []]] }),
    record(2, FULL, { c, d }),
  ]);
  assert.deepEqual(
    plain([0, 1, 2].map((s) => [2, 3, 4, 5].map((p) => pure.rankOf(run, s, p)?.rank ?? null))),
    [
      [2, 1, null, null],
      [1, null, null, null],
      [null, null, 2, 1],
    ],
  );
});

test("the sentence sums a life up: when written, as what, its rank, and why it was recomputed", () => {
  const c = b64([128, 1, 0, 200]),
    d = b64([255, 255, 255, 255]);
  const run = played([
    start(),
    record(0, FULL, { c, d }),
    record(1, [0, 0, 2, 0, 0, 0], { c, d, w: [[2, " cat", 0.91, [[" cat", 0.91]]]] }),
    record(2, [0, 0, 6, 0, 0, 0]),
    record(3, NONE),
  ]);
  assert.equal(
    pure.lifeSentence(run, 2, 3),
    "Answer position 1: written in step 2 as ' cat' with confidence 0.91, rank 2 of 3 then. Recomputed in 3 of 4 steps: 1 × written in the previous step, 1 × chosen by the policy, 1 × full pass.",
  );
  assert.equal(
    pure.lifeSentence(run, 2, 0),
    "Answer position 1: still masked; its best guess has confidence 0.50, rank 2 of 3. Recomputed in 1 of 1 step: 1 × full pass.",
  );
  assert.match(
    pure.lifeSentence(run, 0, 3),
    /^Prompt position 1: 'Q', given from the start\. Recomputed in 1 of 4 steps/,
  );
  assert.match(pure.lifeSentence(run, 4, 1), /still masked; no guess was made here in this step\./);
});

test("a token that was masked again is told so", () => {
  const run = played([
    start(),
    record(0, FULL, { w: [[2, "a", 0.5, []]] }),
    record(1, FULL, { m: [2] }),
    record(2, FULL, { w: [[2, "<end>", null, []]] }),
  ]);
  assert.match(pure.lifeSentence(run, 2, 1), /still masked.* Masked again once\./);
  assert.match(
    pure.lifeSentence(run, 2, 2),
    /written in step 3 as the end token\. Masked again once\./,
  );
  const life = pure.lifeOf(run, 2);
  assert.deepEqual(plain([life.written, life.masked]), [[0, 2], [1]]);
});

test("lines of a life: a value for each step, a gap where nothing was predicted or the record was lost", () => {
  const run = played([
    start(),
    record(0, FULL, { c: b64([255, 0, 0, 0]), d: b64([51, 0, 0, 0]) }),
    record(2, NONE),
  ]);
  run.records[2].truth = truth({ kd: Uint8Array.from([0, 0, 255, 0, 0, 0]) });
  const life = pure.lifeOf(run, 2);
  assert.deepEqual(plain([life.conf, life.density, life.product, life.rank, life.drift]), [
    [1, null, null],
    [0.2, null, 0],
    [0.2, null, null],
    [1, null, null],
    [null, null, 2],
  ]);
});

test("a line breaks at gaps, keeps to its box, and shows a lone value as a dot", () => {
  assert.equal(pure.linePath([0, 1, null, 5], 4, 0, 1), "M0 100L333.33 0M1000 0h0.01");
  assert.equal(pure.linePath([null, null], 2, 0, 1), "");
  assert.equal(pure.linePath([0.5], 1, 0, 1), "M500 50h0.01");
});

test("points are fitted into a square without being stretched", () => {
  assert.deepEqual(
    plain(
      pure.fitPoints([
        [0, 0],
        [4, 2],
      ]),
    ),
    [
      [0, 0.75],
      [1, 0.25],
    ],
  );
  assert.deepEqual(
    plain(
      pure.fitPoints([
        [3, 3],
        [3, 3],
      ]),
    ),
    [
      [0.5, 0.5],
      [0.5, 0.5],
    ],
  );
});

// ---- truth

test("truth codes: 0 is none, 255 the largest, 16 codes double", () => {
  assert.deepEqual([pure.drift(0), pure.drift(255), pure.drift(239)], [0, 2, 1]);
  assert.deepEqual([pure.divergence(0), pure.divergence(255), pure.divergence(239)], [0, 16, 8]);
});

test("the oracle tells hit, missed and needless apart, and says nothing of a full pass", () => {
  const run = played([start(), record(0, FULL), record(1, [0, 0, 2, 2, 0, 0])]);
  run.records[0].truth = truth();
  run.records[1].truth = truth({ oracle: [3, 4], recall: 0.5, flips: [5] });
  assert.equal(pure.oracleMarks(run, 0), null);
  assert.deepEqual(plain(pure.oracleMarks(run, 1)), [
    "kept",
    "kept",
    "needless",
    "hit",
    "missed",
    "kept",
  ]);
  assert.equal(
    pure.oracleSentence(run, 1),
    "Step 2: of the 2 positions whose kept K,V had drifted most, the policy recomputed 1 (recall 0.50).",
  );
  assert.match(
    pure.oracleSentence(run, 0),
    /recomputed every position: there was nothing to choose/,
  );
  run.records[1].truth = truth({ recall: null });
  assert.match(pure.oracleSentence(run, 1), /not known/);
  run.records[1].truth = truth({ oracle: [3, 4], recall: 0.5, flips: [5] });
  assert.deepEqual(plain(pure.truthSums(run)), {
    steps: 2,
    recall: 0.5,
    recalls: 1,
    flips: 1,
    flipSteps: 1,
  });
  assert.equal(
    pure.truthReadout(run, pure.TRUTHS[0], 1, 5),
    "step 2, answer position 4: no drift; its best guess differs from the exact one",
  );
  assert.equal(
    pure.truthReadout(run, pure.TRUTHS[2], 1, 0),
    "step 2, prompt position 1: nothing is predicted in the prompt",
  );
});

test("the log scale ends at 0 and 1 and never leaves them", () => {
  assert.deepEqual(
    [0, 2 ** -14, 2, 9].map((v) => pure.logShade(v, 2 ** -14, 2)),
    [0, 0, 1, 1],
  );
  assert.ok(Math.abs(pure.logShade(2 ** -6.5, 2 ** -14, 2) - 0.5) < 1e-12);
});

// ---- what if

test("an edit becomes the text that the server reads", () => {
  assert.equal(pure.editText({ step: 12 }), "12");
  assert.equal(
    pure.editText({
      step: 3,
      tokens: [
        [9, 17],
        [4, 0],
      ],
      refresh: [5, 2],
      policy: { current_k: 8, as_shipped: true },
      decoder: { sigma: "0.5" },
    }),
    "3,4=0,9=17,refresh=2.5,policy.as_shipped=true,policy.current_k=8,decoder.sigma=0.5",
  );
  assert.equal(pure.editText({ step: 0, refresh: "all" }), "0,refresh=all");
  assert.equal(pure.branchQuery("k1", { step: 0, refresh: "all" }), "branch=k1~0,refresh=all");
  assert.throws(() => pure.editText({ step: -1 }), /choose a step/);
  assert.throws(() => pure.editText({ step: 1, policy: { kr: "x" } }), /give a number/);
  assert.throws(() => pure.editText({ step: 1, tokens: [[2, null]] }), /whole numbers/);
});

test("an edit that changes nothing is none", () => {
  assert.ok(!pure.isEdit({ step: 3 }) && !pure.isEdit({ step: 3, refresh: [] }));
  for (const one of [
    { tokens: [[1, 2]] },
    { refresh: "all" },
    { refresh: [1] },
    { policy: { a: 1 } },
    { decoder: { a: 1 } },
  ])
    assert.ok(pure.isEdit({ step: 3, ...one }));
});

test("what may be refreshed, which knobs may be turned, and the edit in words", () => {
  const run = played([start(), record(0, FULL)]);
  assert.deepEqual(
    plain(["none", "position", "prompt", "answer", "all"].map((w) => pure.refreshOf(run, w, 3))),
    [null, [3], [0, 1], [2, 3, 4, 5], "all"],
  );
  assert.deepEqual(plain(pure.editKnobs(run.start)), [
    { kind: "policy", name: "current_k", value: 4, flag: false },
    { kind: "decoder", name: "sigma", value: 10, flag: false },
    { kind: "decoder", name: "as_shipped", value: false, flag: true },
  ]);
  assert.equal(
    pure.editWords(
      run,
      {
        step: 0,
        tokens: [
          [2, 7],
          [3, 1],
        ],
        refresh: [0, 1],
        decoder: { sigma: 2 },
      },
      { 2: " dog", 3: null },
    ),
    "After step 1: write ' dog' at answer position 1; mask answer position 2 again; refresh the prompt (2 positions); set the decoder's sigma to 2.",
  );
  assert.equal(pure.editWords(run, { step: 0 }), "");
});

// ---- an edited prompt

test("a prompt token that was changed by hand is told as it stands at that step", () => {
  const edited = (s, y) => record(s, y, { w: [[1, " ?", null, []]] });
  const run = played([start(), record(0, FULL), edited(1, FULL), record(2, FULL)]);
  assert.match(pure.lifeSentence(run, 1, 0), /^Prompt position 2: ':', given from the start\./);
  assert.match(
    pure.lifeSentence(run, 1, 2),
    /^Prompt position 2: ' \?', changed by hand in step 2; it was ':'\./,
  );
  const got = (at) => ({
    at,
    n: T,
    edges: Array.from({ length: T + 1 }, (_, i) => i),
    bytes: new Uint8Array(T * T),
    largest: 1,
  });
  assert.match(
    pure.attentionWords(run, got(1), 0, 1),
    /key prompt position 2 \(':'\)/,
    "the canvas before the step",
  );
  assert.match(pure.attentionWords(run, got(2), 0, 1), /key prompt position 2 \(' \?'\)/);
});

// ---- the links of a token

test("the strongest links of a token are the largest cells of its row, as parts of the largest", () => {
  const run = played([start(), record(0, FULL)]),
    bytes = new Uint8Array(T * T),
    codes = [0, 255, 128, 64, 0, 32]; // of the row of position 3, roots of the shares
  bytes.set(codes, 2 * T);
  const got = { at: 0, n: T, edges: [0, 1, 2, 3, 4, 5, 6], bytes, largest: 0.5 },
    links = pure.strongestLinks(got, 2);
  assert.deepEqual(
    links.map((x) => x.p),
    [1, 2, 3, 5],
  );
  assert.deepEqual([links[0].share, links[0].weight], [1, 0.5]);
  assert.ok(Math.abs(links[1].share - (128 / 255) ** 2) < 1e-9);
  assert.equal(pure.strongestLinks(got, 2, 2).length, 2);
  assert.deepEqual(pure.strongestLinks(got, 0), []);
  assert.match(
    pure.linkWords(run, got, 2, links),
    /^Answer position 1 reads most from ':' \(prompt position 2\): 0\.500; the mask at answer/,
  );
});

// ---- a map that arrives summed

test("where every pair of positions draws alike, a summed map is of one shade", () => {
  const edges = [0, 1, 3, 5],
    wide = [0, 1, 2].map((i) => edges[i + 1] - edges[i]),
    most = Math.max(...wide) ** 2;
  const sums = Uint8Array.from({ length: 9 }, (_, i) =>
    Math.round(255 * Math.sqrt((wide[Math.floor(i / 3)] * wide[i % 3]) / most)),
  );
  assert.ok(new Set(sums).size > 1);
  const shades = pure.evenShades(sums, edges);
  assert.ok(Math.min(...shades) >= 253 && Math.max(...shades) === 255, Array.from(shades));
  assert.equal(pure.evenShades(sums, [0, 1, 2, 3]), sums, "cells of one size are as they came");
});

// ---- figures on a phone

test("on a phone the titles of a figure are broken into lines, and its bars lie above the plot", () => {
  assert.equal(
    pure.broken("distance to what the step before wrote, in positions", 34),
    "distance to what the step before<br>wrote, in positions",
  );
  const data = [
    { type: "scatter", marker: { size: 7, colorbar: { title: { text: "confidence" } } } },
  ];
  const layout = {
      font: { size: 13 },
      xaxis: { title: { text: "a title that is far too long for a phone" } },
      yaxis: {},
    },
    before = JSON.stringify([data, layout]);
  const slim = plain(pure.slim(data, layout));
  assert.equal(slim.data[0].marker.colorbar.orientation, "h");
  assert.match(slim.layout.xaxis.title.text, /<br>/);
  assert.equal(
    JSON.stringify([data, layout]),
    before,
    "what is saved as a file stays as it was sent",
  );
});

test("four panels side by side stand two by two on a phone and do not overlap", () => {
  const axes = [1, 2, 3, 4].map((n) => (n > 1 ? n : "")),
    layout = Object.fromEntries(
      axes.flatMap((n) => [
        [`xaxis${n}`, {}],
        [`yaxis${n}`, {}],
      ]),
    );
  const slim = plain(pure.slim([], layout)).layout,
    boxes = axes.map((n) => [slim[`xaxis${n}`].domain, slim[`yaxis${n}`].domain]);
  for (const [i, a] of boxes.entries())
    for (const b of boxes.slice(i + 1))
      assert.ok(
        [0, 1].some((d) => a[d][1] <= b[d][0] || b[d][1] <= a[d][0]),
        `${a} and ${b}`,
      );
});

test("a caption begins with its first sentence; figures in it do not end it", () => {
  const split = pure.firstSentence;
  assert.deepEqual(plain(split("Grey: reused. A colour says why.")), [
    "Grey: reused.",
    "A colour says why.",
  ]);
  assert.deepEqual(plain(split("At 0.5 of it (1. of 3) all ends.")), [
    "At 0.5 of it (1. of 3) all ends.",
    "",
  ]);
  assert.deepEqual(plain(split("")), ["", ""]);
});

test("cells that share a pixel keep the one that is marked; one without data gives way", () => {
  const [ground, mark, none] = [0xfff4f1ee, 0xff739e00, 0],
    row = [ground, mark, ground, ground, none, ground, none];
  const pool = (kx) => [...pure.pooled(Uint32Array.from(row), 7, 1, kx, 1, [0xee, 0xf1, 0xf4])];
  assert.deepEqual(pool(2), [mark, ground, ground, none]);
  assert.deepEqual(pool(1), row);
  assert.deepEqual([...pure.pooled(Uint32Array.of(ground, mark), 1, 2, 1, 2, [0, 0, 0])].length, 1);
});
