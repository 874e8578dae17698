// The board: lanes, their clocks, and where they differ.
import { test } from "node:test";
import assert from "node:assert/strict";
import { b64, plain, pure } from "./load.mjs";

const T = 6,
  P = 2,
  G = 4;
const start = (run, lane, more = {}) => ({
  k: "start",
  run,
  lane,
  board: "b",
  name: run,
  T,
  P,
  G,
  prompt: ["Q", ":"],
  policy: "none",
  ...more,
});
const record = (run, s, w = [], more = {}) => ({
  k: "rec",
  run,
  seq: s,
  s,
  ms: 10,
  rows: T,
  w: w.map(([p, text]) => [p, text, 0.5, []]),
  y: b64([1, 1, 1, 1, 1, 1]),
  ...more,
});
const totals = (run, s, flops) => ({ k: "totals", run, s, flops, flops_none: 2 * flops });
const end = (run, status = "done") => ({ k: "end", run, status, note: "" });
const board = (...events) => events.reduce(pure.applyToBoard, pure.emptyBoard());
// One run: what it writes in each step, and how long a step takes.
const lane = (run, i, writes, ms = 10, more = {}) => [
  start(run, i, more),
  ...writes.flatMap((w, s) => [record(run, s, w, { ms }), totals(run, s, ms * (s + 1))]),
  end(run),
];
const LEFT = [[[2, "a"]], [[3, "b"]], [[4, "c"]], [[5, "d"]]];
const OTHER = [[[2, "a"]], [[4, "c"]], [[3, "x"]], [[5, "d"]]];
const runs = (b) => plain(b.lanes.map((run) => run.key));

test("events of lanes may come mixed; each goes to its run, and those of strangers nowhere", () => {
  const [a, b] = [lane("a", 0, LEFT), lane("b", 1, OTHER, 5)];
  const mixed = [a[0], b[0]];
  for (let i = 1; i < Math.max(a.length, b.length); i++)
    mixed.push(...[a[i], b[i], record("c", i)].filter(Boolean));
  const seen = board(...mixed),
    apart = board(...a, ...b);
  assert.deepEqual(runs(seen), ["a", "b"]);
  assert.deepEqual(plain(seen.lanes.map((run) => [run.received, run.gaps, run.status, run.name])), [
    [4, 0, "done", "a"],
    [4, 0, "done", "b"],
  ]);
  assert.deepEqual(plain(seen.lanes), plain(apart.lanes));
});

test("a start joins its board, replaces the run of its lane, or begins another board and clears this one", () => {
  const two = board(...lane("a", 0, LEFT), ...lane("c", 2, LEFT), start("b", 1));
  assert.deepEqual(runs(two), ["a", "b", "c"]); // by lane, whatever came first
  assert.deepEqual(runs(pure.applyToBoard(two, start("b2", 1))), ["a", "b2", "c"]);
  const next = pure.applyToBoard(two, start("z", 0, { board: "other" }));
  assert.deepEqual([runs(next), next.key, next.lane], [["z"], "other", 0]);
  const alone = pure.applyToBoard(next, { ...start("y", 0), board: undefined });
  assert.deepEqual([runs(alone), alone.key], [["y"], "y"]); // no board: one of its own
  const held = board(start("a", 0), start("c", 2));
  held.lane = 1;
  assert.equal(pure.applyToBoard(held, start("b", 1)).lane, 2); // the lane in hand stays the same lane
});

test("a board that becomes the visitor's own keeps its lanes under other keys", () => {
  const b = board(...lane("a", 0, LEFT), ...lane("b", 1, LEFT)),
    { key } = b,
    runs = { a: "a2", b: "b2" };
  pure.applyToBoard(b, { k: "keys", board: "another", to: "mine", runs });
  assert.deepEqual([b.key, b.lanes[0].key], [key, "a"]);
  pure.applyToBoard(b, { k: "keys", board: key, to: "mine", runs });
  pure.applyToBoard(b, { k: "pause", run: "b2" });
  assert.deepEqual([b.key, b.lanes.map((one) => one.key)], ["mine", ["a2", "b2"]]);
  assert.equal(b.lanes[1].paused, true);
  pure.applyToBoard(b, start("c", 2, { board: "mine" }));
  assert.deepEqual(
    b.lanes.map((one) => one.key),
    ["a2", "b2", "c"],
  );
});

test("the clock of a board outlives it; unknown events change nothing; a link is kept", () => {
  const b = board(
    ...lane("a", 0, LEFT),
    { k: "weather", run: "a" },
    { k: "link", query: "lane=none" },
  );
  assert.equal(b.link, "lane=none");
  b.clock = "ms";
  const next = pure.applyToBoard(b, start("z", 0, { board: "other" }));
  assert.deepEqual([next.clock, next.link], ["ms", "lane=none"]); // it came just before
});

