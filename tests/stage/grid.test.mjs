// A grid of cells: which position is which cell, what is wrong in it, and what is said about it.
import { test } from "node:test";
import assert from "node:assert/strict";
import { b64, pure } from "./load.mjs";

// A puzzle of 4 x 4 cells in boxes of 2 x 2: prompt positions 2..17, answer positions 19..34, and
// one position after the grid.
const GIVEN = "1000002003000004",
  SOLVED = "1243342143122134",
  P = 19,
  G = 17;
const GRID = {
  rows: 4,
  columns: 4,
  box: [2, 2],
  blank: "0",
  names: {},
  given: Array.from({ length: 16 }, (_, i) => i + 2),
  at: P,
};
const NOBODY = [];

// writes[s]: [cell, text] written in step s
function solved(writes, more = {}) {
  const start = {
      k: "start",
      run: "r",
      T: P + G,
      P,
      G,
      prompt: ["Q:", " Sudoku:", ` ${GIVEN[0]}`, ...GIVEN.slice(1), "\nA:"],
      grid: GRID,
      eos: ["<end>"],
      policy: "none",
      steps: G,
      ...more,
    },
    records = writes.map((list, s) => ({
      k: "rec",
      run: "r",
      seq: s,
      s,
      rows: P + G,
      w: list.map(([i, text]) => [P + i, text, 0.93, []]),
      y: b64(new Array(P + G).fill(8)),
    })),
    guesses = { k: "guesses", run: "r", s: 0, g: [[P + 1, [["2", 0.7]]]] };
  return [start, ...records, guesses].reduce(pure.applyEvent, pure.emptyRun());
}
const wrongIn = (run, s) => pure.wrongCells(run.grid, pure.cellsOf(run, s));

test("a cell has one position in the answer and one in the prompt, and is named by both", () => {
  const run = solved(NOBODY);
  assert.equal(pure.cellAt(GRID, P + 6), 6);
  assert.equal(pure.cellAt(GRID, 2 + 6), 6);
  assert.equal(pure.cellAt(GRID, 1), -1);
  assert.equal(pure.cellAt(null, P), -1);
  assert.equal(pure.placeOf(run, P + 6), "row 2, column 3");
  assert.equal(pure.placeOf(run, 2 + 6), "row 2, column 3 of the prompt");
  assert.equal(pure.placeOf(run, P + 16), "answer position 17");
  assert.equal(pure.placeOf({ ...run, grid: null }, P + 6), "answer position 7");
  assert.deepEqual(pure.outsideGrid(run), [P + 16]);
  assert.equal(pure.outsideGrid({ ...run, grid: null }).length, G);
});

test("a cell holds what is given, then what is written, else a guess", () => {
  const run = solved([[[2, "4"]], [[0, " 1"]]]),
    at = (i, s) => pure.cellData(run, i, s);
  assert.equal(at(0, -1).given, "1", "the first token has a space before it");
  assert.deepEqual([at(0, -1).text, at(0, -1).guess], ["1", null]);
  assert.equal(at(1, 0).given, null);
  assert.equal(at(1, 0).guess.text, "2");
  assert.equal(at(2, -1).text, "");
  assert.deepEqual([at(2, 0).text, at(2, 0).state], ["4", "now"]);
  assert.equal(at(2, 1).state, "settled");
});

test("a solved puzzle has nothing wrong, at any step", () => {
  const run = solved([...SOLVED].map((text, i) => [[i, text]]));
  for (let s = -1; s < 16; s++) assert.equal(wrongIn(run, s).size, 0);
});

test("written cells are wrong where a row, column or box has their text twice", () => {
  const row = wrongIn(solved([[[3, "1"]]]), 0);
  assert.deepEqual([...row], [[3, "another 1 in its row"]]); // the given 1 is not marked
  assert.match(wrongIn(solved([[[12, "1"]]]), 0).get(12), /column/);
  assert.match(wrongIn(solved([[[5, "1"]]]), 0).get(5), /box/);
  const both = wrongIn(solved([[[1, "4"]], [[2, "4"]]]), 1);
  assert.deepEqual([...both.keys()], [1, 2]);
  assert.equal(wrongIn(solved([[[1, "4"]], [[2, "4"]]]), 0).size, 0, "not before it is there");
});

test("a cell that the puzzle gives must stay; without boxes that is the only rule", () => {
  assert.equal(wrongIn(solved([[[0, "2"]]]), 0).get(0), "the puzzle gives 1");
  const free = solved([[[3, "1"]], [[0, "2"]]], { grid: { ...GRID, box: [0, 0] } });
  assert.deepEqual([...wrongIn(free, 1).keys()], [0]);
});

