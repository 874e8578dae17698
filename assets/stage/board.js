/* The board: up to six runs of one prompt, its lanes, under one clock. Pure.
 *
 * A moment is a value of the clock: a step, measured milliseconds, or FLOPs since each run began.
 * Lane 0 is what the others are compared with. */
import { applyEvent, emptyRun, filledAt, writeAt } from "./run.js";

const emptyBoard = (clock = "step") => ({
  key: null,
  lanes: [],
  clock,
  lane: 0,
  link: null,
  wait: "", // for the engine: what the server says about it
  share: "", // why its runs are slow: others take turns with them
  refused: "", // why the last request was refused
  results: [], // of the lanes, when all have ended
});

// The board after one event. A start with another board's key begins a new one.
function applyToBoard(board, ev) {
  if (ev.k === "start") return addLane(board, ev);
  if (ev.k === "link") board.link = ev.query;
  else if (ev.k === "keys") renameKeys(board, ev);
  else if (ev.k === "wait") board.wait = ev.says;
  else if (ev.k === "share") board.share = ev.says;
  else if (ev.k === "refused") board.refused = ev.says;
  else if (ev.k === "results") board.results = ev.rows;
  else if (ev.k === "names") renameLanes(board, ev.names);
  else {
    const run = board.lanes.find((one) => one.key === ev.run);
    if (run) applyEvent(run, ev);
  }
  return board;
}

// A board that everybody has becomes the visitor's own.
function renameKeys(board, { board: key, to, runs }) {
  if (board.key !== key) return;
  board.key = to;
  for (const run of board.lanes) run.key = runs[run.key] ?? run.key;
}

// What distinguishes the lanes changes with each new one.
function renameLanes(board, names) {
  for (const run of board.lanes) run.name = names[run.key] ?? run.name;
}

function addLane(board, ev) {
  const key = ev.board ?? ev.run,
    run = applyEvent(emptyRun(), ev);
  if (board.key !== key) {
    const { clock, link } = board; // a board's link comes before its first lane
    return { ...emptyBoard(clock), key, link, lanes: [run] };
  }
  const on = board.lanes[board.lane],
    others = board.lanes.filter((other) => other.lane !== run.lane && other.key !== run.key);
  board.results = [];
  board.lanes = [...others, run].sort((a, b) => a.lane - b.lane);
  board.lane = Math.max(
    0,
    board.lanes.findIndex((other) => other.lane === on.lane),
  );
  return board;
}

const boardFrom = (board, text) =>
  text ? JSON.parse(text).events.reduce(applyToBoard, board) : board;

// ---- clocks

// When each step of a run was done; known as far as the records go.
function momentsOf(run, clock) {
  const list = run.clocks[clock];
  for (let s = list.length; s < run.records.length; s++) {
    const record = run.records[s],
      before = list[s - 1] ?? 0;
    if (clock === "flops" && record && !record.totals) break; // its totals are still to come
    list.push(!record ? before : clock === "ms" ? before + (record.ms || 0) : record.totals.flops);
  }
  return list;
}

// The moment at which lane i had done step s; 0 on a clock that starts before the first step.
function momentOf(board, i, s) {
  if (board.clock === "step") return s;
  const list = momentsOf(board.lanes[i], board.clock);
  return s < 0 ? 0 : (list[Math.min(s, list.length - 1)] ?? 0);
}

function stepAt(board, i, moment) {
  const run = board.lanes[i],
    last = run.records.length - 1;
  if (board.clock === "step") return Math.min(Math.floor(moment), last);
  const list = momentsOf(run, board.clock);
  let lo = 0,
    hi = list.length; // the number of steps finished by then
  while (lo < hi) {
    const mid = (lo + hi) >> 1;
    if (list[mid] <= moment) lo = mid + 1;
    else hi = mid;
  }
  return lo - 1;
}

const stepsAt = (board, moment) => board.lanes.map((_, i) => stepAt(board, i, moment));

const endOf = (board, i) => momentOf(board, i, board.lanes[i].records.length - 1);
const lastMoment = (board) =>
  board.lanes.reduce(
    (most, _, i) => Math.max(most, endOf(board, i)),
    board.clock === "step" ? -1 : 0,
  );

// Where a reader who follows the runs is: as far as the runs that still go, else at the very end.
function liveMoment(board) {
  const going = board.lanes.flatMap((run, i) =>
    run.status === "running" ? [endOf(board, i)] : [],
  );
  return going.length ? Math.max(...going) : lastMoment(board);
}

// The next moment at which the current lane makes a step; after its end, the longest lane does.
function nextMoment(board, moment, by) {
  if (board.clock === "step") return moment + by;
  const within = (i) => (by > 0 ? moment < endOf(board, i) : moment <= endOf(board, i));
  const longest = board.lanes.reduce(
    (best, _, i) => (endOf(board, i) > endOf(board, best) ? i : best),
    0,
  );
  const i = within(board.lane) ? board.lane : longest;
  return momentOf(board, i, stepAt(board, i, moment) + by);
}

// ---- differences from the first lane

// The same place in another lane, by its place in the answer; null where it has none.
function placeIn(from, to, p) {
  const q = p < from.P ? p : p - from.P + to.P;
  return q < to.T && p < from.P === q < to.P ? q : null;
}