test("on steps all lanes stand at the same step, those that have ended at their last", () => {
  const b = board(...lane("a", 0, LEFT), ...lane("b", 1, LEFT.slice(0, 2)));
  assert.deepEqual(
    [-1, 0, 1, 3].map((m) => plain(pure.stepsAt(b, m))),
    [
      [-1, -1],
      [0, 0],
      [1, 1],
      [3, 1],
    ],
  );
  assert.equal(pure.lastMoment(b), 3);
});

test("on milliseconds and FLOPs a lane stands at the last step that it has finished by then", () => {
  for (const clock of ["ms", "flops"]) {
    const b = board(...lane("a", 0, LEFT, 10), ...lane("b", 1, LEFT, 4));
    b.clock = clock;
    assert.deepEqual(
      [0, 3.9, 4, 9.9, 10, 16, 40, 99].map((m) => plain(pure.stepsAt(b, m))),
      [
        [-1, -1],
        [-1, -1],
        [-1, 0],
        [-1, 1],
        [0, 1],
        [0, 3],
        [3, 3],
        [3, 3],
      ],
    );
    assert.equal(pure.lastMoment(b), 40);
    for (const i of [0, 1])
      for (let s = 0; s < 4; s++) assert.equal(pure.stepAt(b, i, pure.momentOf(b, i, s)), s);
    assert.equal(pure.momentOf(b, 0, -1), 0);
  }
});

test("a record that was lost takes no time; totals still on their way are waited for", () => {
  const b = board(start("a", 0), record("a", 0), totals("a", 0, 7), record("a", 2), record("a", 3));
  b.clock = "ms";
  assert.deepEqual(plain(pure.momentsOf(b.lanes[0], "ms")), [10, 10, 20, 30]);
  assert.deepEqual(plain(pure.momentsOf(b.lanes[0], "flops")), [7, 7]);
  pure.applyToBoard(b, totals("a", 2, 9));
  assert.deepEqual(plain(pure.momentsOf(b.lanes[0], "flops")), [7, 7, 9]);
});

test("a reader who follows is with the runs that go on, at the end when none does", () => {
  const b = board(...lane("a", 0, LEFT), start("b", 1));
  assert.equal(pure.liveMoment(b), -1);
  assert.equal(pure.liveMoment(pure.applyToBoard(b, record("b", 0))), 0);
  assert.equal(pure.liveMoment(pure.applyToBoard(b, end("b", "stopped"))), 3);
});

test("one step on: of the lane in hand; when it has ended, of the one that runs longest", () => {
  const b = board(...lane("a", 0, LEFT, 10), ...lane("b", 1, LEFT, 4));
  assert.equal(pure.nextMoment(b, 2, 1), 3);
  b.clock = "ms";
  assert.equal(pure.nextMoment(b, 0, 1), 10);
  b.lane = 1;
  assert.deepEqual(
    [0, 4, 12].map((m) => pure.nextMoment(b, m, 1)),
    [4, 8, 16],
  );
  assert.deepEqual([pure.nextMoment(b, 16, 1), pure.nextMoment(b, 30, 1)], [20, 40]);
  assert.deepEqual(
    [pure.nextMoment(b, 40, -1), pure.nextMoment(b, 16, -1), pure.nextMoment(b, 4, -1)],
    [30, 12, 0],
  );
});

test("a token differs where both lanes have one at their steps and it is another", () => {
  const b = board(...lane("a", 0, LEFT), ...lane("b", 1, OTHER));
  const at = (s) => [2, 3, 4, 5].filter((p) => pure.differs(b, 1, p, [s, s]));
  assert.deepEqual([0, 1, 2, 3].map(at), [[], [], [3], [3]]);
  assert.ok(!pure.differs(b, 0, 3, [3, 3]));
  assert.ok(!pure.differs(b, 1, 0, [3, 3])); // the prompt is given
});

test("places are matched by their place in the answer, where prompts differ in length", () => {
  const b = board(
    ...lane("a", 0, LEFT),
    ...lane(
      "b",
      1,
      OTHER.map((w) => w.map(([p, t]) => [p + 1, t])),
      10,
      { P: 3, T: 7 },
    ),
  );
  assert.deepEqual(
    [3, 4, 5, 6].filter((p) => pure.differs(b, 1, p, [3, 3])),
    [4],
  );
  assert.deepEqual(
    [0, 2, 3, 6].map((p) => pure.placeIn(b.lanes[1], b.lanes[0], p)),
    [0, null, 2, 5],
  );
  assert.equal(pure.firstDivergence(b, 1), 1);
});

