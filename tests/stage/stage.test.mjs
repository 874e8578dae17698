// Run with: node --test tests/stage/stage.test.mjs
// The half of the stage that needs no page: does it read the events rightly and say what is so?
import { test } from "node:test";
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import vm from "node:vm";

// As the page does: a plain script in a world that has no document.
const source = readFileSync(new URL("../../assets/stage.js", import.meta.url), "utf8");
const world = vm.createContext({ atob, Uint8Array });
vm.runInContext(source, world);
const pure = world.D2Stage.pure;
const plain = (x) => JSON.parse(JSON.stringify(x));      // the other world has its own Array and Object

const b64 = (bytes) => Buffer.from(bytes).toString("base64");
const T = 6, P = 2, G = 4;
const start = (run = "a", more = {}) => ({ k: "start", run, T, P, G, sigma: 10, prompt: ["Q", ":"], rollout: true, ...more });
const rec = (s, y, w = [], more = {}) => ({ k: "rec", run: "a", seq: s, s, ms: 1, rows: y.filter(Boolean).length, w,
  c: b64([0, 1, 128, 255]), d: b64([0, 51, 102, 255]), r: b64([128, 144, 112, 128, 0, 255]), y: b64(y), ...more });
const run = (...events) => events.reduce(pure.applyEvent, pure.emptyModel());
const FULL = [1, 1, 1, 1, 1, 1];

test("the script makes one global and touches no document on loading", () => {
  assert.deepEqual(Object.keys(world).filter((k) => !["atob", "Uint8Array"].includes(k)), ["D2Stage"]);
  assert.deepEqual(Object.keys(world.D2Stage).sort(), ["mount", "pure"]);
});

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
  for (const p of [0.03, 0.5, 0.98]) assert.ok(Math.abs(pure.confidence(1 + Math.round(254 * p)) - p) < 1 / 254);
});

test("rollout mass: the mean is 1 and 16 codes double it", () => {
  assert.equal(pure.rolloutMass(128), 1);
  for (const u of [0, 40, 128, 239]) assert.ok(Math.abs(pure.rolloutMass(u + 16) / pure.rolloutMass(u) - 2) < 1e-12);
  assert.ok(pure.massShade(1 / 16) === 0 && pure.massShade(32) === 1);
});

test("the most telling reason wins, whatever else is set", () => {
  const order = ["written", "chosen", "rollout", "gap", "block", "window", "full"];
  const bit = { full: 1, chosen: 2, written: 4, rollout: 8, gap: 16, shift: 32, block: 64, window: 128 };
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
  for (const name of ["density", "rollout", "order", "confidence"]) for (const dark of [false, true]) {
    const steps = Array.from({ length: 33 }, (_, i) => luma(pure.colourAt(name, i / 32, dark)));
    const signs = new Set(steps.slice(1).map((x, i) => Math.sign(x - steps[i])));
    assert.ok(signs.size === 1 && !signs.has(0), `${name} ${dark}`);
    assert.ok(Math.abs(steps[32] - steps[0]) > 100, `${name} ${dark} has little contrast`);
  }
  assert.deepEqual(plain(pure.colourAt("density", -3)), plain(pure.colourAt("density", 0)));
  assert.deepEqual(plain(pure.colourAt("density", 9)), plain(pure.colourAt("density", 1)));
});

test("hit rate: the share of rows not recomputed, over all rows of all steps", () => {
  const m = run(start(), rec(0, FULL), rec(1, [0, 0, 4, 2, 0, 0]), rec(2, [0, 0, 0, 8, 0, 0]));
  assert.equal(pure.hitRate(m.recs[0], T), 0);
  assert.ok(Math.abs(pure.hitRate(m.recs[1], T) - 4 / 6) < 1e-12);
  assert.equal(pure.hitRateSoFar(m, 0), 0);
  assert.equal(pure.hitRateSoFar(m, 2), 1 - (6 + 2 + 1) / 18);
  assert.equal(pure.hitRateSoFar(run(start()), 0), null);
});

test("a row with several reasons is counted once per step", () => {
  const m = run(start(), rec(0, [0, 0, 4 | 2, 2 | 8, 8, 0]));
  assert.deepEqual(plain(pure.reasonCounts(m.recs[0])), { written: 1, chosen: 1, rollout: 1 });
});

test("events of another run are ignored, and a start clears everything", () => {
  const m = run(start("a"), rec(0, FULL, [[2, "x", 0.5, []]]), rec(1, FULL, [], { run: "b" }), { k: "end", run: "b", status: "failed" }, { k: "totals", run: "b", tps: 9 });
  assert.equal(m.received, 1);
  assert.equal(m.status, "running");
  assert.equal(m.totals, null);
  const fresh = pure.applyEvent(m, start("b"));
  assert.deepEqual([fresh.run, fresh.received, fresh.recs.length, fresh.gaps], ["b", 0, 0, 0]);
  assert.equal(pure.chipData(fresh, 2, 0).state, "masked");
  assert.equal(run(rec(0, FULL)).received, 0);
});

test("a gap in seq is counted by the records lost; a repeated record is not a second one", () => {
  assert.equal(run(start(), rec(0, FULL), rec(1, FULL), rec(2, FULL)).gaps, 0);
  const m = run(start(), rec(0, FULL), rec(3, FULL, [[2, "x", 0.5, []]]));
  assert.equal(m.gaps, 2);
  assert.equal(m.received, 2);
  const again = pure.applyEvent(m, rec(3, FULL, [[2, "x", 0.5, []]]));
  assert.deepEqual([again.gaps, again.received, again.writes[2].length], [2, 2, 1]);
  assert.equal(run(start(), rec(1, FULL)).gaps, 1);
});

