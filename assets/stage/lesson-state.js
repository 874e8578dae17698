/* What a card of a lesson tests: the names that tests may use, and whether a test holds. Pure. */
import { EDIT, RUN_WORDS } from "./contract.js";
import { totalsAt, writeAt } from "./run.js";

const OPERATORS = {
  "=": (a, b) => a === b,
  "!=": (a, b) => a !== b,
  "<": (a, b) => a < b,
  "<=": (a, b) => a <= b,
  ">": (a, b) => a > b,
  ">=": (a, b) => a >= b,
};
const NEAR = 1e-9; // sums of shares are not exact
const SHARES = new Set(["hit_rate", "agreement"]);

const unknown = (x) => x === null || x === undefined || Number.isNaN(x);

// Whether a test of a card holds: alternatives, each a list of [name, operator, value]. What is
// not known yet fails every comparison.
function holds(until, state) {
  const one = ([name, operator, value]) => {
    const now = state[name];
    if (unknown(now)) return false;
    const same = typeof now === "number" && Math.abs(now - value) < NEAR;
    return OPERATORS[operator](same ? value : now, value);
  };
  return until.some((all) => all.every(one));
}

// Share of the answer positions written in either run that hold the same token in both; null: none.
function agreementOf(run, s, first, at) {
  if (!first || run.P !== first.P || run.G !== first.G) return null;
  let both = 0,
    same = 0;
  for (let p = run.P; p < run.T; p++) {
    const a = writeAt(run, p, s),
      b = writeAt(first, p, at);
    if ((!a && !b) || a?.given) continue;
    both++;
    if (a && b && a.text === b.text) same++;
  }
  return both ? same / both : null;
}

// Where the reader is; counted from 1, as on screen.
function readerState({ board, run, step, lane, tab, selected }) {
  const lanes = board?.lanes || [];
  return {
    step: step + 1,
    steps: run?.records.length ?? 0,
    lane: (lane ?? 0) + 1,
    lanes: lanes.length,
    branches: lanes.filter((l) => l.branch || l.start?.branch).length,
    tab: tab ?? null,
    clock: board?.clock ?? "step",
    selected: unknown(selected) || selected < run.P ? null : selected - run.P + 1,
  };
}

function statusOf(run) {
  if (!run?.key) return "empty";
  return run.status === "running" && run.paused ? "paused" : run.status;
}

// What the current run is, and how it has done up to the current step.
function runState(page) {
  const { board, run, step } = page,
    start = run?.start || {},
    totals = run?.key ? totalsAt(run, step) : null;
  return {
    status: statusOf(run),
    policy: start.policy ?? null,
    decoder: start.decoder ?? null,
    block: start.block_length ?? null,
    hit_rate: totals?.hit_rate ?? null,
    flops: totals?.flops_none ? totals.flops / totals.flops_none : null,
    agreement: run?.key ? agreementOf(run, step, board.lanes[0], page.stepOf(0)) : null,
  };
}

// The names that a test may use, as they are now; knobs by their owner: policy.kr.
function lessonState(page) {
  const state = { ...readerState(page), ...runState(page) },
    knobs = page.run?.start?.knobs;
  for (const owner of EDIT.owners)
    for (const [name, value] of Object.entries(knobs?.[owner] || {}))
      state[`${owner}.${name}`] = Number(value);
  return state;
}

function valueWords(name, value) {
  if (unknown(value)) return "not yet";
  if (SHARES.has(name)) return `${Math.round(100 * value)} %`;
  return typeof value === "number" ? String(Number(value.toFixed(2))) : value;
}

function nameWords(name, value) {
  if (name === "selected")
    return unknown(value) ? "no token pinned" : `answer position ${valueWords(name, value)}`;
  const short = name.replace("policy.", "").replace("decoder.", "").replaceAll("_", " ");
  return `${short} ${valueWords(name, value)}`;
}

// What the names of a test are now, in words: so that a reader sees how far it is.
const nowWords = (until, state) =>
  [...new Set(until.flat().map(([name]) => name))]
    .map((name) => nameWords(name, state[name]))
    .join(", ");

const runWords = (query) =>
  [...new URLSearchParams(query ?? "")].filter(([word]) => Object.hasOwn(RUN_WORDS, word));

// Whether two queries ask for the same runs, whatever they say of the view: a run that is on its way
// for another card is not taken for this one's.
const sameRuns = (a, b) => JSON.stringify(runWords(a)) === JSON.stringify(runWords(b));

// How many lanes a query asks for.
const lanesAsked = (query) => new URLSearchParams(query).getAll(RUN_WORDS.lane).length;

export { holds, agreementOf, lessonState, nowWords, sameRuns, lanesAsked };