test("lanes part at the first step whose writes differ, in place or in text; never the first from itself", () => {
  const parts = (writes) =>
    pure.firstDivergence(board(...lane("a", 0, LEFT), ...lane("b", 1, writes)), 1);
  assert.equal(parts(LEFT), null);
  assert.equal(parts(OTHER), 1);
  assert.equal(parts([...LEFT.slice(0, 3), [[5, "e"]]]), 3);
  assert.equal(parts(LEFT.slice(0, 3)), 3); // it has ended, the first went on
  assert.equal(parts([[], ...LEFT]), 0);
  const together = [
      [
        [2, "a"],
        [3, "b"],
      ],
    ],
    turned = [
      [
        [3, "b"],
        [2, "a"],
      ],
    ];
  assert.equal(
    pure.firstDivergence(board(...lane("a", 0, together), ...lane("b", 1, turned)), 1),
    null,
  );
  assert.equal(pure.firstDivergence(board(...lane("a", 0, OTHER)), 0), null);
});

test("where they part is known as soon as both have made the step, and no sooner", () => {
  const b = board(...lane("a", 0, LEFT), start("b", 1));
  const later = (...events) => {
    events.reduce(pure.applyToBoard, b);
    return pure.firstDivergence(b, 1);
  };
  assert.equal(later(), null);
  assert.equal(later(record("b", 0, [[2, "a"]])), null);
  assert.equal(later(record("b", 1, [[4, "c"]])), 1);
  assert.equal(later(start("b2", 1), record("b2", 0, [[2, "z"]])), 0); // another run in its place
  const masked = board(
    ...lane("a", 0, LEFT),
    start("b", 1),
    record("b", 0, [[2, "a"]]),
    record("b", 1, [[3, "b"]], { m: [2] }),
  );
  assert.equal(pure.firstDivergence(masked, 1), 1);
});

test("the next difference is that of the lane in hand, or of any other for the first", () => {
  const b = board(
    ...lane("a", 0, LEFT),
    ...lane("b", 1, OTHER),
    ...lane("c", 2, [...LEFT.slice(0, 3), [[5, "e"]]]),
  );
  assert.deepEqual(
    [-1, 1, 2, 3].map((s) => pure.nextDifference(b, s)),
    [1, 2, 3, null],
  );
  b.lane = 2;
  assert.deepEqual(
    [-1, 2, 3].map((s) => pure.nextDifference(b, s)),
    [3, 3, null],
  );
});

test("differences at a moment: tokens that are others, and places written at another step", () => {
  const b = board(...lane("a", 0, LEFT), ...lane("b", 1, OTHER));
  assert.deepEqual(
    [1, 3].map((s) => plain(pure.differencesAt(b, 1, [s, s]))),
    [
      { tokens: 0, order: 0 },
      { tokens: 1, order: 2 },
    ],
  );
  assert.match(
    pure.differenceWords(b, 1, [3, 3]),
    /^Leaves lane 1 at step 2\. Here 1 token differs \(≠\), 2 were written at another step\.$/,
  );
});

test("the race: who has written how much by this moment, who has finished when, who leads", () => {
  const b = board(
    ...lane("a", 0, LEFT, 10),
    ...lane("b", 1, LEFT, 4),
    start("c", 2),
    record(
      "c",
      0,
      [
        [2, "a"],
        [3, "b"],
      ],
      { ms: 3 },
    ),
  );
  b.clock = "ms";
  const at = (m) => plain(pure.raceAt(b, m));
  assert.deepEqual(at(0).leads, []);
  assert.deepEqual(
    at(3).lanes.map((x) => [x.written, x.of, x.finished]),
    [
      [0, 4, null],
      [0, 4, null],
      [2, 4, null],
    ],
  );
  assert.deepEqual([at(3).leads, at(8).leads, at(12).leads], [[2], [1, 2], [1]]);
  assert.deepEqual([at(16).over, at(16).leads, at(16).lanes[1].finished], [true, [1], 16]);
  assert.deepEqual([at(40).leads, at(40).lanes.map((x) => x.finished)], [[1], [40, 16, null]]); // ahead stays ahead
  assert.match(
    pure.raceWords(b, at(12), 12),
    /^12 ms after the start: lane 2 leads with 3 tokens\.$/,
  );
  assert.match(pure.raceWords(b, at(40), 40), /: lane 2 finished first, at 16 ms\.$/);
  const progress = (m) => [0, 1, 2].map((i) => pure.progressWords(b, at(m), i));
  assert.equal(progress(3)[2], "2 of 4 positions written · leads");
  assert.deepEqual(progress(16).slice(0, 2), [
    "1 of 4 positions written",
    "4 of 4 positions written, finished at 16 ms · first",
  ]);
  const stopped = pure.applyToBoard(
    board(start("a", 0), record("a", 0, [[2, "a"]])),
    end("a", "stopped"),
  );
  assert.deepEqual(plain(pure.raceAt(stopped, 0)).over, false); // to stop is not to win
});

