// Run with: node --test tests/stage/stage.test.mjs
// The half of the stage that needs no page: does it read the events rightly and say what is so?
import { test } from "node:test";
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { b64, plain, pure, source } from "./load.mjs";

const T = 6,
  P = 2,
  G = 4;
const start = (run = "a", more = {}) => ({
  k: "start",
  run,
  T,
  P,
  G,
  sigma: 10,
  prompt: ["Q", ":"],
  rollout: true,
  ...more,
});
const record = (s, y, w = [], more = {}) => ({
  k: "rec",
  run: "a",
  seq: s,
  s,
  ms: 1,
  rows: y.filter(Boolean).length,
  w,
  c: b64([0, 1, 128, 255]),
  d: b64([0, 51, 102, 255]),
  r: b64([128, 144, 112, 128, 0, 255]),
  y: b64(y),
  ...more,
});
const played = (...events) => events.reduce(pure.applyEvent, pure.emptyRun());
const FULL = [1, 1, 1, 1, 1, 1];

test("the source can be inlined in a script tag and never parses data as markup", () => {
  assert.ok(!/<\/script|<!--/i.test(source));
  assert.ok(!/innerHTML|outerHTML|insertAdjacentHTML|document\.write/.test(source));
});

test("planes come out of base64 byte for byte", () => {
  const bytes = Array.from({ length: 256 }, (_, i) => i);
  assert.deepEqual(Array.from(pure.decodePlane(b64(bytes))), bytes);
  assert.equal(pure.decodePlane(null), null);
});

test("confidence: 0 is no prediction, which is not a confidence of nought", () => {
  assert.equal(pure.confidence(0), null);
  assert.equal(pure.confidence(1), 0);
  assert.equal(pure.confidence(255), 1);
  for (const p of [0.03, 0.5, 0.98])
    assert.ok(Math.abs(pure.confidence(1 + Math.round(254 * p)) - p) < 1 / 254);
});

test("rollout mass: the mean is 1 and 16 codes double it", () => {
  assert.equal(pure.rolloutMass(128), 1);
  for (const u of [0, 40, 128, 239])
    assert.ok(Math.abs(pure.rolloutMass(u + 16) / pure.rolloutMass(u) - 2) < 1e-12);
  assert.ok(pure.massShade(1 / 16) === 0 && pure.massShade(32) === 1);
});

test("the most telling reason wins, whatever else is set", () => {
  const order = ["written", "chosen", "rollout", "gap", "block", "window", "full"];
  const bit = {
    full: 1,
    chosen: 2,
    written: 4,
    rollout: 8,
    gap: 16,
    shift: 32,
    block: 64,
    window: 128,
  };
  for (let i = 0; i < order.length; i++) {
    const lower = order.slice(i).reduce((sum, key) => sum | bit[key], 0);
    assert.equal(pure.reasonOf(lower), order[i]);
    assert.equal(pure.reasonOf(bit[order[i]]), order[i]);
  }
  assert.equal(pure.reasonOf(32), "shift");
  assert.equal(pure.reasonOf(0), null);
  assert.deepEqual(plain(pure.reasonsIn(2 | 8 | 64)), ["chosen", "rollout", "block"]);
  assert.equal(new Set(pure.REASONS.map((r) => r.colour)).size, 8);
});

test("colour maps change lightness in one direction only, so they read in grey", () => {
  const luma = (c) => 0.2126 * c[0] + 0.7152 * c[1] + 0.0722 * c[2];
  for (const name of ["density", "rollout", "order", "confidence"])
    for (const dark of [false, true]) {
      const steps = Array.from({ length: 33 }, (_, i) => luma(pure.colourAt(name, i / 32, dark)));
      const signs = new Set(steps.slice(1).map((x, i) => Math.sign(x - steps[i])));
      assert.ok(signs.size === 1 && !signs.has(0), `${name} ${dark}`);
      assert.ok(Math.abs(steps[32] - steps[0]) > 100, `${name} ${dark} has little contrast`);
    }
  assert.deepEqual(plain(pure.colourAt("density", -3)), plain(pure.colourAt("density", 0)));
  assert.deepEqual(plain(pure.colourAt("density", 9)), plain(pure.colourAt("density", 1)));
});

test("hit rate: the share of positions not recomputed, over all positions of all steps", () => {
  const m = played(
    start(),
    record(0, FULL),
    record(1, [0, 0, 4, 2, 0, 0]),
    record(2, [0, 0, 0, 8, 0, 0]),
  );
  assert.equal(pure.hitRate(m.records[0], T), 0);
  assert.ok(Math.abs(pure.hitRate(m.records[1], T) - 4 / 6) < 1e-12);
  assert.equal(pure.hitRateSoFar(m, 0), 0);
  assert.equal(pure.hitRateSoFar(m, 2), 1 - (6 + 2 + 1) / 18);
  assert.equal(pure.hitRateSoFar(played(start()), 0), null);
});

