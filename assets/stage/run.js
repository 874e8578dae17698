/* One run, as told by its events; pure questions about it. */
(function (D2) {
"use strict";

const { decodePlane, reasonsOf } = D2.pure;

const EOS = new Set(["<|endoftext|>", "<|eot_id|>", "<|im_end|>", "<|end_of_text|>", "</s>", "<eos>", "<EOS>", "[EOS]"]);

// Share of the positions that were not recomputed in one step, a mean over the layers.
const hitRate = (rec, T) => 1 - rec.rows / T;

// The same over steps 0..s: positions are counted, not averages averaged.
function hitRateSoFar(model, s) {
  let rows = 0, steps = 0;
  for (let i = 0; i <= s; i++) if (model.recs[i]) { rows += model.recs[i].rows; steps++; }
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
const emptyModel = () => ({ run: null, status: "empty", T: 0, P: 0, G: 0, layers: 1, prompt: [], recs: [], changes: [], again: false,
  received: 0, next: 0, gaps: 0, paused: false, note: "", start: null, reasons: reasonsOf({}), eos: EOS, expected: 1 });

function startModel(ev) {
  return { ...emptyModel(), run: ev.run, status: "running", T: ev.T, P: ev.P, G: ev.G, layers: ev.layers || 1, prompt: ev.prompt || [], start: ev,
    reasons: reasonsOf(ev), changes: Array.from({ length: ev.T }, () => []), eos: ev.eos ? new Set(ev.eos) : EOS, expected: Math.max(1, ev.steps || ev.G) };
}

function addRecord(model, ev) {
  if (ev.seq < model.next) return;          // Gradio sends the last message of a stream twice
  model.gaps += ev.seq - model.next;
  model.next = ev.seq + 1;
  model.received++;
  model.paused = false;
  model.recs[ev.s] = { s: ev.s, seq: ev.seq, ms: ev.ms, rows: ev.rows, out: ev.out || 0, w: ev.w || [], m: ev.m || [], c: decodePlane(ev.c), d: decodePlane(ev.d),
    r: decodePlane(ev.r), y: decodePlane(ev.y) || new Uint8Array(model.T), l: decodePlane(ev.l), totals: null };
  for (const [pos, text, conf, top] of ev.w || []) model.changes[pos]?.push({ s: ev.s, text, conf, top: top || [] });
  for (const pos of ev.m || []) model.changes[pos]?.push({ s: ev.s, text: null });   // masked again
  model.again ||= Boolean(ev.m?.length);
  model.expected = Math.max(model.expected, model.recs.length);
}

// The next model after one event. Events of a run that is not the last one started are dropped.
function applyEvent(model, ev) {
  if (ev.k === "start") return startModel(ev);
  if (ev.run !== model.run) return model;
  if (ev.k === "rec") addRecord(model, ev);
  if (ev.k === "totals" && model.recs[ev.s]) model.recs[ev.s].totals = ev;
  if (ev.k === "pause") model.paused = true;
  if (ev.k === "end") {
    model.status = ev.status;
    model.paused = false;
    model.note = ev.note || "";
    if (ev.status === "done") model.expected = Math.max(1, model.recs.length);   // now the height is known
  }
  return model;
}

const applyText = (model, text) => (text ? JSON.parse(text).events.reduce(applyEvent, model) : model);

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

const textBefore = (model, p, s) => writeAt(model, p, s - 1)?.text ?? null;   // null: its record was lost

function chipData(model, p, s) {
  if (p < model.P) return { state: "prompt", text: model.prompt[p] ?? "", write: null, masked: false, again: null, eos: false };
  const change = changeAt(model, p, s), write = writeAt(model, p, s), now = change?.s === s;
  if (!write) return { state: now ? "again" : "masked", text: "", write, masked: true, again: change ? change.s : null, eos: false };
  return { state: now ? "now" : "settled", text: write.text, write, masked: false, again: null, eos: model.eos.has(write.text) };
}

Object.assign(D2.pure ??= {}, { EOS, hitRate, hitRateSoFar, touchedIn, layersDiffer, totalsAt, emptyModel, startModel, addRecord, applyEvent, applyText, changeAt, writeAt, textBefore, chipData });
})(globalThis.D2Stage ??= {});
