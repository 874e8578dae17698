/* One run, built from its events; pure questions about it. */
import { PART } from "./contract.js";
import { confidence, decodePlane, unpack } from "./numbers.js";
import { reasonsOf } from "./reasons.js";

const EOS = new Set([
  "<|endoftext|>",
  "<|eot_id|>",
  "<|im_end|>",
  "<|end_of_text|>",
  "</s>",
  "<eos>",
  "<EOS>",
  "[EOS]",
]);

// Share of the positions that were not recomputed in one step, a mean over the layers.
const hitRate = (record, T) => 1 - record.rows / T;

// Positions recomputed in steps 0..s, and in how many steps; lost records do not count.
function rowsUpTo(run, s) {
  let rows = 0,
    steps = 0;
  for (let i = 0; i <= Math.min(s, run.records.length - 1); i++)
    if (run.records[i]) {
      rows += run.records[i].rows;
      steps++;
    }
  return { rows, steps };
}

// The same as a rate: positions are counted, not averages averaged.
function hitRateSoFar(run, s) {
  const { rows, steps } = rowsUpTo(run, s);
  return steps ? 1 - rows / (steps * run.T) : null;
}

// Positions recomputed in at least one layer; more than record.rows, a mean, where layers differ.
const touchedIn = (record) => record.y.reduce((n, byte) => n + (byte > 0), 0);
const layersDiffer = (record) => record.rows !== touchedIn(record);

// The totals of the run up to step s: of the nearest step up to s that has some.
function totalsAt(run, s) {
  for (let i = s; i >= 0; i--) if (run.records[i]?.totals) return run.records[i].totals;
  return null;
}
const emptyRun = () => ({
  key: null,
  status: "empty",
  T: 0,
  P: 0,
  G: 0,
  layers: 1,
  prompt: [],
  grid: null, // where the answer is one, see grid.js
  blank: 0,
  gapped: false,
  records: [],
  changes: [],
  guesses: [],
  filled: [],
  joined: new Map(),
  again: false,
  received: 0,
  next: 0,
  gaps: 0,
  paused: false,
  note: "",
  start: null,
  reasons: reasonsOf({}),
  eos: EOS,
  expected: 1,
  name: "",
  title: "",
  branch: null,
  lane: 0,
  truth: false,
  clocks: { ms: [], flops: [] },
});

// Text given after the first mask, as a change from before the first step, which nobody wrote.
function changesOf(ev) {
  const changes = Array.from({ length: ev.T }, () => []);
  for (const [pos, text] of ev.given || [])
    changes[pos]?.push({ s: -1, text, conf: null, top: [], given: true });
  return changes;
}

function startRun(ev) {
  const given = (ev.given || []).length;
  return {
    ...emptyRun(),
    key: ev.run,
    status: "running",
    T: ev.T,
    P: ev.P,
    G: ev.G,
    layers: ev.layers || 1,
    prompt: ev.prompt || [],
    grid: ev.grid || null,
    start: ev,
    reasons: reasonsOf(ev),
    changes: changesOf(ev),
    blank: ev.G - given, // answer positions that are masked at the start
    gapped: given > 0,
    guesses: Array.from({ length: ev.G }, () => []),
    joined: new Map(), // position -> [{s, text}]: its text from step s on, see characters.py
    eos: ev.eos ? new Set(ev.eos) : EOS,
    expected: Math.max(1, ev.steps || ev.G - given),
    name: ev.name || [ev.policy, ev.decoder].filter(Boolean).join(" · ") || "run",
    branch: ev.branch || null,
    title: ev.title || ev.policy || "run",
    lane: ev.lane || 0,
    truth: Boolean(ev.truth),
  };
}

// How many layers computed each position, from (value, count) pairs over layers x T.
function layersIn(pairs, T) {
  const out = new Uint8Array(T);
  for (let i = 0, at = 0; i < pairs.length; i += 2) {
    if (pairs[i] & PART.MLP) for (let k = 0; k < pairs[i + 1]; k++) out[(at + k) % T]++;
    at += pairs[i + 1];
  }
  return out;
}

const partsAt = new Map(); // the last few used: those of a long run would fill the memory

function partsOf(record, size) {
  let parts = partsAt.get(record);
  if (!parts) {
    parts = unpack(record.code, size);
    if (partsAt.size >= 64) partsAt.delete(partsAt.keys().next().value);
    partsAt.set(record, parts);
  }
  return parts;
}