test("applyText reads one message; the empty first value of a component is no message", () => {
  const m = pure.applyText(pure.emptyModel(), JSON.stringify({ events: [start(), rec(0, FULL)] }));
  assert.equal(m.received, 1);
  assert.equal(pure.applyText(m, ""), m);
});

test("a token is masked, then just written, then settled; going back unwrites it", () => {
  const m = run(start(), rec(0, FULL), rec(1, FULL, [[4, " ok", 0.9, []]]), rec(2, FULL));
  assert.deepEqual([0, 1, 2, 0].map((s) => pure.chipData(m, 4, s).state), ["masked", "now", "settled", "masked"]);
  assert.equal(pure.chipData(m, 1, 0).state, "prompt");
  assert.equal(pure.chipData(m, 1, 0).text, ":");
});

test("the planned height is the longest run possible, until a done run tells its own", () => {
  const m = run(start(), rec(0, FULL), rec(1, FULL));
  assert.equal(m.expected, G);
  assert.equal(run(start(), ...[0, 1, 2, 3, 4, 5].map((s) => rec(s, FULL))).expected, 6);
  assert.equal(pure.applyEvent(m, { k: "end", run: "a", status: "done", note: "" }).expected, 2);
});

test("tooltip: recomputations so far, each with all its reasons, nothing from later steps", () => {
  const m = run(start(), rec(0, FULL), rec(1, [0, 0, 0, 2 | 8, 0, 0], [[3, " it", 0.75, [[" it", 0.75], [" a", 0.1]]]]),
    rec(2, [0, 0, 0, 4, 0, 0]), rec(3, [0, 0, 0, 0, 0, 0]), rec(4, FULL));
  const d = pure.tooltipData(m, 3, 3);
  assert.deepEqual([d.recomputed, d.steps], [3, 4]);
  assert.deepEqual(plain(d.byReason), { full: 1, chosen: 1, rollout: 1, written: 1 });
  assert.deepEqual([d.pos, d.answer, d.text, d.step, d.conf, d.state], [3, 1, " it", 1, 0.75, "settled"]);
  assert.deepEqual(plain(d.top), [[" it", 0.75], [" a", 0.1]]);
  assert.deepEqual([d.density, d.rollout, d.candidate], [51 / 255, 1, 0]);
  assert.deepEqual(plain(d.now), []);
  const before = pure.tooltipData(m, 3, 0);
  assert.deepEqual([before.state, before.conf, before.recomputed, before.top.length], ["masked", null, 1, 0]);
});

test("tooltip in the prompt: a position like the others, without guess or density", () => {
  const d = pure.tooltipData(run(start(), rec(0, FULL)), 1, 0);
  assert.deepEqual([d.answer, d.text, d.density, d.candidate, d.rollout], [null, ":", null, null, 2]);
});

test("readout names the position twice and says reused or why not", () => {
  const m = run(start(), rec(0, [0, 0, 0, 0, 0, 2 | 4], [[4, " hi", 0.93, []]], { r: null }));
  assert.equal(pure.readout(pure.tooltipData(m, 4, 0)), "position 4 (answer 2): ' hi' - density 0.40, confidence 0.93, reused");
  assert.match(pure.readout(pure.tooltipData(m, 5, 0)), /masked.*recomputed \(just written, chosen mask\)$/);
});

test("the sentence says what was written, where, how surely, and what it cost", () => {
  const m = run(start(), rec(0, FULL), rec(1, [0, 0, 4, 0, 0, 0], [[3, " apples", 0.984, []]]));
  assert.equal(pure.explain(m.recs[1], m), "Step 2: wrote ' apples' at answer position 1 with confidence 0.98; recomputed 1 of 6 rows.");
  assert.match(pure.explain(m.recs[0], m), /^Step 1: wrote nothing; recomputed 6 of 6 rows/);
  assert.match(pure.explainWhy(m.recs[1], m), /1 just written.*other 5 rows reused/);
  assert.doesNotMatch(pure.explainWhy(m.recs[0], m), /reused/);
});

test("many writes: three by name in reading order, the rest by number; the end token by its name", () => {
  const m = run(start(), rec(0, FULL, [[5, "d", 1, []], [2, "a\n", 1, []], [4, "<|endoftext|>", 1, []], [3, "b", 1, []]]));
  assert.equal(pure.explain(m.recs[0], m), "Step 1: wrote 4 tokens, by answer position: 'a↵' (0), 'b' (1), the end token (2) and 1 more; recomputed 6 of 6 rows.");
});

test("hostile or invisible text stays text", () => {
  assert.equal(pure.visible("<img src=x onerror=alert(1)>"), "<img src=x onerror=alert(1)>");
  assert.equal(pure.visible(" a\n"), " a↵");
  assert.equal(pure.visible("\u0007\t"), "\u2407\u2409");
  assert.equal(pure.visible(""), "·");
});

test("totals: a ratio of FLOPs, a share in percent, a dash for what is not known", () => {
  assert.deepEqual(plain(pure.formatTotals({ tps: 12.34, hit_rate: 0.787, flops: 31, flops_none: 100 })), { tps: "12.3", hit: "79 %", flops: "0.31×" });
  assert.deepEqual(plain(pure.formatTotals(null)), { tps: "–", hit: "–", flops: "–" });
});