test("the words of a cell say its place, text, step and confidence", () => {
  const run = solved([[[2, "4"]], [[3, "1"]]]),
    say = (i, s, wrong) => pure.cellWords(run, pure.cellData(run, i, s), wrong);
  assert.equal(say(2, 1), "row 1, column 3: 4, written in step 1, confidence 0.93");
  assert.equal(say(0, 1), "row 1, column 1: 1, given");
  assert.equal(say(4, 1), "row 2, column 1: blank");
  assert.equal(say(1, 0).startsWith("row 1, column 2: blank, the model's guess is 2"), true);
  assert.match(say(3, 1, wrongIn(run, 1).get(3)), /wrong: another 1 in its row$/);
  const maze = solved([[[2, "4"]]], { grid: { ...GRID, names: { 1: "wall", 4: "path" } } });
  assert.match(pure.cellWords(maze, pure.cellData(maze, 2, 0)), /^row 1, column 3: path, written/);
  assert.match(pure.cellWords(maze, pure.cellData(maze, 0, 0)), /: wall, given$/);
});

test("arrow keys walk the grid and stop at its edges", () => {
  assert.equal(pure.nextCell(GRID, 5, "ArrowDown"), 9);
  assert.equal(pure.nextCell(GRID, 5, "ArrowLeft"), 4);
  for (const [i, key] of [
    [3, "ArrowRight"],
    [4, "ArrowLeft"],
    [1, "ArrowUp"],
    [14, "ArrowDown"],
  ])
    assert.equal(pure.nextCell(GRID, i, key), null);
  assert.equal(pure.nextCell(GRID, 5, "Home"), undefined);
});

test("what a cell reads is a share of what it reads of the other cells, prompt and answer", () => {
  const even = pure.readShares(GRID, 5, () => 0.1);
  assert.equal(even[5], 0);
  assert.ok(Math.abs(even.reduce((a, b) => a + b) - 1) < 1e-9);
  const plain = pure.readInLines(GRID, 5, even);
  assert.ok(Math.abs(plain.lines - 7 / 15) < 1e-9 && Math.abs(plain.even - 7 / 15) < 1e-9);
  // all of it from the prompt's cell at the other end of its row
  const row = pure.readShares(GRID, 5, (q, k) => Number(q === P + 5 && k === GRID.given[7]));
  assert.equal(row[7], 1);
  assert.equal(pure.readInLines(GRID, 5, row).lines, 1);
  assert.equal(
    pure.readShares(GRID, 5, () => 0),
    null,
  );
  assert.match(pure.heatWords(GRID, 5, row), /^Row 2, column 2: 100.0 % of what it reads .* 47 %/);
});

test("sentences speak of cells, and the line of the prompt does not repeat them", () => {
  const run = solved([[[2, "4"]], [[1, "2"]]]);
  assert.equal(pure.askedText(run), "Sudoku: 4 of 16 cells are given");
  assert.equal(pure.askedText({ ...run, grid: null }), pure.promptText(run));
  const board = { ...pure.emptyBoard(), lanes: [run] };
  assert.match(pure.watchWords(board, [-1]), /^Every cell of the answer is masked/);
  assert.match(
    pure.watchWords(board, [1]),
    /^The surest cell is written: 2 in row 1, column 2\. Computed/,
  );
});

test("several cells of a step are named by their places", () => {
  const run = solved([
    [
      [2, "4"],
      [1, "2"],
    ],
  ]);
  assert.match(
    pure.explain(run.records[0], run, 0),
    /wrote 2 tokens: '2' \(row 1, column 2\), '4' \(row 1, column 3\)\.$/,
  );
});

test("cells with a name are drawn, others are written", () => {
  const grid = { ...GRID, names: { 1: "wall", 4: "path", 7: "tree" } };
  assert.deepEqual(pure.drawnCell(grid, "1"), { text: " ", look: "wall" });
  assert.deepEqual(pure.drawnCell(grid, "4"), { text: "•", look: "path" });
  assert.deepEqual(pure.drawnCell(grid, "7"), { text: "7", look: "" });
  assert.deepEqual(pure.drawnCell(GRID, "1"), { text: "1", look: "" });
});

test("a film has the cells of a grid in rows, and what follows below", () => {
  const run = solved(NOBODY),
    { places, lines } = pure.laidOut(run, new Array(G).fill(20));
  for (let i = 0; i < 16; i++) {
    if (i % 4) assert.ok(places[i][0] > places[i - 1][0] && places[i][1] === places[i - 1][1]);
    if (i >= 4) assert.ok(places[i][1] > places[i - 4][1] && places[i][0] === places[i - 4][0]);
  }
  assert.ok(places[16][1] >= places[15][1] + 1 && lines >= places[16][1] + 1);
});