test("a position with several reasons is counted once per step", () => {
  const m = played(start(), record(0, [0, 0, 4 | 2, 2 | 8, 8, 0]));
  assert.deepEqual(plain(pure.reasonCounts(m.records[0])), { written: 1, chosen: 1, rollout: 1 });
});

test("events of another run are ignored, and a start clears everything", () => {
  const m = played(
    start("a"),
    record(0, FULL, [[2, "x", 0.5, []]]),
    record(1, FULL, [], { run: "b" }),
    { k: "end", run: "b", status: "failed" },
    { k: "totals", run: "b", s: 0, tps: 9 },
  );
  assert.equal(m.received, 1);
  assert.equal(m.status, "running");
  assert.equal(m.records[0].totals, null);
  assert.equal(pure.applyEvent(m, { k: "pause", run: "b" }).paused, false);
  const fresh = pure.applyEvent(m, start("b"));
  assert.deepEqual([fresh.key, fresh.received, fresh.records.length, fresh.gaps], ["b", 0, 0, 0]);
  assert.equal(pure.chipData(fresh, 2, 0).state, "masked");
  assert.equal(played(record(0, FULL)).received, 0);
});

test("a gap in seq is counted by the records lost; a repeated record is not a second one", () => {
  assert.equal(played(start(), record(0, FULL), record(1, FULL), record(2, FULL)).gaps, 0);
  const m = played(start(), record(0, FULL), record(3, FULL, [[2, "x", 0.5, []]]));
  assert.equal(m.gaps, 2);
  assert.equal(m.received, 2);
  const again = pure.applyEvent(m, record(3, FULL, [[2, "x", 0.5, []]]));
  assert.deepEqual([again.gaps, again.received, again.changes[2].length], [2, 2, 1]);
  assert.equal(played(start(), record(1, FULL)).gaps, 1);
});

test("applyText reads one message; the empty first value of a component is no message", () => {
  const m = pure.applyText(pure.emptyRun(), JSON.stringify({ events: [start(), record(0, FULL)] }));
  assert.equal(m.received, 1);
  assert.equal(pure.applyText(m, ""), m);
});

test("a token is masked, then just written, then settled; going back unwrites it", () => {
  const m = played(
    start(),
    record(0, FULL),
    record(1, FULL, [[4, " ok", 0.9, []]]),
    record(2, FULL),
  );
  assert.deepEqual(
    [0, 1, 2, 0].map((s) => pure.chipData(m, 4, s).state),
    ["masked", "now", "settled", "masked"],
  );
  assert.equal(pure.chipData(m, 1, 0).state, "prompt");
  assert.equal(pure.chipData(m, 1, 0).text, ":");
});

test("the planned height is the longest run possible, until a done run tells its own", () => {
  const m = played(start(), record(0, FULL), record(1, FULL));
  assert.equal(m.expected, G);
  assert.equal(played(start(), ...[0, 1, 2, 3, 4, 5].map((s) => record(s, FULL))).expected, 6);
  assert.equal(pure.applyEvent(m, { k: "end", run: "a", status: "done", note: "" }).expected, 2);
});

test("tooltip: recomputations so far, each with all its reasons, nothing from later steps", () => {
  const m = played(
    start(),
    record(0, FULL),
    record(
      1,
      [0, 0, 0, 2 | 8, 0, 0],
      [
        [
          3,
          " it",
          0.75,
          [
            [" it", 0.75],
            [" a", 0.1],
          ],
        ],
      ],
    ),
    record(2, [0, 0, 0, 4, 0, 0]),
    record(3, [0, 0, 0, 0, 0, 0]),
    record(4, FULL),
  );
  const d = pure.tooltipData(m, 3, 3);
  assert.deepEqual([d.recomputed, d.steps], [3, 4]);
  assert.deepEqual(plain(d.byReason), { full: 1, chosen: 1, rollout: 1, written: 1 });
  assert.deepEqual(
    [d.pos, d.answer, d.text, d.step, d.conf, d.state],
    [3, 1, " it", 1, 0.75, "settled"],
  );
  assert.deepEqual(plain(d.top), [
    [" it", 0.75],
    [" a", 0.1],
  ]);
  assert.deepEqual([d.density, d.rollout, d.candidate], [51 / 255, 1, 0]);
  assert.deepEqual(plain(d.now), []);
  const before = pure.tooltipData(m, 3, 0);
  assert.deepEqual(
    [before.state, before.conf, before.recomputed, before.top.length],
    ["masked", null, 1, 0],
  );
});