function addRecord(run, ev) {
  if (ev.seq < run.next) return; // Gradio sends the last message of a stream twice
  run.gaps += ev.seq - run.next;
  run.next = ev.seq + 1;
  run.received++;
  run.paused = false;
  const code = decodePlane(ev.a),
    size = run.layers * run.T;
  const record = {
    s: ev.s,
    seq: ev.seq,
    ms: ev.ms,
    rows: ev.rows,
    out: ev.out || 0,
    w: ev.w || [],
    m: ev.m || [],
    c: decodePlane(ev.c),
    d: decodePlane(ev.d),
    r: decodePlane(ev.r),
    y: decodePlane(ev.y) || new Uint8Array(run.T),
    code,
    l: code && layersIn(code, run.T),
    totals: null,
    truth: null,
    get parts() {
      return code && partsOf(this, size);
    },
  };
  run.records[ev.s] = record;
  let filled = filledAt(run, ev.s - 1);
  for (const [pos, text, conf, top] of record.w) {
    if (!run.changes[pos]) continue;
    if (pos >= run.P && !writeAt(run, pos, ev.s)) filled++;
    run.changes[pos].push({ s: ev.s, text, conf, top: top || [] });
  }
  for (const pos of record.m) {
    // masked again
    if (!run.changes[pos]) continue;
    if (pos >= run.P && writeAt(run, pos, ev.s)) filled--;
    run.changes[pos].push({ s: ev.s, text: null });
  }
  for (const [pos, text] of ev.j || [])
    run.joined.set(pos, [...(run.joined.get(pos) ?? []), { s: ev.s, text }]);
  run.filled[ev.s] = filled;
  run.again ||= record.m.length > 0;
  run.expected = Math.max(run.expected, run.records.length);
}

// What an exact pass on the same canvas reports about a step; it comes after the step's record.
function addTruth(run, ev) {
  const record = run.records[ev.s];
  if (record)
    record.truth = {
      kd: decodePlane(ev.kd),
      vd: decodePlane(ev.vd),
      kl: decodePlane(ev.kl),
      flips: ev.flips || [],
      oracle: ev.oracle || [],
      recall: ev.recall ?? null,
    };
  run.truth = true;
}

// The run after one event. Events of a run other than the last one started are dropped.
function applyEvent(run, ev) {
  if (ev.k === "start") return startRun(ev);
  if (ev.run !== run.key) return run;
  if (ev.k === "rec") addRecord(run, ev);
  if (ev.k === "totals" && run.records[ev.s]) run.records[ev.s].totals = ev;
  if (ev.k === "truth") addTruth(run, ev);
  if (ev.k === "guesses")
    for (const [pos, top] of ev.g) run.guesses[pos - run.P]?.push({ s: ev.s, top });
  if (ev.k === "pause") run.paused = true;
  if (ev.k === "end") {
    run.status = ev.status;
    run.paused = false;
    run.note = ev.note || "";
    if (ev.status === "done") run.expected = Math.max(1, run.records.length);
  }
  return run;
}

// How many answer positions hold a token after step s.
function filledAt(run, s) {
  for (let i = Math.min(s, run.filled.length - 1); i >= 0; i--)
    if (run.filled[i] !== undefined) return run.filled[i];
  return 0;
}

const applyText = (run, text) => (text ? JSON.parse(text).events.reduce(applyEvent, run) : run);

// The latest change of position p up to step s: a write, masked again, or null.
function changeAt(run, p, s) {
  const list = run.changes[p] || [];
  for (let i = list.length - 1; i >= 0; i--) if (list[i].s <= s) return list[i];
  return null;
}

// The model's best guess at a masked position after step s: {s: the step that it was sent in, text,
// top: [[text, share]], conf: null where it is not known}; null without one.
function guessAt(run, p, s) {
  const list = run.guesses[p - run.P] || [];
  let i = list.length - 1;
  while (i >= 0 && list[i].s > s) i--;
  return i < 0 ? null : { ...list[i], text: list[i].top[0][0], conf: sureness(run, p - run.P, s) };
}

// The confidence of answer position g when it was predicted last.
function sureness(run, g, s) {
  for (let i = s; i >= 0; i--) {
    const code = run.records[i]?.c?.[g];
    if (code) return confidence(code);
  }
  return null;
}
// What a neighbour has made of the text of position p by step s, in a character of several tokens;
// undefined: nothing since step `from`.
const joinedText = (run, p, s, from) =>
  run.joined.get(p)?.findLast((one) => one.s <= s && one.s >= from)?.text;

// The write whose token is at position p after step s, or null while it is masked.
function writeAt(run, p, s) {
  const change = changeAt(run, p, s);
  if (!change || change.text === null) return null;
  const text = joinedText(run, p, s, change.s);
  return text === undefined ? change : { ...change, text };
}

const textBefore = (run, p, s) => writeAt(run, p, s - 1)?.text ?? null; // null: its record was lost

function chipData(run, p, s) {
  const change = changeAt(run, p, s),
    write = writeAt(run, p, s),
    now = change?.s === s;
  if (p < run.P)
    return {
      state: write && now ? "now" : "prompt",
      text: write?.text ?? joinedText(run, p, s, 0) ?? run.prompt[p] ?? "",
      write,
      masked: false,
      again: null,
      eos: false,
    }; // an edit may change the prompt
  if (!write)
    return {
      state: now ? "again" : "masked",
      text: "",
      write,
      masked: true,
      again: change ? change.s : null,
      eos: false,
    };
  if (write.given)
    return {
      state: "prompt",
      text: write.text,
      write: null,
      masked: false,
      again: null,
      eos: false,
    };
  return {
    state: now ? "now" : "settled",
    text: write.text,
    write,
    masked: false,
    again: null,
    eos: run.eos.has(write.text),
  };
}

export {
  EOS,
  hitRate,
  hitRateSoFar,
  rowsUpTo,
  touchedIn,
  layersDiffer,
  totalsAt,
  emptyRun,
  startRun,
  layersIn,
  applyEvent,
  filledAt,
  applyText,
  changeAt,
  guessAt,
  writeAt,
  textBefore,
  chipData,
};
