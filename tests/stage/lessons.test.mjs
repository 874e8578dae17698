// Lessons and glossary, the half that needs no page: tests of cards, what a run's state is, terms in sentences.
import { test } from "node:test";
import assert from "node:assert/strict";
import { b64, plain, pure } from "./load.mjs";

const P = 2,
  G = 4,
  T = P + G;
const start = (run, more = {}) => ({
  k: "start",
  run,
  T,
  P,
  G,
  layers: 2,
  prompt: ["Q", ":"],
  policy: "d2",
  decoder: "confidence",
  block_length: 4,
  knobs: { policy: { current_k: 8, as_shipped: true }, decoder: { sigma: 10 } },
  ...more,
});
const record = (run, s, w, m = []) => ({
  k: "rec",
  run,
  seq: s,
  s,
  ms: 1,
  rows: 3,
  w,
  m,
  c: b64([0, 0, 0, 0]),
  d: b64([0, 0, 0, 0]),
  r: null,
  y: b64([0, 0, 1, 1, 1, 0]),
});
const totals = (run, s, flops) => ({
  k: "totals",
  run,
  s,
  tokens: 1,
  seconds: 1,
  tps: 1,
  hit_rate: 0.5,
  flops,
  flops_none: 100,
});
const made = (run, tokens, more) =>
  [
    start(run, more),
    ...tokens.flatMap((text, s) => [
      record(run, s, [[P + s, text, 0.9, []]]),
      totals(run, s, 10 * (s + 1)),
    ]),
  ].reduce(pure.applyEvent, pure.emptyRun());

function pageOf(lanes, lane, step, more = {}) {
  const board = { key: "b", lanes, clock: "step", lane };
  return {
    board,
    lane,
    step,
    run: lanes[lane] ?? pure.emptyRun(),
    stepOf: () => step,
    tab: "stage",
    selected: null,
    ...more,
  };
}

test("a card's test: alternatives of comparisons that must all hold", () => {
  const until = [
    [
      ["step", "=", 3],
      ["policy", "=", "d2"],
    ],
    [["hit_rate", ">=", 0.8]],
  ];
  assert.equal(pure.holds(until, { step: 3, policy: "d2", hit_rate: 0 }), true);
  assert.equal(pure.holds(until, { step: 3, policy: "none", hit_rate: 0.79 }), false);
  assert.equal(pure.holds(until, { step: 1, policy: "none", hit_rate: 0.1 + 0.7 }), true); // 0.7999999999999999
  for (const [operator, less, same, more] of [
    ["<", true, false, false],
    ["<=", true, true, false],
    [">", false, false, true],
    [">=", false, true, true],
    ["=", false, true, false],
    ["!=", true, false, true],
  ])
    assert.deepEqual(
      [1, 2, 3].map((now) => pure.holds([[["step", operator, 2]]], { step: now })),
      [less, same, more],
      operator,
    );
});

test("what is not known yet fulfils no comparison, not even an inequality", () => {
  for (const now of [null, undefined, NaN])
    assert.equal(pure.holds([[["flops", "!=", 3]]], { flops: now }), false);
});

test("the state counts from 1, as the screen does, and knows knobs and totals", () => {
  const run = made("a", ["x", "y"]),
    state = pure.lessonState(pageOf([run], 0, 1, { selected: P + 2 }));
  assert.equal(state.step, 2);
  assert.equal(state.steps, 2);
  assert.equal(state.lane, 1);
  assert.equal(state.lanes, 1);
  assert.equal(state.selected, 3);
  assert.equal(state.status, "running");
  assert.equal(state.hit_rate, 0.5);
  assert.equal(state.flops, 0.2);
  assert.equal(state["policy.current_k"], 8);
  assert.equal(state["policy.as_shipped"], 1);
  assert.equal(state["decoder.sigma"], 10);
  assert.equal(state.block, 4);
});

test("an empty page has a state too, and a pinned prompt token is no answer position", () => {
  const state = pure.lessonState({
    board: { lanes: [], clock: "step" },
    run: pure.emptyRun(),
    step: -1,
    lane: 0,
    selected: null,
  });
  assert.equal(state.status, "empty");
  assert.equal(state.step, 0);
  assert.equal(state.agreement, null);
  assert.equal(pure.lessonState(pageOf([made("a", ["x"])], 0, 0, { selected: 0 })).selected, null);
});

test("a paused run is paused, and what-ifs are counted", () => {
  const run = [{ k: "pause", run: "a" }].reduce(pure.applyEvent, made("a", ["x"]));
  assert.equal(pure.lessonState(pageOf([run], 0, 0)).status, "paused");
  const branch = made("b", ["x"], { branch: { lane: 0, step: 0, says: "" } });
  assert.equal(pure.lessonState(pageOf([run, branch], 1, 0)).branches, 1);
});

test("agreement is the share of positions written in either lane that hold the same token", () => {
  const one = made("a", ["x", "y", "z"]),
    two = made("b", ["x", "Y"]);
  assert.equal(pure.agreementOf(two, 1, one, 1), 0.5);
  assert.equal(pure.agreementOf(two, 1, one, 2), 1 / 3); // z is written in one of them alone
  assert.equal(pure.agreementOf(one, 2, one, 2), 1);
  assert.equal(pure.agreementOf(one, -1, two, -1), null); // nothing written yet
  assert.equal(pure.lessonState(pageOf([one, two], 1, 1)).agreement, 0.5);
});