test("tooltip in the prompt: a position like the others, without guess or density", () => {
  const d = pure.tooltipData(played(start(), record(0, FULL)), 1, 0);
  assert.deepEqual(
    [d.answer, d.text, d.density, d.candidate, d.rollout],
    [null, ":", null, null, 2],
  );
});

test("readout and tooltip: positions count from 1 like steps; reused, or why not; an end token by its name", () => {
  const m = played(
    start("a", { eos: ["<e>"] }),
    record(
      0,
      [0, 0, 0, 0, 0, 2 | 4],
      [
        [4, " hi", 0.93, []],
        [
          3,
          "<e>",
          0.5,
          [
            ["<e>", 0.5],
            [" b", 0.4],
          ],
        ],
      ],
      { r: null },
    ),
  );
  assert.equal(
    pure.readout(pure.tooltipData(m, 4, 0)),
    "answer position 3: ' hi' - density 0.40, confidence 0.93, reused",
  );
  assert.match(
    pure.readout(pure.tooltipData(m, 5, 0)),
    /^answer position 4: masked.*recomputed \(written in the previous step, chosen by the policy\)$/,
  );
  assert.match(pure.readout(pure.tooltipData(m, 0, 0)), /^prompt position 1: 'Q'/);
  assert.match(pure.readout(pure.tooltipData(m, 3, 0)), /^answer position 2: end - /);
  const d = pure.tooltipData(m, 3, 0);
  assert.deepEqual([d.place, d.pos, d.answer, d.eos], ["answer position 2", 3, 1, true]);
  assert.deepEqual(plain(pure.candidatesOf(m, 0, 3).bars.map((b) => b.text)), ["end", " b"]);
});

