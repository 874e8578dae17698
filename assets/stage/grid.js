/* An answer that is a grid, such as a Sudoku: which position is which cell, and what its cells hold.
 * Pure. The start event of a run has it, see analysis/page/grids.py: {rows, columns, box: [rows,
 * columns], blank, names, given: the position of each cell in the prompt, at: that of the first cell
 * in the answer}. Cells count in reading order. */
import { chipData, guessAt } from "./run.js";

const cellCount = ({ rows, columns }) => rows * columns;

// Whether position p is one of the answer's cells.
const isCell = (grid, p) => Boolean(grid) && p >= grid.at && p < grid.at + cellCount(grid);

// The cell at position p, of the answer or of the prompt; -1 where it is none.
function cellAt(grid, p) {
  if (!grid) return -1;
  return isCell(grid, p) ? p - grid.at : grid.given.indexOf(p);
}

const cellPlace = ({ columns }, i) =>
  `row ${Math.floor(i / columns) + 1}, column ${(i % columns) + 1}`;

// "row 3, column 5", of an answer's or a prompt's position; "" where it is no cell.
function gridPlace(grid, p) {
  const i = cellAt(grid, p);
  if (i < 0) return "";
  return `${cellPlace(grid, i)}${isCell(grid, p) ? "" : " of the prompt"}`;
}

// Answer positions that no cell shows: what is written after the grid.
const outsideGrid = (run) =>
  Array.from({ length: run.G }, (_, g) => run.P + g).filter((p) => !isCell(run.grid, p));

// What a cell's text is called: "wall", or the text itself.
const cellName = ({ names }, text) => (Object.hasOwn(names, text) ? names[text] : text);

// How cells are drawn that are no text, by what they are called: a mark, or nothing but a colour.
const DRAWN = { free: " ", wall: " ", path: "•", start: "S", goal: "G" };

// {text: what a cell shows, look: the name of how it is drawn, "" for plain text}.
function drawnCell(grid, text) {
  const look = cellName(grid, text);
  return Object.hasOwn(DRAWN, look) ? { text: DRAWN[look], look } : { text, look: "" };
}

const hasBoxes = ({ box: [rows, columns] }) => rows > 0 && columns > 0;

// What a cell shares with others: {row: 2, column: 4, box: 1}, without a box where there are none.
function linesOf(grid, i) {
  const row = Math.floor(i / grid.columns),
    column = i % grid.columns;
  if (!hasBoxes(grid)) return { row, column };
  const [tall, wide] = grid.box,
    across = Math.ceil(grid.columns / wide);
  return { row, column, box: Math.floor(row / tall) * across + Math.floor(column / wide) };
}

// The lines that two cells share: a list of "row", "column", "box".
function sharedLines(grid, i, k) {
  const [mine, its] = [linesOf(grid, i), linesOf(grid, k)];
  return Object.keys(mine).filter((name) => mine[name] === its[name]);
}

/* Cell i after step s: {i, p, given: its text in the prompt, null where it is blank there, write:
 * what the answer has there or null, text: what counts, eos, state, masked, guess}. */
function cellData(run, i, s) {
  const { grid } = run,
    p = grid.at + i,
    chip = chipData(run, p, s),
    asked = chipData(run, grid.given[i], s).text.trim(),
    given = asked === grid.blank ? null : asked,
    text = chip.write ? chip.text.trim() : (given ?? "");
  const guess = chip.masked && given === null ? guessAt(run, p, s) : null;
  return { ...chip, i, p, given, text, guess };
}

// Why written cells are wrong: Map(cell -> words). A rule is known where the grid has boxes: no text
// twice in a row, column or box. A cell that the prompt gives must stay as it is.
function wrongCells(grid, cells) {
  const out = new Map(),
    seen = new Map(); // "row 3 7" -> the cells with that text
  const named = (cell) => (cell.eos ? "end" : cell.text);
  for (const { i, write, given, text } of cells)
    if (write && given !== null && text !== given)
      out.set(i, `the puzzle gives ${cellName(grid, given)}`);
  if (!hasBoxes(grid)) return out;
  const keysOf = ({ i, text }) =>
    Object.entries(linesOf(grid, i)).map(([name, n]) => [name, `${name} ${n} ${text}`]);
  const shown = cells.filter(({ text }) => text !== "");
  for (const cell of shown)
    for (const [, key] of keysOf(cell)) seen.set(key, (seen.get(key) ?? 0) + 1);
  for (const cell of shown) {
    if (!cell.write || out.has(cell.i)) continue;
    const twice = keysOf(cell).find(([, key]) => seen.get(key) > 1);
    if (twice) out.set(cell.i, `another ${named(cell)} in its ${twice[0]}`);
  }
  return out;
}

const cellsOf = (run, s) =>
  Array.from({ length: cellCount(run.grid) }, (_, i) => cellData(run, i, s));

/* What cell i reads of each cell, by a map of attention with one row a position: its share of what
 * the cell reads of all others, in prompt and answer together. [shares], 0 for itself; null where
 * the map is too coarse, or the cell reads nothing. share(q, k): of the map, row q, column k. */
function readShares(grid, i, share) {
  const q = grid.at + i,
    parts = Array.from({ length: cellCount(grid) }, (_, k) =>
      k === i ? 0 : share(q, grid.at + k) + share(q, grid.given[k]),
    ),
    whole = parts.reduce((sum, part) => sum + part, 0);
  return whole > 0 ? parts.map((part) => part / whole) : null;
}

// How much of that goes to the cells of its row, column and box, and how much an even look would
// give them: {lines, even}, from 0 to 1.
function readInLines(grid, i, shares) {
  let lines = 0,
    many = 0;
  shares.forEach((share, k) => {
    if (k === i || !sharedLines(grid, i, k).length) return;
    lines += share;
    many++;
  });
  return { lines, even: many / (shares.length - 1) };
}

export {
  cellAt,
  cellCount,
  cellData,
  cellName,
  cellPlace,
  cellsOf,
  drawnCell,
  gridPlace,
  hasBoxes,
  isCell,
  outsideGrid,
  readInLines,
  readShares,
  sharedLines,
  wrongCells,
};
