// The tab Watch: the model's guesses, the meters, and the sentence about a moment.
import { test } from "node:test";
import assert from "node:assert/strict";
import { b64, pure } from "./load.mjs";

const T = 6,
  P = 2,
  G = 4;
// A run of lane i: writes[s] is what step s writes, rows[s] how many positions it computes.
function lane(i, policy, writes, rows, more = {}) {
  const run = `run-${i}`,
    events = writes.map((w, s) => ({
      k: "rec",
      run,
      seq: s,
      s,
      ms: 1,
      rows: rows[s],
      w: w.map(([p, text]) => [p, text, 0.9, []]),
      y: b64(Array.from({ length: T }, (_, p) => Number(p < rows[s]))),
      ...more[s],
    }));
  const start = { k: "start", run, lane: i, board: "b", T, P, G, prompt: ["Q", ":"], steps: 4 };
  return [
    { ...start, policy, title: policy === "none" ? "No cache" : "d2Cache", eos: ["<end>"] },
    ...events,
    { k: "end", run, status: "done", note: "" },
  ];
}
const JUMPS = [[[3, "b"]], [[2, "a"]], [[5, "<end>"]], [[4, "c"]]];
const board = (...lanes) => lanes.flat().reduce(pure.applyToBoard, pure.emptyBoard());
const race = (other = JUMPS) =>
  board(lane(0, "none", JUMPS, [6, 6, 6, 6]), lane(1, "d2", other, [6, 2, 1, 1]));

test("a meter shows the share of what a run without a cache computes", () => {
  const b = race();
  assert.equal(pure.progressAt(b, 0, 3).work, 1);
  assert.equal(pure.progressAt(b, 1, 0).work, 0.25);
  assert.equal(pure.progressAt(b, 1, 3).work, 10 / 24);
  assert.equal(pure.progressAt(b, 0, -1).work, 0);
  assert.deepEqual(
    [2, 3].map((s) => pure.progressAt(b, 1, s).done),
    [false, true],
  );
});

test("the sentence says what was written out of turn, and who computed how much", () => {
  const b = race();
  assert.match(pure.watchWords(b, [-1, -1]), /4 masks/);
  assert.match(pure.watchWords(b, [0, 0]), /every position is computed/);
  const second = pure.watchWords(b, [1, 1]);
  assert.match(
    second,
    /^The surest guess, 'a', is written\. Computed: 6 positions without a cache, 2 with d2Cache\./,
  );
  assert.match(
    pure.watchWords(b, [2, 2]),
    /^The surest guess, the end, is written, before what is on its left/,
  );
});

test("lanes that write different tokens are told together", () => {
  const other = [[[3, "b"]], [[4, "c"]], [[5, "<end>"]], [[2, "a"]]];
  assert.match(
    pure.watchWords(race(other), [1, 1]),
    /^Each writes its surest guess: 'a' and 'c'\./,
  );
});

test("the end says whether the answers are the same, by the tokens", () => {
  assert.match(pure.watchWords(race(), [3, 3]), /^The same answer for 42 % of the work/);
  const wrong = [[[3, "b"]], [[2, "x"]], [[5, "<end>"]], [[4, "c"]]];
  assert.match(pure.watchWords(race(wrong), [3, 3]), /^Another answer for 42 %/);
  const alone = board(lane(0, "d2", JUMPS, [6, 2, 1, 1]));
  assert.match(pure.watchWords(alone, [3]), /^Done, with 42 %/);
});

test("a mask shows the guess made last, as sure as it was then", () => {
  const run = "run-0",
    [start, first, second] = lane(
      0,
      "d2",
      [[], []],
      [6, 1],
      [{ c: b64([128, 0, 255, 0]) }, { c: b64([255, 0, 0, 0]) }],
    ),
    guesses = (s, ...g) => ({ k: "guesses", run, s, g });
  const [made] = board([
      start,
      first,
      guesses(0, [2, [["x", 0.5]]], [4, [["z", 1]]]),
      second,
      guesses(1, [2, [["y", 0.9]]]),
    ]).lanes,
    at = (p, s) => pure.guessAt(made, p, s);
  assert.equal(at(2, 0).text, "x");
  assert.equal(at(2, 1).text, "y");
  assert.equal(at(2, 5).text, "y");
  assert.equal(at(3, 1), null, "none was made there");
  assert.equal(at(4, 1).text, "z", "not computed again: the old guess stays");
  assert.equal(at(2, 1).conf, 1);
  assert.equal(at(4, 1).conf, 1);
  assert.ok(at(2, 0).conf > 0.4 && at(2, 0).conf < 0.6);
});