test("the bars are the likeliest tokens; a written one that is none of them comes last, without a share", () => {
  const top = [
    [" a", 0.4],
    [" b", 0.3],
    [" c", 0.1],
    [" d", 0.1],
    [" e\n", 0.05],
  ];
  const m = played(
    start(),
    record(0, FULL, [
      [2, " z", 0.02, top],
      [3, " b", 0.6, top],
      [4, " y", 0.01, []],
    ]),
  );
  const bars = (p) => plain(pure.candidatesOf(m, 0, p).bars);
  assert.equal(bars(2).length, 6);
  assert.deepEqual(bars(2).at(-1), { text: " z", share: null });
  assert.deepEqual(bars(2)[4], { text: " e↵", share: 0.05 });
  assert.equal(bars(3).length, 5);
  assert.ok(bars(3).every((b) => b.share !== null));
  assert.deepEqual([bars(4), bars(5), bars(0)], [[], [], []]);
  const caption = (decoder) =>
    pure.candidatesCaption(start("a", { knobs: { decoder } }), { step: 0, later: false });
  assert.equal(caption({ temperature: 0, top_p: 1 }), "in step 1: the model's likeliest tokens");
  for (const knobs of [
    { temperature: 0.5, top_p: 1 },
    { temperature: 0, top_p: 0.9 },
  ])
    assert.match(caption(knobs), /the model's likeliest tokens before temperature and top p$/);
});

test("a masked position has the candidates sent last, else of the step that will write it", () => {
  const guess = { k: "guesses", run: "a", s: 0, g: [[2, [[" now", 0.5]]]] };
  const events = [start(), record(0, FULL, []), guess, record(1, FULL, [])];
  const m = played(
    ...events,
    record(2, FULL, [
      [2, " z", 0.9, [[" z", 0.9]]],
      [3, " y", 0.8, [[" y", 0.8]]],
    ]),
  );
  const found = (s, p) => plain(pure.candidatesOf(m, s, p));
  assert.deepEqual(found(0, 2), { bars: [{ text: " now", share: 0.5 }], step: 0, later: false });
  assert.deepEqual(found(1, 2), { bars: [{ text: " now", share: 0.5 }], step: 0, later: false });
  assert.deepEqual(found(1, 3), { bars: [{ text: " y", share: 0.8 }], step: 2, later: true });
  assert.deepEqual(found(2, 2), { bars: [{ text: " z", share: 0.9 }], step: 2, later: false });
  assert.equal(pure.guessWords(m, 0, 3), "likeliest when written in step 3 ' y' 0.80");
  assert.equal(pure.guessWords(m, 0, 2), "likeliest ' now' 0.50");
  assert.equal(pure.guessWords(m, 2, 2), "", "it is written");
  assert.equal(found(0, 4).bars.length, 0);
  const twice = played(
    start(),
    record(0, FULL, [[2, " old", 0.9, [[" old", 0.9]]]]),
    record(1, FULL, [], { m: [2] }),
    record(2, FULL, [[2, " new", 0.9, [[" new", 0.9]]]]),
  );
  assert.equal(pure.candidatesOf(twice, 1, 2).step, 2, "masked again: the write to come");
});

test("the sentence says in the order it happens what it cost, what was written, where, how surely", () => {
  const m = played(
    start(),
    record(0, FULL),
    record(1, [0, 0, 4, 0, 0, 0], [[3, " apples", 0.984, []]]),
    record(2, [1, 1, 1, 1, 1, 0]),
  );
  assert.equal(
    pure.explain(m.records[1], m),
    "Step 2: recomputed 1 of 6 positions, then wrote ' apples' at answer position 2 with confidence 0.98.",
  );
  assert.equal(
    pure.explain(m.records[0], m),
    "Step 1: recomputed 6 of 6 positions, then wrote nothing.",
  );
  assert.equal(
    pure.explainWhy(m.records[1], m),
    "Recomputed: 1 × written in the previous step. The other 5 reused their cached keys and values (K,V).",
  );
  assert.equal(
    pure.explainWhy(m.records[0], m),
    "Every position was computed, nothing came from the cache.",
  );
  assert.match(pure.explainWhy(m.records[2], m), /The other 1 reused its cached/);
});

test("many writes: three by name in reading order, the rest by number; the end token by its name", () => {
  const m = played(
    start(),
    record(0, FULL, [
      [5, "d", 1, []],
      [2, "a\n", 1, []],
      [4, "<|endoftext|>", 1, []],
      [3, "b", 1, []],
    ]),
  );
  assert.equal(
    pure.explain(m.records[0], m),
    "Step 1: recomputed 6 of 6 positions, then wrote 4 tokens, by answer position: 'a↵' (1), 'b' (2), the end token (3) and 1 more.",
  );
});

test("the cache comes first; nobody is told of rows, in the words that are data", () => {
  assert.deepEqual(plain(pure.MAPS.map((m) => m.key)), ["cache", "density", "rollout", "order"]);
  const everybody = (table, kind) =>
    Object.keys(table).flatMap((name) => pure.reasonsOf({ [kind]: name }));
  const words = [
    ...[
      ...pure.REASONS,
      ...everybody(pure.POLICY_WORDS, "policy"),
      ...everybody(pure.DECODER_WORDS, "decoder"),
    ].map((r) => `${r.label} ${r.why}`),
    ...pure.STATS.flat(),
    ...pure.MAPS.map((m) => m.title),
    ...captions(0),
    ...captions(10),
  ];
  for (const text of words) assert.doesNotMatch(text, /\brows?\b/i);
  for (const key of ["tps", "hit", "flops"])
    assert.match(pure.STATS.find((s) => s[0] === key)[2], /up to the current step/);
});

test("what a step writes or masks again has a colour that no reason has, the same in both files", () => {
  const style = readFileSync(new URL("../../assets/stage/stage.css", import.meta.url), "utf8"),
    colours = [];
  for (const [here, there] of [
    [/WRITTEN_NOW = "(#\w+)"/, /--d2-written: (#\w+)/],
    [/MASKED_NOW = "(#\w+)"/, /--d2-again: (#\w+)/],
  ]) {
    colours.push(source.match(here)[1]);
    assert.equal(colours.at(-1), style.match(there)[1]);
  }
  assert.equal(new Set([...colours, ...pure.REASONS.map((r) => r.colour)]).size, 10);
  assert.equal(pure.REASONS.find((r) => r.key === "written").label, "written in the previous step");
  for (const { key, colour } of pure.REASONS) {
    // grey is what was reused
    const c = [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
    assert.ok(Math.max(...c) - Math.min(...c) > 40, `${key} looks grey`);
  }
});

const knobs = (decoder, policy = {}, more = {}) =>
  start("a", { block_length: G, decoder: "confidence", knobs: { decoder, policy }, ...more });
const captions = (sigma) => Object.values(pure.captions).map((f) => f(knobs({ sigma })));

test("captions are true of the current run: its sigmas, and what the decoder makes of them", () => {
  const { cache, density, rollout, order } = pure.captions;
  assert.match(
    cache(knobs({})),
    /^Grey: keys and values \(K,V\) reused from the cache\. A coloured position was computed again in this step; the colour says why\.$/,
  );
  const own = density(knobs({ sigma: 4 }, {}, { sigma: 4 })),
    none = density(knobs({ sigma: 0 }, {}, { sigma: 7.5 }));
  assert.match(
    own,
    /\. A Gaussian, σ = 4 positions; nothing lies beyond the right edge.*\. The decoder multiplies confidence by it to rank its guesses, which favours places next to known text\.$/,
  );
  assert.match(
    none,
    /σ = 7\.5 positions.*The decoder ignores it in this run \(its sigma is 0\)\.$/,
  );
  for (const decoder of ["threshold", "factor", "klass", "slowfast"])
    assert.match(
      density(knobs({ sigma: 4 }, {}, { decoder })),
      /What passes the decoder's test is written anyway; other guesses are ranked by/,
    );
  assert.match(
    density(knobs({ sigma: 4 }, {}, { decoder: "random" })),
    /multiplies its random numbers by it/,
  );
  assert.match(
    density(knobs({ sigma: 10 }, {}, { decoder: "adaptive" })),
    /A Gaussian, σ follows the spread of the latest writes, from 10 positions at first;/,
  );
  assert.match(
    density(knobs({ sigma: 0 }, { as_shipped: true }, { policy: "d2" })),
    /as shipped, the last answer position counts again/,
  );
  assert.match(
    density(knobs({ sigma: 0 }, { as_shipped: true }, { policy: "prefix" })),
    /nothing lies beyond/,
  ); // its switch means something else
  assert.match(density(knobs({ sigma: 4, as_shipped: true })), /as shipped/);
  assert.match(density(knobs({ sigma: 0, as_shipped: true })), /nothing lies beyond/); // then it is not the decoder's
  assert.equal(rollout(knobs({}, {}, { rollout: false })), ""); // there is no map to explain
  assert.match(
    rollout(knobs({}, { rollout_p: 0.1 })),
    /keeps its own \(1\).*The reused positions with the most rollout mass are recomputed next\.$/,
  );
  assert.match(
    rollout(knobs({}, { rollout_p: 0 })),
    /This run does not use it \(its rollout p is 0\)\.$/,
  );
  assert.match(rollout(knobs({}, { rollout_p: 0, as_shipped: true })), /are recomputed next/);
  assert.match(
    order(knobs({ sigma: 3 }, {}, { sigma: 10 })),
    /The certainty prior \(σ = 3\) favours.*left to right; set the decoder's sigma to 0/,
  );
  assert.match(
    order(knobs({ sigma: 10 }, {}, { decoder: "adaptive" })),
    /The certainty prior, its width set by the run itself, favours.*left to right\.$/,
  );
  assert.equal(
    order(knobs({ sigma: 0 })),
    "When each token was written: the likeliest guesses first.",
  );
  assert.equal(
    order(knobs({ sigma: 0 }, {}, { block_length: 2 })),
    "When each token was written, block by block: the likeliest guesses first.",
  );
  const how = (decoder, more) => order(knobs({ sigma: 0, ...more }, {}, { decoder }));
  assert.match(how("random"), /: in a random order\.$/);
  assert.match(
    how("threshold", { threshold: 0.85 }),
    /all guesses of confidence 0\.85 or more at once/,
  );
  assert.match(how("pc", { position: 0.25 }), /: early positions and sure, rare words first/);
  assert.match(how("pc", { position: 0 }), /: sure, rare words first/);
  assert.match(how("wino"), /what a second look doubts is masked again/);
});

test("what confidence is, where it is no probability", () => {
  const unit = (decoder) => pure.confidenceUnit(start("a", { decoder }));
  assert.equal(unit("confidence"), "confidence when written");
  assert.equal(unit("margin"), "confidence when written (lead of the best guess over the second)");
  assert.match(unit("entropy"), /\(1 − entropy/);
});

test("words are those of the policy and decoder that run; a name from a file may be anything", () => {
  const label = (key, more) => pure.reasonsOf(start("a", more)).find((r) => r.key === key).label;
  const runs = ["d2", "dkv", "dllm", "elastic", "none", "prefix", "sparse"].flatMap((policy) =>
    ["wino", "confidence"].map((decoder) => ({ policy, decoder })),
  );
  for (const { key, label: name } of pure.REASONS)
    for (const run of runs) assert.equal(label(key, run), name, "one name for each colour");
  const why = (key, more) => pure.reasonsOf(start("a", more)).find((r) => r.key === key).why;
  assert.match(why("chosen", { policy: "dkv" }), /at every step/);
  assert.match(why("window", { policy: "elastic" }), /furthest left/);
  assert.match(why("written", { decoder: "wino" }), /or masked again/);
  const plainOnes = plain(pure.reasonsOf({}));
  for (const name of ["constructor", "__proto__", "toString", "<b>", ""]) {
    const s = start("a", { policy: name, decoder: name, block_length: G });
    assert.deepEqual(plain(pure.reasonsOf(s)), plainOnes);
    assert.match(pure.captions.cache(s), /^Grey: keys and values/);
    assert.equal(pure.captions.order(s), "When each token was written.");
    pure.captions.density(s);
  }
});

// A policy that decides layer by layer, of four layers: the mean of l is rows, the reasons are those of any layer.
const layered = (s, y, l, more = {}) =>
  record(s, y, [], { rows: l.reduce((a, b) => a + b) / 4, a: parts(l), r: null, ...more });
const parts = (l) => pairs([0, 1, 2, 3].flatMap((layer) => l.map((n) => (layer < n ? 15 : 3))));
const pairs = (cells) => b64(cells.flatMap((v) => [v, 1])); // a run-length code, if a lazy one
const byLayer = (policy, more = {}) =>
  start("a", { policy, layers: 4, by_layer: true, rollout: false, ...more });

test("where layers differ: the mean over the layers, the reasons of any layer, what no layer recomputed", () => {
  const m = played(
    byLayer("elastic"),
    layered(0, FULL, [4, 4, 4, 4, 4, 4]),
    layered(1, [2, 2, 2, 4, 128, 2], [2, 2, 2, 4, 4, 2]),
    layered(2, [0, 0, 0, 4, 128, 0], [0, 0, 0, 4, 4, 0]),
    layered(3, [0, 2, 0, 4, 128, 0], [0, 1, 0, 4, 4, 0]),
  );
  assert.equal(
    pure.explain(m.records[0], m),
    "Step 1: recomputed 6 of 6 positions, then wrote nothing.",
  );
  assert.equal(
    pure.explainWhy(m.records[0], m),
    "Every position was computed, nothing came from the cache.",
  );
  assert.match(
    pure.explain(m.records[1], m),
    /^Step 2: recomputed 4 of 6 positions \(mean over 4 layers\), then/,
  );
  assert.equal(
    pure.explainWhy(m.records[1], m),
    "Recomputed in at least one layer: 1 × written in the previous step, 4 × chosen by the policy, 1 × window. The other layers reused what is cached.",
  );
  assert.equal(
    pure.explainWhy(m.records[2], m),
    "Recomputed: 1 × written in the previous step, 1 × window. The other 4 reused their cached keys and values (K,V).",
  );
  assert.match(
    pure.explain(m.records[3], m),
    /recomputed 2\.3 of 6 positions \(mean over 4 layers\)/,
  );
  assert.match(
    pure.explainWhy(m.records[3], m),
    /^Recomputed in at least one layer: .*The other 3 reused their cached/,
  );
  assert.equal(pure.hitRate(m.records[1], T), 1 - 4 / 6);
  assert.deepEqual(
    [0, 1, 2, 3].map((s) => pure.touchedIn(m.records[s])),
    [6, 6, 2, 3],
  );
  assert.match(
    pure.readout(pure.tooltipData(m, 0, 1)),
    /recomputed in 2 of 4 layers \(chosen by the policy\)$/,
  );
  assert.match(
    pure.readout(pure.tooltipData(m, 3, 1)),
    /recomputed \(written in the previous step\)$/,
  );
  assert.match(pure.readout(pure.tooltipData(m, 0, 2)), /reused$/);
  assert.match(
    pure.captions.cache(m.start),
    /and is paler where only some of the 4 layers did\. When attention drifts in a layer/,
  );
});

test("the colour pales with the layers that did not recompute", () => {
  const m = played(
    byLayer("dllm"),
    layered(0, [2, 2, 2, 2, 2, 0], [1, 2, 3, 4, 4, 0]),
    record(1, FULL),
  );
  assert.deepEqual(
    [0, 1, 2, 3, 5].map((p) => pure.shade(m.records[0], p, 4)),
    [2, 4, 6, 8, 0],
  );
  assert.equal(pure.shade(m.records[1], 0, 4), 8);
});

test("values that are made anew to see which moved are not said to be reused; evicted ones are counted", () => {
  const dllm = played(
    byLayer("dllm", { knobs: { policy: { rho: 0.25 } } }),
    layered(0, [0, 0, 2, 0, 0, 0], [0, 0, 4, 0, 0, 0]),
  );
  assert.equal(
    pure.explainWhy(dllm.records[0], dllm),
    "Recomputed: 1 × chosen by the policy. The other 5 reused their cached layer outputs.",
  );
  assert.match(
    pure.captions.cache(dllm.start),
    /^Grey: layer outputs reused.*Between refreshes each layer computes the values \(V\) of the whole answer/,
  );
  assert.doesNotMatch(
    pure.captions.cache(byLayer("dllm", { knobs: { policy: { rho: 0 } } })),
    /Between refreshes/,
  );
  const sparse = played(
    byLayer("sparse", { knobs: { policy: { keep_ratio: 0.5 } } }),
    layered(0, [0, 0, 64, 64, 0, 0], [0, 0, 4, 4, 0, 0], { out: 3 }),
    layered(1, FULL, [4, 4, 4, 4, 4, 4]),
  );
  assert.equal(
    pure.explainWhy(sparse.records[0], sparse),
    "Recomputed: 2 × block. The other 4 reused their cached keys and values (K,V), if not evicted: each layer left 3 positions out of attention.",
  );
  assert.doesNotMatch(pure.explainWhy(sparse.records[1], sparse), /evicted/);
  assert.match(
    pure.captions.cache(sparse.start),
    /why\. While a block is filled, each layer leaves/,
  );
  assert.doesNotMatch(
    pure.captions.cache(byLayer("sparse", { knobs: { policy: { keep_ratio: 1 } } })),
    /evicted|paler/,
  );
});

test("a token masked again is masked from that step on, marked in it, and can be written a second time", () => {
  const m = played(
    start("a", { decoder: "wino" }),
    record(0, FULL, [
      [3, " cat", 0.6, [[" cat", 0.6]]],
      [4, " sat", 0.7, []],
    ]),
    record(1, FULL, [[2, "A", 0.9, []]], { m: [3, 4] }),
    record(2, FULL, [], { m: [2] }),
    record(3, FULL, [[3, " dog", 0.95, []]]),
    record(4, FULL),
  );
  assert.deepEqual(
    [0, 1, 2, 3, 4].map((s) => pure.chipData(m, 3, s).state),
    ["now", "again", "masked", "now", "settled"],
  );
  assert.deepEqual(
    [0, 1, 2, 3, 4].map((s) => pure.chipData(m, 3, s).text),
    [" cat", "", "", " dog", " dog"],
  );
  assert.deepEqual(
    [0, 1, 2, 3].map((s) => pure.chipData(m, 3, s).masked),
    [false, true, true, false],
  );
  assert.equal(pure.writeAt(m, 3, 1), null);
  assert.equal(
    pure.explain(m.records[1], m),
    "Step 2: recomputed 6 of 6 positions, then wrote 'A' at answer position 1 with confidence 0.90; masked 2 tokens again, by answer position: ' cat' (2), ' sat' (3).",
  );
  assert.match(
    pure.explain(m.records[2], m),
    /wrote nothing; masked 'A' again at answer position 1\.$/,
  );
  assert.doesNotMatch(pure.explain(m.records[3], m), /again/);
  const d = pure.tooltipData(m, 3, 2);
  assert.deepEqual([d.masked, d.again, d.was, d.write], [true, 1, " cat", null]);
  assert.match(pure.readout(d), /^answer position 2: masked - /);
  assert.deepEqual([pure.tooltipData(m, 3, 3).again, pure.tooltipData(m, 3, 3).was], [null, null]);
  assert.equal(pure.tooltipData(m, 5, 3).again, null); // never written
  const lost = played(start(), record(0, FULL), record(2, FULL, [], { m: [3] })); // the record that wrote it
  assert.match(
    pure.explain(lost.records[2], lost),
    /; masked a token again at answer position 2\.$/,
  );
  assert.equal(pure.tooltipData(lost, 3, 2).was, null);
  assert.deepEqual([m.again, played(start(), record(0, FULL)).again], [true, false]);
});

test("the order map shows a position masked again as such in its step, then as masked", () => {
  const m = played(
    start(),
    record(0, FULL, [[3, "x", 1, []]]),
    record(1, FULL, [], { m: [3] }),
    record(2, FULL),
    record(3, FULL, [[3, "y", 1, []]]),
    record(4, FULL),
  );
  const order = pure.MAPS.find((map) => map.key === "order"),
    colours = {
      masked: "masked",
      now: "now",
      again: "again",
      order: [0, 1, 2, 3, 4].map((s) => `order ${s}`),
    };
  const seen = m.records.map((r) => {
    const out = [];
    order.row(out, r, m, colours);
    return out[3];
  });
  assert.deepEqual(plain(seen), ["now", "again", "masked", "now", "order 3"]);
});

test("which run it is: the prompt's text in one piece, and what made it", () => {
  const m = played(
    start("a", {
      prompt: ["Q:", " How\n", " many?", "\nA:"],
      policy: "d2",
      decoder: "confidence",
      model: "tiny",
    }),
  );
  assert.equal(pure.promptText(m), "Q: How many? A:");
  assert.equal(pure.madeBy(m.start), "policy d2 · decoder confidence · model tiny");
  assert.equal(pure.promptText(played(start("a", { prompt: [] }))), "(no prompt)");
  const code = played(start("a", { prompt: ["Write", " add", "_one", " ("] }));
  assert.equal(pure.promptText(code), "Write add_one (");
});

test("a pause holds until the run goes on, ends, or another starts", () => {
  const pause = { k: "pause", run: "a" },
    at = (...more) => played(start(), record(0, FULL), pause, ...more);
  assert.deepEqual(
    [played(start()).paused, at().paused, at(record(0, FULL)).paused],
    [false, true, true],
  ); // the last: a record seen before
  assert.deepEqual(
    [
      at(record(1, FULL)).paused,
      at({ k: "end", run: "a", status: "stopped", note: "" }).paused,
      at(start("b")).paused,
    ],
    [false, false, false],
  );
  assert.deepEqual(
    [played(start()), at(), at({ k: "end", run: "a", status: "done" })].map(pure.lampText),
    ["live", "paused", "end"],
  );
});

test("the attention map waits while a run is followed live, not when it rests or the reader looks back", () => {
  const going = played(start(), record(0, FULL)),
    at = (...more) => played(start(), record(0, FULL), ...more);
  assert.deepEqual([pure.wantsMap(going, true), pure.wantsMap(going, false)], [false, true]);
  assert.equal(pure.wantsMap(at({ k: "pause", run: "a" }), true), true);
  assert.equal(pure.wantsMap(at({ k: "end", run: "a", status: "done" }), true), true);
  assert.equal(
    pure.wantsMap(played(start(), { k: "end", run: "a", status: "failed" }), true),
    false,
  );
});

test("the attention map's note: whose step, how it was made, and which shade is more", () => {
  assert.match(
    pure.mapNote(11, false, false),
    /^Step 12, computed again by a full pass without a cache\. Row i, column j: how much position i draws on position j.*Darker is more/,
  );
  assert.match(pure.mapNote(11, true, true), /^From the previous run: step 12,.*Brighter is more/);
});

test("hostile or invisible text stays text", () => {
  assert.equal(pure.visible("<img src=x onerror=alert(1)>"), "<img src=x onerror=alert(1)>");
  assert.equal(pure.visible(" a\n"), " a↵");
  assert.equal(pure.visible("\u0007\t"), "\u2407\u2409");
  assert.equal(pure.visible(""), "·");
});

test("totals: a ratio of FLOPs, a share in percent, a dash for what is not known", () => {
  assert.deepEqual(
    plain(pure.formatTotals({ tps: 12.34, hit_rate: 0.787, flops: 31, flops_none: 100 })),
    { tps: "12.3", hit: "79 %", flops: "0.31×" },
  );
  assert.deepEqual(plain(pure.formatTotals(null)), { tps: "–", hit: "–", flops: "–" });
});

test("totals are those of the current step, else of the nearest step before it", () => {
  const totals = (s, tps) => ({ k: "totals", run: "a", s, tps });
  const m = played(
    start(),
    record(0, FULL),
    record(1, FULL),
    totals(1, 11),
    record(2, FULL),
    record(4, FULL),
    totals(4, 44),
    totals(9, 99),
  );
  assert.deepEqual(
    [0, 1, 2, 3, 4, 5].map((s) => pure.totalsAt(m, s)?.tps ?? null),
    [null, 11, 11, 11, 44, 44],
  );
  assert.equal(m.records[4].totals.tps, 44);
});

// A text of five positions with masks at 1 and 3: "a ▢ c ▢ e".
const gapped = (...steps) =>
  [
    {
      k: "start",
      run: "g",
      T: 5,
      P: 1,
      G: 4,
      prompt: ["a"],
      given: [
        [2, "c"],
        [4, "e"],
      ],
    },
    ...steps.map((more, s) => ({ k: "rec", run: "g", seq: s, s, w: [], m: [], rows: 5, ...more })),
  ].reduce(pure.applyEvent, pure.emptyRun());

test("text given among masks is nobody's writing", () => {
  const run = gapped({ w: [[3, "d", 0.9, []]] });
  assert.deepEqual([run.blank, run.expected], [2, 2]);
  assert.equal(pure.filledAt(run, 0), 1);
  const states = Array.from({ length: 5 }, (_, p) => pure.chipData(run, p, 0));
  assert.deepEqual(
    states.map((d) => `${d.state} ${d.text}`),
    ["prompt a", "masked ", "prompt c", "now d", "prompt e"],
  );
  assert.ok(states[2].write === null && states[3].write);
  assert.equal(pure.placeOf(run, 3), "position 4");
  assert.deepEqual(pure.sideOf(run, 3), { side: "text", from: 0, size: 5 });
  assert.match(pure.lifeSentence(run, 2, 0), /given from the start/);
  assert.doesNotMatch(pure.explain(run.records[0], run, 0), /answer position/);
  assert.equal(pure.promptText(run), "a _c _e");
  const board = { lanes: [run] };
  assert.match(pure.watchWords(board, [-1]), /missing in the text is masked.* 2 masks/);
});

test("given text that is masked is the run's to write", () => {
  const run = gapped({ m: [2] }, { w: [[2, "x", 0.5, []]] });
  assert.deepEqual([pure.chipData(run, 2, 0).masked, pure.chipData(run, 2, 1).text], [true, "x"]);
});
