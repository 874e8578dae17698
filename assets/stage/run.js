/* One run, as told by its events; pure questions about it. */
import { decodePlane, unpack } from "./numbers.js";
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
const hitRate = (rec, T) => 1 - rec.rows / T;

// The same over steps 0..s: positions are counted, not averages averaged.
function hitRateSoFar(model, s) {
  let rows = 0,
    steps = 0;
  for (let i = 0; i <= s; i++)
    if (model.recs[i]) {
      rows += model.recs[i].rows;
      steps++;
    }
  return steps ? 1 - rows / (steps * model.T) : null;
}

// Positions recomputed in at least one layer; where layers differ, more than rec.rows, their mean.
const touchedIn = (rec) => rec.y.reduce((n, byte) => n + (byte > 0), 0);
const layersDiffer = (rec) => rec.rows !== touchedIn(rec);

// The totals of the run up to step s: of the nearest step up to s that has some.
function totalsAt(model, s) {
  for (let i = s; i >= 0; i--) if (model.recs[i]?.totals) return model.recs[i].totals;
  return null;
}
const MLP = 8,
  EVICTED = 16; // bits of a part: this layer computed the position; left it out of attention

const emptyModel = () => ({
  run: null,
  status: "empty",
  T: 0,
  P: 0,
  G: 0,
  layers: 1,
  prompt: [],
  recs: [],
  changes: [],
  filled: [],
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
  branch: null,
  lane: 0,
  truth: false,
  clocks: { ms: [], flops: [] },
});

function startModel(ev) {
  return {
    ...emptyModel(),
    run: ev.run,
    status: "running",
    T: ev.T,
    P: ev.P,
    G: ev.G,
    layers: ev.layers || 1,
    prompt: ev.prompt || [],
    start: ev,
    reasons: reasonsOf(ev),
    changes: Array.from({ length: ev.T }, () => []),
    eos: ev.eos ? new Set(ev.eos) : EOS,
    expected: Math.max(1, ev.steps || ev.G),
    name: ev.name || [ev.policy, ev.decoder].filter(Boolean).join(" · ") || "run",
    branch: ev.branch || null,
    lane: ev.lane || 0,
    truth: Boolean(ev.truth),
  };
}

// How many layers computed each position, from (value, count) pairs over layers x T, layer by layer.
function layersIn(pairs, T) {
  const out = new Uint8Array(T);
  for (let i = 0, at = 0; i < pairs.length; i += 2) {
    if (pairs[i] & MLP) for (let k = 0; k < pairs[i + 1]; k++) out[(at + k) % T]++;
    at += pairs[i + 1];
  }
  return out;
}

const partsAt = new Map(); // the last few that were asked for: all of a long run would fill the tab

function partsOf(rec, size) {
  let parts = partsAt.get(rec);
  if (!parts) {
    parts = unpack(rec.code, size);
    if (partsAt.size >= 64) partsAt.delete(partsAt.keys().next().value);
    partsAt.set(rec, parts);
  }
  return parts;
}

function addRecord(model, ev) {
  if (ev.seq < model.next) return; // Gradio sends the last message of a stream twice
  model.gaps += ev.seq - model.next;
  model.next = ev.seq + 1;
  model.received++;
  model.paused = false;
  const code = decodePlane(ev.a),
    size = model.layers * model.T;
  const rec = {
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
    y: decodePlane(ev.y) || new Uint8Array(model.T),
    code,
    l: code && layersIn(code, model.T),
    totals: null,
    truth: null,
    get parts() {
      return code && partsOf(this, size);
    },
  };
  model.recs[ev.s] = rec;
  let filled = filledAt(model, ev.s - 1);
  for (const [pos, text, conf, top] of rec.w) {
    if (!model.changes[pos]) continue;
    if (pos >= model.P && !writeAt(model, pos, ev.s)) filled++;
    model.changes[pos].push({ s: ev.s, text, conf, top: top || [] });
  }
  for (const pos of rec.m) {
    // masked again
    if (!model.changes[pos]) continue;
    if (pos >= model.P && writeAt(model, pos, ev.s)) filled--;
    model.changes[pos].push({ s: ev.s, text: null });
  }
  model.filled[ev.s] = filled;
  model.again ||= rec.m.length > 0;
  model.expected = Math.max(model.expected, model.recs.length);
}

// What an exact pass on the same canvas says of this step; it follows the record of its step.
function addTruth(model, ev) {
  const rec = model.recs[ev.s];
  if (rec)
    rec.truth = {
      kd: decodePlane(ev.kd),
      vd: decodePlane(ev.vd),
      kl: decodePlane(ev.kl),
      flips: ev.flips || [],
      oracle: ev.oracle || [],
      recall: ev.recall ?? null,
    };
  model.truth = true;
}

// The next model after one event. Events of a run that is not the last one started are dropped.
function applyEvent(model, ev) {
  if (ev.k === "start") return startModel(ev);
  if (ev.run !== model.run) return model;
  if (ev.k === "rec") addRecord(model, ev);
  if (ev.k === "totals" && model.recs[ev.s]) model.recs[ev.s].totals = ev;
  if (ev.k === "truth") addTruth(model, ev);
  if (ev.k === "pause") model.paused = true;
  if (ev.k === "end") {
    model.status = ev.status;
    model.paused = false;
    model.note = ev.note || "";
    if (ev.status === "done") model.expected = Math.max(1, model.recs.length); // now the height is known
  }
  return model;
}

// How many answer positions hold a token after step s.
function filledAt(model, s) {
  for (let i = Math.min(s, model.filled.length - 1); i >= 0; i--)
    if (model.filled[i] !== undefined) return model.filled[i];
  return 0;
}

const applyText = (model, text) =>
  text ? JSON.parse(text).events.reduce(applyEvent, model) : model;

// The newest change of position p up to step s, a write or its being masked again, or null.
function changeAt(model, p, s) {
  const list = model.changes[p] || [];
  for (let i = list.length - 1; i >= 0; i--) if (list[i].s <= s) return list[i];
  return null;
}

// The write whose token stands at position p after step s, or null while it is masked.
function writeAt(model, p, s) {
  const change = changeAt(model, p, s);
  return change && change.text !== null ? change : null;
}

const textBefore = (model, p, s) => writeAt(model, p, s - 1)?.text ?? null; // null: its record was lost

function chipData(model, p, s) {
  const change = changeAt(model, p, s),
    write = writeAt(model, p, s),
    now = change?.s === s;
  if (p < model.P)
    return {
      state: write && now ? "now" : "prompt",
      text: (write ?? { text: model.prompt[p] ?? "" }).text,
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
  return {
    state: now ? "now" : "settled",
    text: write.text,
    write,
    masked: false,
    again: null,
    eos: model.eos.has(write.text),
  };
}

export {
  MLP,
  EVICTED,
  EOS,
  hitRate,
  hitRateSoFar,
  touchedIn,
  layersDiffer,
  totalsAt,
  emptyModel,
  startModel,
  layersIn,
  applyEvent,
  filledAt,
  applyText,
  changeAt,
  writeAt,
  textBefore,
  chipData,
};