test("filled places are counted once however often they are written, and again after a mask", () => {
  const b = board(
    start("a", 0),
    record("a", 0, [
      [2, "a"],
      [3, "b"],
    ]),
    record("a", 1, [[2, "z"]], { m: [3] }),
    record("a", 2, [
      [3, "c"],
      [0, "Q!"],
    ]),
  );
  assert.deepEqual(
    [-1, 0, 1, 2, 9].map((s) => pure.filledAt(b.lanes[0], s)),
    [0, 2, 1, 2, 2],
  );
  assert.equal(pure.chipData(b.lanes[0], 0, 1).text, "Q");
  assert.equal(pure.chipData(b.lanes[0], 0, 2).text, "Q!"); // an edit may change the prompt
});

test("parts unpack to layers x positions; layers are counted where the MLP was computed", () => {
  const a = b64([15, 3, 0, 3, 3, 6]),
    b = board(
      start("a", 0, { layers: 2, by_layer: true }),
      record("a", 0, [], { a }),
      record("a", 1),
    );
  const [first, second] = b.lanes[0].records;
  assert.deepEqual(Array.from(first.parts), [15, 15, 15, 0, 0, 0, 3, 3, 3, 3, 3, 3]);
  assert.deepEqual(Array.from(first.l), [1, 1, 1, 0, 0, 0]);
  assert.deepEqual([second.parts, second.l], [null, null]);
  const long = board(
    start("a", 0, { layers: 2 }),
    ...Array.from({ length: 200 }, (_, s) => record("a", s, [], { a: b64([s, 12]) })),
  );
  assert.ok(
    long.lanes[0].records.every((r) => r.parts[11] === r.s) &&
      long.lanes[0].records[0].parts[0] === 0,
  ); // kept or unpacked anew
});

test("what an exact pass says joins the record of its step", () => {
  const truth = {
    k: "truth",
    run: "a",
    s: 1,
    kd: b64([0, 255, 0, 0, 0, 0]),
    vd: null,
    kl: b64([0, 1, 2, 3]),
    flips: [3],
    oracle: [4, 5],
    recall: 0.5,
  };
  const b = board(start("a", 0), record("a", 0), record("a", 1), truth, { ...truth, s: 7 });
  assert.equal(b.lanes[0].records[0].truth, null);
  const { kd, vd, flips, recall } = b.lanes[0].records[1].truth;
  assert.deepEqual(
    [pure.drift(kd[1]), pure.drift(kd[0]), vd, plain(flips), recall],
    [2, 0, null, [3], 0.5],
  );
  assert.equal(b.lanes[0].truth, true);
  assert.equal(pure.divergence(255), 16);
});

test("moments in words", () => {
  const { momentText: say } = pure;
  assert.deepEqual(
    [say("step", 11), say("ms", 72.44), say("ms", 812.3), say("ms", 12345)],
    ["step 12", "72.4 ms", "812 ms", "12.3 s"],
  );
  assert.deepEqual(
    [say("flops", 12), say("flops", 1.234e9), say("flops", 5e12)],
    ["12 FLOPs", "1.23 GFLOPs", "5 TFLOPs"],
  );
});

test("lanes with nothing in common are said to have nothing in common", () => {
  const b = board(...lane("a", 0, [[[2, "x"]]]), start("b", 1), record("b", 0, [[4, "z"]]));
  assert.match(
    pure.differenceWords(b, 1, [0, 0]),
    /Here they have written no position in common\.$/,
  );
});

test("what the server says about a board: it waits, it is refused, its lanes are renamed", () => {
  const b = board(...lane("a", 0, LEFT));
  pure.applyToBoard(b, { k: "wait", says: "Waiting: 1 run is ahead of yours." });
  assert.equal(b.wait, "Waiting: 1 run is ahead of yours.");
  pure.applyToBoard(b, { k: "wait", says: "" });
  assert.equal(b.wait, "");
  pure.applyToBoard(b, { k: "share", says: "This run takes turns with 1 other." });
  assert.equal(b.share, "This run takes turns with 1 other.");
  pure.applyToBoard(b, { k: "refused", says: "No." });
  assert.equal(b.refused, "No.");
  pure.applyToBoard(b, { k: "names", names: { a: "d2 current_k=4" } });
  assert.equal(b.lanes[0].name, "d2 current_k=4");
});

test("a character of several tokens is whole from the step that completes it", () => {
  const b = board(
    start("a", 0),
    record("a", 0, [[3, "\ufffd"]]),
    record("a", 1, [[2, "你"]], { j: [[3, ""]] }),
    record("a", 2, [], { m: [2], j: [[3, "\ufffd"]] }),
  );
  const shown = [0, 1, 2].map((s) => [2, 3].map((p) => pure.chipData(b.lanes[0], p, s).text));
  assert.deepEqual(shown, [
    ["", "\ufffd"],
    ["你", ""],
    ["", "\ufffd"],
  ]);
});