// Whether both lanes have a token at position p of lane i at these steps, and not the same token.
function differs(board, i, p, steps) {
  const run = board.lanes[i],
    first = board.lanes[0];
  if (i === 0 || p < run.P) return false;
  const q = placeIn(run, first, p),
    mine = writeAt(run, p, steps[i]),
    its = q === null ? null : writeAt(first, q, steps[0]);
  return Boolean(mine && its && mine.text !== its.text);
}

const changesIn = (run, s) =>
  run.records[s]
    ? [
        ...run.records[s].w.map(([p, text]) => `${p - run.P} ${text}`),
        ...run.records[s].m.map((p) => `${p - run.P}`),
      ]
        .sort()
        .join("\n")
    : null;

// Whether this step changed the canvas of lane i in another way than lane 0. null: not known yet.
function stepDiffers(board, i, s) {
  const ended = (run) => run.status !== "running" && s >= run.records.length;
  const [a, b] = [board.lanes[0], board.lanes[i]].map((run) =>
    ended(run) ? "" : changesIn(run, s),
  );
  return a === null || b === null ? null : a !== b;
}

const seenIn = new WeakMap(); // lane -> {of, s, at}: the search goes on where it stopped

// The first step whose changes differ from those in lane 0; null when there is none so far.
function firstDivergence(board, i) {
  const run = board.lanes[i],
    first = board.lanes[0];
  if (!i || !run) return null;
  let seen = seenIn.get(run);
  if (!seen || seen.of !== first) seenIn.set(run, (seen = { of: first, s: 0, at: null }));
  const end = Math.max(run.records.length, first.records.length);
  for (; seen.at === null && seen.s < end; seen.s++) {
    const other = stepDiffers(board, i, seen.s),
      toCome = [run, first].some((one) => seen.s >= one.records.length);
    if (other) seen.at = seen.s;
    else if (other === null && toCome) break; // a lost record is passed over
  }
  return seen.at;
}

// The first step after s at which one of these lanes differs from lane 0; null when there is none.
function nextDifference(board, s) {
  const lanes = board.lane ? [board.lane] : board.lanes.map((_, i) => i).slice(1);
  const end = Math.max(0, ...board.lanes.map((run) => run.records.length));
  for (let next = s + 1; next < end; next++)
    if (lanes.some((i) => stepDiffers(board, i, next))) return next;
  return null;
}

// Whether lanes i and 0 have both written some position at these steps.
function meets(board, i, steps) {
  const run = board.lanes[i],
    first = board.lanes[0],
    answer = Array.from({ length: run.G }, (_, g) => run.P + g);
  return answer.some((p) => {
    const q = placeIn(run, first, p);
    const mine = writeAt(run, p, steps[i]);
    return q !== null && mine && !mine.given && writeAt(first, q, steps[0]);
  });
}

// At these steps: how many tokens differ from lane 0, and how many were written at another step.
function differencesAt(board, i, steps) {
  const run = board.lanes[i],
    first = board.lanes[0];
  let tokens = 0,
    order = 0;
  for (let p = run.P; p < run.T; p++) {
    const q = placeIn(run, first, p),
      mine = writeAt(run, p, steps[i]),
      its = q === null ? null : writeAt(first, q, steps[0]);
    if (!mine || !its) continue;
    if (mine.text !== its.text) tokens++;
    if (mine.s !== its.s) order++;
  }
  return { tokens, order };
}

// ---- the race

// For each lane at this moment: tokens written, of how many, its end if it has come, who leads.
function raceAt(board, moment) {
  const lanes = board.lanes.map((run, i) => {
    const step = stepAt(board, i, moment),
      end = endOf(board, i),
      over = run.status !== "running" && step === run.records.length - 1;
    return {
      step,
      written: filledAt(run, step),
      of: run.status === "done" ? filledAt(run, run.records.length - 1) : run.blank,
      finished: over ? end : null,
      status: run.status,
    };
  });
  const done = lanes.filter((x) => x.finished !== null && x.status === "done");
  const best = done.length
    ? Math.min(...done.map((x) => x.finished))
    : Math.max(0, ...lanes.map((x) => x.written));
  const ahead = (x) =>
    done.length ? x.status === "done" && x.finished === best : x.written === best && best > 0;
  const leads = lanes.length > 1 ? lanes.flatMap((x, i) => (ahead(x) ? [i] : [])) : [];
  return { lanes, leads, over: done.length > 0 };
}

// A moment in words: "step 12", "812 ms", "3.4 s", "1.2 GFLOPs".
function momentText(clock, value) {
  if (clock === "step") return `step ${Math.round(value) + 1}`;
  if (clock === "ms")
    return value < 9999.5
      ? `${value < 99.5 ? Number(value.toFixed(1)) : Math.round(value)} ms`
      : `${(value / 1000).toFixed(1)} s`;
  const k = value < 1e3 ? 0 : Math.min(5, Math.floor(Math.log10(value) / 3));
  return `${Number((value / 1e3 ** k).toPrecision(3))} ${["", "k", "M", "G", "T", "P"][k]}FLOPs`;
}

export {
  emptyBoard,
  applyToBoard,
  boardFrom,
  momentsOf,
  momentOf,
  stepAt,
  stepsAt,
  endOf,
  lastMoment,
  liveMoment,
  nextMoment,
  placeIn,
  differs,
  stepDiffers,
  firstDivergence,
  nextDifference,
  differencesAt,
  meets,
  raceAt,
  momentText,
};
