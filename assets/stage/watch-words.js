/* What the tab Watch says about a moment of the board, for readers who have never heard of any of
 * this. Pure. */
import { cellName, gridPlace, isCell } from "./grid.js";
import { rowsUpTo, writeAt } from "./run.js";
import { quoted, tokenName } from "./sentences.js";

const count = (n) => String(Math.round(n));

// What a run without a cache computes in all the steps that lane 1 takes: the whole of the meters.
const wholeWork = (board) =>
  Math.max(1, board.lanes[0].expected * Math.max(...board.lanes.map((run) => run.T)));

// Where lane i is after step s: {done: its steps are all shown, work: share of the whole}.
function progressAt(board, i, s) {
  const run = board.lanes[i];
  return {
    done: run.status !== "running" && s >= run.records.length - 1,
    work: rowsUpTo(run, s).rows / wholeWork(board),
  };
}

const answerOf = (run) =>
  Array.from({ length: run.G }, (_, g) => writeAt(run, run.P + g, run.records.length)?.text ?? "")
    .filter((text) => !run.eos.has(text))
    .join("");

// Whether the token at p was written while a position left of it was masked.
function outOfTurn(run, p, s) {
  for (let q = run.P; q < p; q++) if (!writeAt(run, q, s)) return true;
  return false;
}

const tokenWords = (run, text) => (run.eos.has(text) ? "the end" : quoted(text.trim() || text));

// "7 in row 3, column 5"
const cellToken = (run, p, text) =>
  `${cellName(run.grid, tokenName(run, text).trim())} in ${gridPlace(run.grid, p)}`;

const writtenIn = (run, s) => (run.records[s]?.w ?? []).filter(([p]) => p >= run.P);

function wroteWords(run, s) {
  const written = writtenIn(run, s);
  if (!written.length) return "Nothing is written";
  if (written.length > 1) return `${written.length} tokens are written at once`;
  const [[p, text]] = written;
  if (isCell(run.grid, p)) return `The surest cell is written: ${cellToken(run, p, text)}`;
  const before = outOfTurn(run, p, s) ? ", before what is on its left" : "";
  return `The surest guess, ${tokenWords(run, text)}, is written${before}`;
}

// What the first two lanes write in the current step: one sentence where it is the same, or where
// one of them writes nothing or several tokens; else both tokens.
function wroteTogether(board, steps) {
  const two = board.lanes.slice(0, 2).map((run, i) => ({ run, s: steps[i] })),
    writes = two.map(({ run, s }) => writtenIn(run, s)),
    [[p, text] = [], [q, other] = []] = writes.map(([first]) => first ?? []);
  if (two.length === 2 && writes.every((w) => w.length === 1) && (p !== q || text !== other)) {
    if (isCell(two[0].run.grid, p) && isCell(two[1].run.grid, q)) {
      const [mine, its] = [cellToken(two[0].run, p, text), cellToken(two[1].run, q, other)];
      return `Each writes its surest cell: ${mine}; ${its}`;
    }
    const [mine, its] = [tokenWords(two[0].run, text), tokenWords(two[1].run, other)];
    return `Each writes its surest guess: ${mine} and ${its}`;
  }
  const { run, s } =
    two[
      Math.max(
        0,
        writes.findIndex((w) => w.length),
      )
    ];
  return wroteWords(run, s);
}

// Who computes how much in this step: "52 positions without a cache, 15 with d2Cache".
function computedWords(board, steps) {
  const parts = board.lanes.slice(0, 2).map((run, i) => {
    const record = run.records[steps[i]],
      who = run.start.policy === "none" ? "without a cache" : `with ${run.title}`;
    return record && `${count(record.rows)}${i ? "" : " positions"} ${who}`;
  });
  return `Computed: ${parts.filter(Boolean).join(", ")}`;
}

function endWords(board) {
  const [first, other] = board.lanes,
    workOf = (run) => progressAt(board, board.lanes.indexOf(run), Infinity).work,
    share = (run) => `${Math.round(100 * workOf(run))} %`;
  if (!other) return `Done, with ${share(first)} of the work of a run without a cache.`;
  const same = answerOf(first) === answerOf(other);
  return `${same ? "The same answer" : "Another answer"} for ${share(other)} of the work.`;
}

// One sentence about the current step.
function watchWords(board, steps) {
  const [run] = board.lanes,
    s = Math.max(...steps);
  if (s < 0 && run.grid)
    return "Every cell of the answer is masked. The model fills in the board, the surest cell first.";
  if (s < 0 && run.gapped)
    return `What is missing in the text is masked. The model fills in ${run.blank} masks.`;
  if (s < 0) return `Every word of the answer is masked. The model fills in ${run.G} masks.`;
  if (board.lanes.every((_, i) => progressAt(board, i, steps[i]).done)) return endWords(board);
  if (s === 0) return `First every position is computed, and the surest guess is written.`;
  return `${wroteTogether(board, steps)}. ${computedWords(board, steps)}.`;
}

export { progressAt, watchWords };