test("how far it is, in words, each name once", () => {
  const until = [
    [
      ["flops", "<", 0.2],
      ["hit_rate", ">=", 0.8],
    ],
    [["flops", "<", 0.1]],
  ];
  assert.equal(
    pure.nowWords(until, { flops: 0.3353, hit_rate: 0.62 }),
    "flops 0.34, hit rate 62 %",
  );
  assert.equal(pure.nowWords([[["selected", "=", 5]]], { selected: null }), "no token pinned");
  assert.equal(pure.nowWords([[["selected", "=", 5]]], { selected: 4 }), "answer position 4");
  assert.equal(pure.nowWords([[["policy.rollout_p", "=", 0.1]]], {}), "rollout p not yet");
});

test("a query asks for the same runs whatever it says of the view, and for so many lanes", () => {
  const query = "prompt=a%20b&lane=none/pc,sigma=1&lane=prefix~8,refresh=all";
  assert.equal(pure.sameRuns(query, `prompt=a+b&tab=cache&${query.slice(13)}&at=3`), true);
  assert.equal(pure.sameRuns(query, query.replace("sigma=1", "sigma=2")), false);
  assert.equal(pure.sameRuns(query, null), false);
  assert.equal(pure.sameRuns("trace=x", "trace=x"), true);
  assert.equal(pure.lanesAsked(query), 2);
  assert.equal(pure.lanesAsked("trace=x"), 0);
});

const VIEW = { left: 0, top: 0, width: 1400, height: 900 };
const CARD = { width: 330, height: 500 };
const placed = (left, top, width, height, view = VIEW) => {
  const ring = { left, top, width, height },
    place = pure.placeBeside(ring, CARD, view);
  assert.ok(place.left >= view.left && place.left + CARD.width <= view.left + view.width);
  assert.ok(place.top >= view.top && place.top + CARD.height <= view.top + view.height);
  return { ...place, covered: pure.overlap(place, ring) };
};

test("a card is beside what it points at, or below or above, and never over it if there is room", () => {
  assert.deepEqual(placed(400, 100, 900, 300), { left: 46, top: 100, ...CARD, covered: 0 });
  assert.ok(placed(20, 600, 330, 250).left > 350); // a control on the left
  assert.ok(placed(100, 20, 1290, 200).top > 220); // as wide as the page: below
  assert.ok(placed(100, 600, 1290, 280).top + CARD.height < 600); // or above
  for (let left = 0; left < 1300; left += 100)
    for (let top = 0; top < 850; top += 50) assert.equal(placed(left, top, 60, 40).covered, 0);
  assert.ok(placed(0, 0, 1400, 900).covered > 0); // no room: in a corner
  const shown = { left: 0, top: 2000, width: 1400, height: 900 };
  assert.equal(placed(400, 2100, 900, 300, shown).top, 2100);
});

const glossary = pure.readGlossary({
  mask: "A place.",
  cache: "Kept.",
  "KV cache": "Kept.",
  "attention rollout": "Ways.",
  attention: "Reads.",
  "top p": "Some.",
  "K,V": "Two.",
  σ: "Wide.",
});
const parts = (text) => plain(pure.termParts(glossary, text));

test("terms are found whole, the longest first, also in the plural, each once", () => {
  assert.deepEqual(parts("Masks and attention rollout."), [
    { text: "Masks", term: "mask" },
    " and ",
    { text: "attention rollout", term: "attention rollout" },
    ".",
  ]);
  assert.deepEqual(parts("a mask, another mask"), [
    "a ",
    { text: "mask", term: "mask" },
    ", another mask",
  ]);
  assert.deepEqual(parts("unmasked, masked, stop p"), ["unmasked, masked, stop p"]);
  assert.deepEqual(parts("K,V and σ = 10"), [
    { text: "K,V", term: "k,v" },
    " and ",
    { text: "σ", term: "σ" },
    " = 10",
  ]);
});

test("two names of one term are one term", () => {
  assert.deepEqual(parts("a KV cache is a cache"), [
    "a ",
    { text: "KV cache", term: "kv cache" },
    " is a cache",
  ]);
});

test("nothing is lost: the parts make up the sentence, whatever is in it", () => {
  for (const text of [
    "",
    "masks",
    "no term",
    "<b>mask</b> $& (attention) top p?",
    "x".repeat(500) + " mask",
  ])
    assert.equal(
      parts(text)
        .map((p) => p.text ?? p)
        .join(""),
      text,
    );
  assert.deepEqual(plain(pure.termParts(pure.readGlossary({}), "mask")), ["mask"]);
});

test("a term is known by its small letters, and by one s more or less", () => {
  assert.equal(pure.termIn(glossary, "KV Caches"), "kv cache");
  assert.equal(pure.termIn(pure.readGlossary({ flops: "Work." }), "FLOP"), "flops");
  assert.equal(pure.termIn(glossary, "constructor"), null);
});
