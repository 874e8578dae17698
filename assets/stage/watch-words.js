/* What the tab Watch says about a moment of the board, for readers who have never heard of any of
 * this. Pure. */
import { writeAt } from "./run.js";
import { quoted } from "./sentences.js";

const count = (n) => String(Math.round(n));

// Positions computed up to step s, a position of a layer-by-layer policy counting in part.
const workUpTo = (run, s) =>
  run.records.slice(0, s + 1).reduce((sum, record) => sum + (record?.rows ?? 0), 0);

// What a run without a cache computes in all the steps that lane 1 takes: the whole of the meters.
const wholeWork = (board) =>
  Math.max(1, board.lanes[0].expected * Math.max(...board.lanes.map((run) => run.T)));

// Where lane i is after step s: {done: its steps are all shown, work: share of the whole}.
function progressAt(board, i, s) {
  const run = board.lanes[i];
  return {
    done: run.status !== "running" && s >= run.records.length - 1,
    work: workUpTo(run, s) / wholeWork(board),
  };
}

const answerOf = (run) =>
  Array.from({ length: run.G }, (_, g) => writeAt(run, run.P + g, run.records.length)?.text)
    .map((text) => (run.eos.has(text) ? null : (text ?? null)))
    .filter((text) => text !== null)
    .join("");

// Whether the token at p was written while a position left of it was masked.
function outOfTurn(run, p, s) {
  for (let q = run.P; q < p; q++) if (!writeAt(run, q, s)) return true;
  return false;
}

const tokenWords = (run, text) => (run.eos.has(text) ? "the end" : quoted(text.trim() || text));

const writtenIn = (run, s) => (run.records[s]?.w ?? []).filter(([p]) => p >= run.P);

function wroteWords(run, s) {
  const written = writtenIn(run, s);
  if (!written.length) return "Nothing is written";
  if (written.length > 1) return `${written.length} tokens are written at once`;
  const [[p, text]] = written,
    before = outOfTurn(run, p, s) ? ", before what is on its left" : "";
  return `The surest guess, ${tokenWords(run, text)}, is written${before}`;
}

// What the first two lanes write in the step on view: told together only where they agree.
function wroteTogether(board, steps) {
  const [[a, s], [b, t] = []] = board.lanes.slice(0, 2).map((run, i) => [run, steps[i]]),
    [mine, its] = [writtenIn(a, s), b ? writtenIn(b, t) : []];
  if (mine.length !== 1 || its.length !== 1)
    return wroteWords(mine.length || !b ? a : b, mine.length || !b ? s : t);
  if (mine[0][0] === its[0][0] && mine[0][1] === its[0][1]) return wroteWords(a, s);
  return `Each writes its surest guess: ${tokenWords(a, mine[0][1])} and ${tokenWords(b, its[0][1])}`;
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

// One sentence about the step on view.
function watchWords(board, steps) {
  const [run] = board.lanes,
    s = Math.max(...steps);
  if (s < 0) return `Every word of the answer is masked. The model fills in ${run.G} masks.`;
  if (board.lanes.every((_, i) => progressAt(board, i, steps[i]).done)) return endWords(board);
  if (s === 0) return `First every position is computed, and the surest guess is written.`;
  return `${wroteTogether(board, steps)}. ${computedWords(board, steps)}.`;
}

export { progressAt, watchWords };
