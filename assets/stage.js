/* The stage: watch a diffusion language model fill its canvas, and see what its cache saves.
 *
 * One global, window.D2Stage, with two halves:
 *   D2Stage.pure   reads the events and answers questions about them; no DOM, so node can test it
 *   D2Stage.mount  draws: chips for the answer, four maps on one position axis, one clock
 *
 * All token text is data from a model or a user: it reaches the page by textContent only. */
(function (global) {
"use strict";

// ---------------------------------------------------------------- pure: tables

// Why a position was recomputed, the most telling reason first: the order is the priority of the map.
const REASONS = [
  { key: "written", bit: 4, label: "written a step ago", colour: "#e69f00", why: "its token was written by the step before; the cached K,V still belong to a mask" },
  { key: "chosen", bit: 2, label: "picked by score", colour: "#009e73", why: "picked by a score that the policy gives each position" },
  { key: "rollout", bit: 8, label: "attention rollout", colour: "#cc79a7", why: "one of the positions where attention led most in the step before" },
  { key: "gap", bit: 16, label: "gap fill", colour: "#f0e442", why: "lies in a gap between recomputed positions" },
  { key: "shift", bit: 32, label: "shift", colour: "#999933", why: "a neighbour that is needed where a model predicts one position to the right" },
  { key: "block", bit: 64, label: "block", colour: "#0072b2", why: "inside the block that is being decoded" },
  { key: "window", bit: 128, label: "window", colour: "#56b4e9", why: "inside the window around what is being decoded" },
  { key: "full", bit: 1, label: "full pass", colour: "#a08468", why: "a pass over the whole canvas" },
];
const REUSED = { key: "reused", label: "reused", why: "the cached K,V of an earlier step were used: no work" };
const WRITTEN_NOW = "#d55e00";   // what this step writes: its own colour, it is no reason (also in stage.css)
const MASKED_NOW = "#c2008f";    // what this step masks again (also in stage.css)

// Where a policy or decoder means something of its own by a reason, or by what stands below; the
// words must be true of the run on view. What is not named here gets the plain words.
const POLICY_WORDS = {
  d2: { pads: true, chosen: { label: "chosen mask", why: "a mask with a sure guess near known text: likely to be written soon" } },
  dkv: { chosen: { label: "still masked", why: "masked: such a position is recomputed at every step" } },
  dllm: {
    kept: "layer outputs",
    reused: { why: "the cached outputs of its layers were used; at most its values (V) were computed, to see how far they moved" },
    full: { label: "refresh", why: "the prompt, the answer or the whole first layer was due to be computed again" },
    chosen: { label: "values moved", why: "among those whose values (V) moved most since the step before, in some layer; of equals the leftmost" },
    more: (knobs) => (knobs.rho > 0 ? "Between refreshes each layer computes the values (V) of the whole answer, to find those that moved most." : ""),
  },
  elastic: {
    chosen: { label: "attention drifted", why: "attention had drifted in some layer: from there on the layers recompute every position" },
    window: { label: "leftmost masks", why: "one of the masked positions furthest left" },
    more: () => "When attention drifts in a layer, the layers after it recompute every position.",
  },
  prefix: { window: { label: "after the block", why: "follows the block that is being decoded" } },
  sparse: {
    even: true,
    reused: { why: "the cached K,V of an earlier step were used, or left out of attention (evicted): no work" },
    more: (knobs) => (knobs.keep_ratio < 1 ? "While a block is filled, each layer leaves those that the block looks at least out of attention (evicted)." : ""),
  },
};
const DECODER_WORDS = {
  adaptive: { order: () => "the likeliest guesses first", ownWidth: true },
  confidence: { order: () => "the likeliest guesses first" },
  eb: { order: () => "as many of the surest guesses at once as a bound on their entropy allows" },
  entropy: { order: () => "first where the fewest words compete", confidence: "1 − entropy / its largest value" },
  factor: { order: () => "as many of the surest guesses at once as are rarely wrong together", tests: true },
  klass: { order: () => "all guesses at once that are sure and have hardly changed", tests: true },
  margin: { order: () => "first where the best guess leads the second most", confidence: "lead of the best guess over the second" },
  pc: { order: (knobs) => `${knobs.position > 0 ? "early positions and " : ""}sure, rare words first` },
  random: { order: () => "in an order drawn by lot", scores: "its lots" },
  slowfast: { order: () => "a few at first, and all sure guesses of a stretch once its end is settled", tests: true },
  threshold: { order: (knobs) => `all guesses of confidence ${short(knobs.threshold)} or more at once`, tests: true },
  wino: {
    order: () => "many sure guesses at once; what a second look doubts is masked again",
    written: { label: "changed a step ago", why: "its token was written, or masked again, by the step before; the cached K,V still belong to the old one" },
  },
};
const wordsOf = (table, name) => (Object.hasOwn(table, name ?? "") ? table[name] : {});
const policyWords = (start) => wordsOf(POLICY_WORDS, start.policy);
const decoderWords = (start) => wordsOf(DECODER_WORDS, start.decoder);

// "reused" and the reasons, in the words that hold for one run.
const reasonsOf = (start) => [REUSED, ...REASONS].map((r) => ({ ...r, ...policyWords(start)[r.key], ...decoderWords(start)[r.key] }));
const labelIn = (model, key) => model.reasons.find((r) => r.key === key).label;

// Colour maps as a few anchors, evenly spaced, with steadily falling lightness, so that they also
// read in grey. "ink" maps start at the paper: on a dark page they are walked from the other end.
const RAMPS = {
  density: { ink: true, stops: ["#f4f7f8", "#d3e8e8", "#9fd0d3", "#62b1c0", "#378cad", "#2c6392", "#283c72", "#1d1c47"] },
  rollout: { ink: true, stops: ["#fdf5ee", "#fbdcc4", "#f6b394", "#e88376", "#c8546f", "#953a70", "#5f2a66", "#2d1a48"] },
  order: { ink: false, stops: ["#440154", "#46327e", "#365c8d", "#277f8e", "#1fa187", "#4ac16d", "#9bd93c"] },
  confidence: { ink: false, stops: ["#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838"] },
};
const PAPER = { light: { reused: "#eef1f4", masked: "#e3e6ea" }, dark: { reused: "#1b212c", masked: "#2d3440" } };

// The colour bar of the rollout spans 1/16 .. 32 times the mean; what lies outside is clipped.
const MASS_LOG2 = [-4, 5];
const EOS = new Set(["<|endoftext|>", "<|eot_id|>", "<|im_end|>", "<|end_of_text|>", "</s>", "<eos>", "<EOS>", "[EOS]"]);

// ---------------------------------------------------------------- pure: numbers and colours

function decodePlane(b64) {
  if (b64 == null) return null;
  const raw = atob(b64), out = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) out[i] = raw.charCodeAt(i);
  return out;
}

const confidence = (u8) => (u8 ? (u8 - 1) / 254 : null);   // 0: the model made no prediction here
const density = (u8) => u8 / 255;
const rolloutMass = (u8) => 2 ** (u8 / 16 - 8);             // the mean over the canvas is 1
const reasonsIn = (byte) => REASONS.filter((r) => byte & r.bit).map((r) => r.key);
const reasonOf = (byte) => (REASONS.find((r) => byte & r.bit) || { key: null }).key;
const clamp = (x, lo, hi) => Math.min(hi, Math.max(lo, x));
const rgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
const mixed = (a, b, share) => a.map((c, k) => Math.round(c + (b[k] - c) * share));
const css = (c) => `rgb(${c[0]}, ${c[1]}, ${c[2]})`;

function colourAt(name, value, dark) {
  const { ink, stops } = RAMPS[name];
  const v = clamp(value, 0, 1);
  const along = !dark ? v : ink ? 1 - 0.85 * v : 0.15 + 0.85 * v;     // at night no glaring white, and no black on black
  const x = along * (stops.length - 1);
  const i = Math.min(Math.floor(x), stops.length - 2), a = rgb(stops[i]), b = rgb(stops[i + 1]);
  return mixed(a, b, x - i);
}

const massShade = (mass) => (Math.log2(mass) - MASS_LOG2[0]) / (MASS_LOG2[1] - MASS_LOG2[0]);

// Share of the positions that were not recomputed in one step, a mean over the layers.
const hitRate = (rec, T) => 1 - rec.rows / T;

// The same over steps 0..s: positions are counted, not averages averaged.
function hitRateSoFar(model, s) {
  let rows = 0, steps = 0;
  for (let i = 0; i <= s; i++) if (model.recs[i]) { rows += model.recs[i].rows; steps++; }
  return steps ? 1 - rows / (steps * model.T) : null;
}

// How many positions each reason claims in one step; one with several counts for its most telling one.
function reasonCounts(rec) {
  const counts = {};
  for (const byte of rec.y) if (byte) counts[reasonOf(byte)] = (counts[reasonOf(byte)] || 0) + 1;
  return counts;
}

// Positions recomputed in at least one layer; where layers differ, more than rec.rows, their mean.
const touchedIn = (rec) => rec.y.reduce((n, byte) => n + (byte > 0), 0);
const layersDiffer = (rec) => rec.rows !== touchedIn(rec);

// The totals of the run up to step s: of the nearest step up to s that has some.
function totalsAt(model, s) {
  for (let i = s; i >= 0; i--) if (model.recs[i]?.totals) return model.recs[i].totals;
  return null;
}

// ---------------------------------------------------------------- pure: words

const fixed = (x, digits) => (Number.isFinite(x) ? x.toFixed(digits) : "–");
const percent = (x) => (Number.isFinite(x) ? `${(100 * x).toFixed(x > 0.995 || x < 0.1 ? 1 : 0)} %` : "–");
const plural = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;
const amount = (x) => Number(x.toFixed(1));   // a count, or a mean of counts
const short = (x) => String(Number(Number(x).toFixed(2)));

// Make every character visible: a newline as an arrow, other control codes as their pictures.
function visible(text) {
  if (text === "") return "·";
  return text.replace(/\r?\n/g, "↵").replace(/[\u0000-\u001f]/g, (c) => String.fromCharCode(0x2400 + c.charCodeAt(0)));
}
const quoted = (text) => `'${visible(text)}'`;

function formatTotals(totals) {
  const t = totals || {};
  const tps = t.tps ?? NaN, ratio = t.flops_none ? t.flops / t.flops_none : NaN;
  return { tps: fixed(tps, tps < 10 ? 2 : 1), hit: percent(t.hit_rate ?? NaN), flops: Number.isFinite(ratio) ? `${fixed(ratio, 2)}×` : "–" };
}

// In words a position counts from 1, as a step does; in the data both count from 0.
const placeOf = (model, p) => (p < model.P ? `prompt position ${p + 1}` : `answer position ${p - model.P + 1}`);
const tokenName = (model, text) => (model.eos.has(text) ? "end" : visible(text));

// "Step 12: recomputed 41 of 192 positions, then wrote ' apples' at answer position 5 with confidence 0.98."
function explain(rec, model) {
  const written = [...rec.w].sort((a, b) => a[0] - b[0]), n = written.length;
  const name = (text) => (text === null ? "a token" : model.eos.has(text) ? "the end token" : quoted(text));
  const some = (list) => `, by answer position: ${list.slice(0, 3).map(([p, text]) => `${name(text)} (${p - model.P + 1})`).join(", ")}${list.length > 3 ? ` and ${list.length - 3} more` : ""}`;
  let wrote = "wrote nothing";
  if (n === 1) wrote = `wrote ${name(written[0][1])} at ${placeOf(model, written[0][0])} with confidence ${fixed(written[0][2], 2)}`;
  if (n > 1) wrote = `wrote ${n} tokens${some(written)}`;
  const again = rec.m.map((p) => [p, textBefore(model, p, rec.s)]);
  if (again.length === 1) wrote += `; masked ${name(again[0][1])} again at ${placeOf(model, again[0][0])}`;
  if (again.length > 1) wrote += `; masked ${again.length} tokens again${some(again)}`;
  const mean = layersDiffer(rec) ? ` (mean over ${model.layers} layers)` : "";
  return `Step ${rec.s + 1}: recomputed ${amount(rec.rows)} of ${model.T} positions${mean}, then ${wrote}.`;
}

// The second half, for who has never heard of it: what the recomputing was for.
function explainWhy(rec, model) {
  const rest = model.T - touchedIn(rec), differ = layersDiffer(rec);
  if (rest === 0 && !differ) return "Every position was computed, nothing came from the cache.";
  const counts = reasonCounts(rec), its = rest === 1 ? "its" : "their", { kept = "keys and values (K,V)" } = policyWords(model.start);
  const parts = model.reasons.filter((r) => counts[r.key]).map((r) => `${counts[r.key]} × ${r.label}`);
  const why = parts.length ? `Recomputed${differ ? " in at least one layer" : ""}: ${parts.join(", ")}. ` : "";
  const evicted = rec.out ? `, if not evicted: each layer left ${plural(amount(rec.out), "position")} out of attention` : "";
  return why + (rest ? `The other ${rest} reused ${its} cached ${kept}${evicted}.` : "The other layers reused what is cached.");
}

// What each map shows. A caption must be true of the run on view, so it asks for its knobs.
const knobsOf = (start, kind) => start.knobs?.[kind] || {};

const CAPTIONS = {
  cache(start) {
    const { kept = "keys and values (K,V)", more = () => "", even } = policyWords(start), own = more(knobsOf(start, "policy"));
    const paler = start.by_layer && !even ? `, and is paler where only some of the ${start.layers} layers did` : "";
    return `Grey: ${kept} reused from the cache. A coloured position was computed again in this step; the colour says why${paler}.${own && ` ${own}`}`;
  },
  density(start) {
    const { sigma, as_shipped: padded } = knobsOf(start, "decoder"), { tests, scores = "confidence", ownWidth } = decoderWords(start);
    const shipped = (policyWords(start).pads && knobsOf(start, "policy").as_shipped) || (sigma > 0 && padded);
    const edge = shipped ? "as shipped, the last answer position counts again beyond the right edge"
      : "nothing lies beyond the right edge, so the last positions reach about one half at most";
    const width = ownWidth ? `σ follows the spread of the latest writes, from ${short(start.sigma)} positions at first` : `σ = ${short(start.sigma)} positions`;
    const use = !(sigma > 0) ? "The decoder ignores it in this run (its sigma is 0)."
      : tests ? "What passes the decoder's test is written anyway; other guesses are ranked by confidence times density, which favours places next to known text."
      : `The decoder multiplies ${scores} by it to rank its guesses, which favours places next to known text.`;
    return `How much of a position's neighbourhood is already known, nearer neighbours counting more (Gaussian, ${width}; ${edge}). ${use}`;
  },
  rollout(start) {
    const { rollout_p, as_shipped: shipped } = knobsOf(start, "policy");
    const next = rollout_p === 0 && !shipped ? "This run does not use it (its rollout p is 0)." : "The reused positions with the most are recomputed next.";
    return start.rollout ? `Where attention leads, followed through all layers of this step. A recomputed position passes its weight on to the positions it reads; a reused one keeps its own (1) and gains what is passed to it. ${next}` : "";
  },
  order(start) {
    const { sigma } = knobsOf(start, "decoder"), { order, ownWidth } = decoderWords(start);
    const how = order ? `: ${order(knobsOf(start, "decoder"))}` : "", blocks = start.block_length < start.G ? ", block by block" : "";
    const prior = "favours places next to known text, so the order leans left to right";
    const lean = !(sigma > 0) ? "" : ownWidth ? ` The certainty prior, its width set by the run itself, ${prior}.`
      : ` The certainty prior (σ = ${short(sigma)}) ${prior}; set the decoder's sigma to 0 to let it jump.`;
    return `When each token was written${blocks}${how}.${lean}`;
  },
};

const promptText = (model) => model.prompt.join("").replace(/\s+/g, " ").trim() || "(no prompt)";
const madeBy = (start) => ["policy", "decoder", "model"].filter((k) => start[k]).map((k) => `${k} ${start[k]}`).join(" · ");

// Above the bars of the likeliest tokens. They are shares of the plain distribution; the confidence
// of a write may be of another one, or no share at all: it is not drawn as a bar.
function barsCaption(start) {
  const { temperature, top_p } = knobsOf(start, "decoder");
  return `the model's likeliest tokens${temperature > 0 || top_p < 1 ? " before temperature and top p" : ""}`;
}

// The bars of one write: the likeliest tokens, and the written one if it is not among them.
function candidateBars(model, write) {
  if (!write || !write.top.length) return [];
  const bars = write.top.map(([text, share]) => ({ text: tokenName(model, text), share }));
  if (!write.top.some(([text]) => text === write.text)) bars.push({ text: tokenName(model, write.text), share: null });
  return bars;
}

const confidenceUnit = (start) => `confidence when written${decoderWords(start).confidence ? ` (${decoderWords(start).confidence})` : ""}`;
const lampText = (model) => (model.status !== "running" ? "end" : model.paused ? "paused" : "live");

// The T x T map costs the server a pass: while a run is followed live, it waits to be asked for.
const wantsMap = (model, live) => model.recs.length > 0 && (model.status !== "running" || model.paused || !live);

function mapNote(s, dark, before) {
  return `${before ? "From the run before: step" : "Step"} ${s + 1}, computed anew by a full pass without a cache. Line i, column j: how much position i draws on position j, followed through all layers; dashed lines part the prompt from the answer. ${dark ? "Brighter" : "Darker"} is more: the shade grows with the square root of the share, up to the largest on this map.`;
}

// ---------------------------------------------------------------- pure: the run as told by events

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

// Everything the stage can say about position p at step s.
function tooltipData(model, p, s) {
  const rec = model.recs[s], chip = chipData(model, p, s), g = p - model.P, byReason = {};
  let recomputed = 0, steps = 0;
  for (let i = 0; i <= s; i++) {
    if (!model.recs[i]) continue;
    const byte = model.recs[i].y[p];
    steps++;
    if (byte) recomputed++;
    for (const key of reasonsIn(byte)) byReason[key] = (byReason[key] || 0) + 1;
  }
  return { ...chip, pos: p, answer: g >= 0 ? g : null, step: chip.write ? chip.write.s : null, conf: chip.write ? chip.write.conf : null,
    top: chip.write ? chip.write.top : [], bars: candidateBars(model, chip.write), place: placeOf(model, p), density: rec && rec.d && g >= 0 ? density(rec.d[g]) : null,
    rollout: rec && rec.r ? rolloutMass(rec.r[p]) : null, candidate: rec && rec.c && g >= 0 ? confidence(rec.c[g]) : null,
    now: rec ? reasonsIn(rec.y[p]).map((key) => labelIn(model, key)) : null, layers: rec && rec.l && rec.l[p] < model.layers ? `${rec.l[p]} of ${model.layers} layers` : null,
    was: chip.again === null ? null : textBefore(model, p, chip.again), recomputed, steps, byReason };
}

// "answer position 17: ' apples' - density 0.42, rollout 1.7, confidence 0.93, reused"
function readout(data) {
  const token = data.masked ? "masked" : data.eos ? "end" : quoted(data.text);
  const conf = data.conf ?? data.candidate, facts = [];
  if (data.density !== null) facts.push(`density ${fixed(data.density, 2)}`);
  if (data.rollout !== null) facts.push(`rollout ${fixed(data.rollout, data.rollout < 0.1 ? 3 : 1)}`);
  if (conf !== null) facts.push(`confidence ${fixed(conf, 2)}`);
  if (data.now) facts.push(data.now.length ? `recomputed${data.layers ? ` in ${data.layers}` : ""} (${data.now.join(", ")})` : "reused");
  return `${data.place}: ${token} - ${facts.join(", ")}`;
}

// ---------------------------------------------------------------- the page: small helpers

let mounted = 0;   // makes ids unique when a page holds two stages

function h(tag, cls, props, ...kids) {
  const el = document.createElement(tag);
  if (cls) el.className = cls;
  for (const [k, v] of Object.entries(props || {})) k in el ? (el[k] = v) : el.setAttribute(k, v);
  el.append(...kids);
  return el;
}

const ICONS = { play: "M7 4.5v15l12-7.5z", pause: "M6.5 5h4v14h-4zM13.5 5h4v14h-4z", back: "M15.5 5.5v13L8 12zM6 5.5h1.8v13H6z",
  next: "M8.5 5.5v13L16 12zM16.2 5.5H18v13h-1.8z" };

function iconButton(icon, label) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  svg.append(path);
  const button = h("button", "d2-icon", { type: "button" }, svg);
  button.show = (name, text) => { path.setAttribute("d", ICONS[name]); button.setAttribute("aria-label", text); button.title = text; };
  button.show(icon, label);
  return button;
}

// A row of buttons of which one is pressed.
function choice(label, options, picked, onPick) {
  const group = h("div", "d2-choice", { role: "group", "aria-label": label });
  const mark = (value) => { for (const b of group.children) b.setAttribute("aria-pressed", String(b.value === value)); };
  for (const [value, text] of options) {
    group.append(h("button", "", { type: "button", value, textContent: text, onclick: () => { mark(value); onPick(value); } }));
  }
  mark(picked);
  return group;
}

function swatch(colour, label, count) {
  const dot = h("i", "d2-dot");
  dot.style.background = colour;
  const el = h("span", "d2-swatch", {}, dot, label);
  if (count !== undefined) el.append(h("b", "", { textContent: count }));
  return el;
}

function colourBar(name, dark, ticks, unit) {
  const bar = h("span", "d2-ramp"), stops = Array.from({ length: 13 }, (_, i) => css(colourAt(name, i / 12, dark)));
  bar.style.background = `linear-gradient(to right, ${stops.join(", ")})`;
  const scale = h("span", "d2-ticks", {}, ...ticks.map((t) => h("span", "", { textContent: t })));
  return h("span", "d2-bar", {}, h("span", "d2-barbox", {}, bar, scale), h("span", "d2-unit", { textContent: unit }));
}

// One 32-bit pixel per byte value, in the memory order of ImageData.
const pixel = ([r, g, b]) => (255 << 24 | b << 16 | g << 8 | r) >>> 0;
const table = (colour) => Uint32Array.from({ length: 256 }, (_, i) => { const c = colour(i); return c ? pixel(c) : 0; });

const SHADES = 8;   // of a reason's colour: paler where fewer layers recomputed the position
const shade = (rec, p, layers) => (rec.l ? Math.round(SHADES * Math.min(1, rec.l[p] / layers)) : SHADES);

function tables(dark, expected) {
  const paper = PAPER[dark ? "dark" : "light"];
  const reason = Object.fromEntries(REASONS.map((r) => [r.key, rgb(r.colour)]));
  return {
    density: table((u) => colourAt("density", density(u), dark)),
    rollout: table((u) => colourAt("rollout", massShade(rolloutMass(u)), dark)),
    cache: Array.from({ length: SHADES + 1 }, (_, i) => table((u) => mixed(rgb(paper.reused), u ? reason[reasonOf(u)] : rgb(paper.reused), 0.25 + 0.75 * i / SHADES))),
    order: Uint32Array.from({ length: expected }, (_, s) => pixel(colourAt("order", s / Math.max(1, expected - 1), dark))),
    masked: pixel(rgb(paper.masked)), now: pixel(rgb(WRITTEN_NOW)), again: pixel(rgb(MASKED_NOW)),
  };
}

// ---------------------------------------------------------------- the page: the four maps

// Each fills one row of pixels (all T positions) for one step; 0 is transparent: nothing to show.
const MAPS = [
  { key: "cache", title: "Cache: reused or recomputed",
    row(out, rec, m, t) { for (let p = 0; p < m.T; p++) out[p] = t.cache[shade(rec, p, m.layers)][rec.y[p]]; } },
  { key: "density", title: "Certainty density",
    row(out, rec, m, t) { if (rec.d) for (let g = 0; g < m.G; g++) out[m.P + g] = t.density[rec.d[g]]; } },
  { key: "rollout", title: "Attention rollout",
    row(out, rec, m, t) { if (rec.r) for (let p = 0; p < m.T; p++) out[p] = t.rollout[rec.r[p]]; } },
  { key: "order", title: "Decode order",
    row(out, rec, m, t) {
      for (let p = m.P; p < m.T; p++) {
        const { state, write } = chipData(m, p, rec.s);
        out[p] = state === "settled" ? t.order[write.s] : t[state];
      }
    } },
];

// A map keeps all its rows on a canvas of one pixel per position and step, and shows a part of it.
function makeMap(spec) {
  const store = h("canvas"), ctx = store.getContext("2d", { willReadFrequently: false });
  const canvas = h("canvas", "d2-canvas", { "aria-hidden": "true" });
  const plane = h("div", "d2-plane", {}, canvas, ...["d2-veil", "d2-edge", "d2-now", "d2-hair"].map((c) => h("div", c)), h("span", "d2-inprompt"));
  const strip = h("canvas", "d2-strip", { "aria-hidden": "true" });
  const absent = h("p", "d2-absent", { hidden: true, textContent: "This policy makes no attention map; d2 does." });
  const first = h("span", "", { textContent: "1" }), last = h("span");
  const more = h("p", "d2-more"), legend = h("div", "d2-legend");
  const el = h("section", `d2-map d2-map-${spec.key}`, { "aria-label": spec.title },
    h("h4", "d2-title", { textContent: spec.title }), more,
    h("div", "d2-frame", {}, h("div", "d2-steps", { "aria-hidden": "true" }, first, h("em", "", { textContent: "step" }), last), plane, strip, absent), legend);
  return { spec, el, plane, canvas, strip, absent, more, legend, last, store, ctx, image: null };
}

function resetStore(map, T, steps) {
  map.store.width = T;
  map.store.height = steps;
  map.image = new ImageData(T, 1);
  map.pixels = new Uint32Array(map.image.data.buffer);
}

function drawRow(map, model, s, colours) {
  map.pixels.fill(0);
  if (model.recs[s]) map.spec.row(map.pixels, model.recs[s], model, colours);
  map.ctx.putImageData(map.image, 0, s);
}

function showMap(map, model, x0, x1) {
  const { canvas } = map, ctx = canvas.getContext("2d"), steps = model.recs.length;
  ctx.clearRect(0, 0, canvas.width, canvas.height);
  if (!steps || !canvas.width) return;
  ctx.imageSmoothingEnabled = x1 - x0 > canvas.width || model.expected > canvas.height;   // shrinking must not drop columns
  ctx.drawImage(map.store, x0, 0, x1 - x0, steps, 0, 0, canvas.width, canvas.height * steps / model.expected);
}

// Beside the cache map: one bar per step, as long as the share of positions reused.
function showStrip(map, model, ink) {
  const { strip } = map, ctx = strip.getContext("2d"), row = strip.height / model.expected;
  ctx.clearRect(0, 0, strip.width, strip.height);
  ctx.fillStyle = ink;
  for (const rec of model.recs) {
    if (!rec) continue;
    const top = Math.round(rec.s * row), next = Math.round((rec.s + 1) * row);   // whole pixels, or the bars shimmer
    ctx.fillRect(0, top, Math.max(0, hitRate(rec, model.T)) * strip.width, Math.max(1, next - top));
  }
}

// ---------------------------------------------------------------- the page: mount

const STATS = [
  ["step", "step", "One denoising step: one pass of the model over what must be computed, then a few tokens are written. Shown: the step on view / steps received so far."],
  ["tps", "tokens / s", "Answer tokens before the first end token (EOS), divided by the seconds the run has taken, both up to the step on view. The padding after the end does not count."],
  ["hit", "cache hit rate", "Of all positions in all steps up to the step on view, the share that came from the cache: 1 − recomputed positions / (steps × canvas length). Where layers differ, recomputed positions are the mean over the layers."],
  ["flops", "FLOPs vs no cache", "Floating-point operations of this run up to the step on view, divided by those of the same steps without a cache. 0.31× means about a third of the arithmetic. A second look that the decoder takes counts as work of the run alone."],
];

function mount(element, { onDetail, onState } = {}) {
  const uid = `d2-${++mounted}`, off = new AbortController();
  const on = (target, type, fn, more) => target.addEventListener(type, fn, { signal: off.signal, ...more });
  let model = emptyModel(), lastText = null;
  let step = -1, live = true, zoom = "all", mode = "order", dark = false, colours = null;
  let hover = null;                       // {p, s or null for the step on view, chip: element or null}
  let chips = [], marked = null;          // marked: the position outlined now
  let frame = 0, playing = 0, dirty = true, drawn = 0, painted = 0, drawnFor = "", shownZoom = "", legendFor = "", countedUpTo = 0, bitsSeen = 0;
  let saidAt = 0, sayTimer = 0, tipOf = null;      // tipOf: the control whose words the tooltip shows
  let mapOpen = false, mapShown = null, mapAskedFor = "", mapAsked = 0, mapTimer = 0;

  // A control whose meaning pops up by mouse, keyboard and touch alike.
  function explained(button, words) {   // words: an element that holds them
    const tell = () => { showTip(button, [h("p", "", { textContent: words.textContent })]); tipOf = button; };
    for (const type of ["pointerenter", "focus", "click"]) on(button, type, tell);
    on(button, "pointerleave", (e) => { if (e.pointerType !== "touch") hideTip(); });   // a finger leaves by lifting
    on(button, "blur", hideTip);
    return button;
  }

  // ---- skeleton
  const stats = {}, help = h("div", "d2-sr");
  const header = h("div", "d2-stats", {}, ...STATS.map(([key, label, definition]) => {
    const words = h("span", "", { id: `${uid}-${key}`, textContent: definition });
    help.append(words);
    stats[key] = h("span", "d2-value", { textContent: "–" });
    return explained(h("button", "d2-stat", { type: "button", "aria-describedby": words.id }, stats[key], h("span", "d2-label", { textContent: label })), words);
  }));
  const back = iconButton("back", "Step back"), play = iconButton("play", "Play"), next = iconButton("next", "Step forward");
  play.classList.add("d2-play");
  const range = h("input", "d2-range", { type: "range", min: 0, max: 0, value: 0, step: 1, "aria-label": "Denoising step" });
  const speed = h("select", "d2-speed", { "aria-label": "Replay speed" }, ...[5, 15, 30, 60].map((n) => h("option", "", { value: n, textContent: `${n} steps/s`, selected: n === 15 })));
  const liveButton = h("button", "d2-live", { type: "button", title: "Follow the newest step (End)" }, h("i", "d2-lamp"), h("span", "", { textContent: "live" }));
  const sentence = h("p", "d2-sentence"), why = h("p", "d2-why"), read = h("p", "d2-readout");
  const spoken = h("p", "d2-sr", { "aria-live": "polite" });
  const note = h("p", "d2-note", { role: "status", hidden: true });
  const bar = h("div", "d2-topbar", {}, h("div", "d2-transport", {}, back, play, next, range, speed, liveButton), read);

  const answer = h("div", "d2-chips", { role: "listbox", "aria-label": "Answer tokens, by position", "aria-orientation": "horizontal" });
  const prompt = h("div", "d2-chips d2-prompt", { role: "listbox", "aria-label": "Prompt tokens, by position", "aria-orientation": "horizontal" });
  const promptTitle = h("summary", "d2-summary"), chipLegend = h("div", "d2-legend");
  const asked = h("p", "d2-asked"), made = h("p", "d2-more");
  const left = h("div", "d2-left", {}, h("div", "d2-said", {}, sentence, why, note), h("div", "d2-which", {}, asked, made),
    h("details", "d2-fold", {}, promptTitle, prompt),
    h("div", "d2-head", {}, h("h4", "d2-title", { textContent: "Answer" }),
      choice("Colour of the tokens", [["order", "order"], ["confidence", "confidence"], ["reason", "recomputed now"]], mode, (v) => { mode = v; schedule(); })),
    answer, chipLegend);

  const maps = MAPS.map(makeMap), byKey = Object.fromEntries(maps.map((m) => [m.spec.key, m]));
  const axis = h("div", "d2-axis", { "aria-hidden": "true" }, h("span", "d2-axis-prompt"), h("span", "d2-axis-answer"));
  const detailButton = h("button", "d2-text", { type: "button", "aria-expanded": "false", hidden: true, textContent: "show this step's attention map" });
  const detailCanvas = h("canvas", "d2-detail-canvas"), detailNote = h("p", "d2-more", { role: "status" });
  const detailBox = h("div", "d2-detail-box", {}, detailCanvas, ...["d2-hair", "d2-hair-row"].map((c) => h("div", c)));
  const detailNow = h("button", "d2-text", { type: "button", textContent: "load the map of the step on view" });
  const detail = h("div", "d2-detail", { hidden: true }, detailNote, detailBox, detailNow);
  byKey.rollout.el.append(detailButton, detail);
  const whys = Object.fromEntries(model.reasons.map((r) => [r.key, h("span", "", { id: `${uid}-why-${r.key}` })]));
  help.append(...Object.values(whys));
  const reasonLegends = [reasonLegend(byKey.cache.legend), reasonLegend(h("div", "d2-reasons"))];   // the second is for the chips
  const againMarks = [0, 1].map(() => swatch(MASKED_NOW, "masked again in this step"));   // in the legends of the map and of the chips
  byKey.cache.strip.before(h("span", "d2-striplabel", { textContent: "hit rate", "aria-hidden": "true" }));
  const right = h("div", "d2-right", {},
    h("div", "d2-head", {}, h("h4", "d2-title", { textContent: "Every position, every step" }),
      choice("Part of the canvas", [["all", "whole canvas"], ["answer", "answer only"]], zoom, (v) => { zoom = v; hover = null; schedule(); })),
    h("p", "d2-more", { textContent: "One column is one position of the canvas, one line is one denoising step; time runs downwards. Point anywhere to follow a position, click to go to that step." }),
    axis, ...maps.map((m) => m.el));

  const tip = h("div", "d2-tip", { id: `${uid}-tip`, role: "tooltip", hidden: true });
  const masks = h("div", "d2-demo", { "aria-hidden": "true" }, ...["The", "", "", " cache", "", " is", "", "", " warm", ""].map((t) => h("span", `d2-chip ${t ? "d2-settled" : "d2-masked"}`, { textContent: t })));
  const empty = h("div", "d2-empty", {}, masks, h("p", "d2-invite", { textContent: "Press Run: an answer will appear out of masks." }),
    h("p", "d2-more", { textContent: "At every step a few masks become tokens. You will see which positions it computes again, and which it takes from its cache." }));
  const full = h("div", "d2-full", { hidden: true }, header, bar, h("div", "d2-body", {}, left, right));
  const inner = h("div", "d2-inner", {}, empty, full, spoken, help, tip);
  const root = h("div", "d2-stage", { tabIndex: 0, role: "group", "aria-label": "Denoising stage: arrow keys step, space plays" }, inner);
  element.append(root);

  // ---- clock
  const lastStep = () => model.recs.length - 1;

  function goto(to, follow) {
    stop();
    live = Boolean(follow);
    step = clamp(Math.round(to), 0, Math.max(0, lastStep()));
    schedule();
  }

  function stop() {
    cancelAnimationFrame(playing);
    playing = 0;
    play.show("play", "Play");
  }

  function start() {
    if (lastStep() < 1) return;
    if (step >= lastStep()) step = 0;
    live = false;
    play.show("pause", "Pause");
    let before = performance.now(), due = 0;
    const tick = (now) => {
      due += Math.max(0, now - before) * Number(speed.value) / 1000;
      before = now;
      const n = Math.floor(due);
      due -= n;
      if (n) { step = Math.min(step + n, lastStep()); schedule(); }
      if (step < lastStep()) playing = requestAnimationFrame(tick);
      else { stop(); live = model.status === "running"; schedule(); }   // caught up with the run: follow it
    };
    playing = requestAnimationFrame(tick);
    schedule();
  }

  const toggle = () => { if (playing) { stop(); schedule(); } else start(); };
  const goLive = () => goto(lastStep(), true);
  on(back, "click", () => goto(step - 1));
  on(next, "click", () => goto(step + 1));
  on(play, "click", toggle);
  on(liveButton, "click", goLive);
  on(range, "input", () => goto(Number(range.value)));

  // ---- keyboard: on focus inside, or on hover while nothing else on the page has the focus
  const KEYS = { ArrowLeft: () => goto(step - 1), ArrowRight: () => goto(step + 1), Home: () => goto(0), End: goLive, " ": toggle };

  on(document, "keydown", (e) => {
    const focused = root.contains(document.activeElement), free = !document.activeElement || document.activeElement === document.body;
    if (e.key === "Escape") { hover = null; hideTip(); schedule(); }
    if (e.defaultPrevented || e.altKey || e.ctrlKey || e.metaKey || !model.run || !KEYS[e.key]) return;
    if (!focused && !(free && root.matches(":hover"))) return;
    const tag = focused ? document.activeElement.tagName : "";
    if (tag === "SELECT" || (e.key === " " && (tag === "BUTTON" || tag === "SUMMARY"))) return;   // theirs
    e.preventDefault();
    KEYS[e.key]();
  });

  // Arrow keys walk the chips; up and down go to the nearest chip of the line above or below.
  function chipKeys(e) {
    const list = e.currentTarget, here = e.target.closest("[data-p]"), all = [...list.querySelectorAll("[data-p]")];
    const i = all.indexOf(here), x = here ? here.offsetLeft : 0;
    const nearest = (line) => line.reduce((best, el) => (!best || Math.abs(el.offsetLeft - x) < Math.abs(best.offsetLeft - x) ? el : best), null);
    let to;
    if (e.key === "ArrowLeft") to = all[i - 1];
    else if (e.key === "ArrowRight") to = all[i + 1];
    else if (e.key === "ArrowUp" || e.key === "ArrowDown") {
      const beyond = all.filter((el) => (e.key === "ArrowUp" ? el.offsetTop < here.offsetTop - 8 : el.offsetTop > here.offsetTop + 8));
      const line = e.key === "ArrowUp" ? beyond.at(-1) : beyond[0];
      to = line && nearest(beyond.filter((el) => Math.abs(el.offsetTop - line.offsetTop) < 8));
    } else return;
    e.preventDefault();
    if (to) { here.tabIndex = -1; to.tabIndex = 0; to.focus(); }
  }

  // ---- pointing
  function chipEvents(list) {
    const point = (e) => { const el = e.target.closest("[data-p]"); if (el) setHover({ p: Number(el.dataset.p), s: null, chip: el }); };
    on(list, "pointerover", point);
    on(list, "focusin", point);
    on(list, "pointerleave", (e) => { if (e.pointerType !== "touch") setHover(null); });
    on(list, "focusout", () => { if (hover && hover.chip) setHover(null); });   // not a mark that a map has just set
    on(list, "keydown", chipKeys);
  }
  [answer, prompt].forEach(chipEvents);

  const window_ = () => (zoom === "answer" ? [model.P, model.T] : [0, model.T]);

  function cellAt(plane, e) {
    const box = plane.getBoundingClientRect(), [x0, x1] = window_();
    const p = x0 + Math.floor((e.clientX - box.left) / box.width * (x1 - x0)), s = Math.floor((e.clientY - box.top) / box.height * model.expected);
    return { p: clamp(p, x0, x1 - 1), s: clamp(s, 0, Math.max(0, lastStep())), chip: null };
  }

  for (const { plane } of maps) {
    const point = (e) => { if (model.run) setHover(cellAt(plane, e)); };
    on(plane, "pointermove", point);
    on(plane, "pointerdown", point);
    on(plane, "pointerleave", (e) => { if (e.pointerType !== "touch") setHover(null); });   // a finger leaves by lifting: keep its mark
    on(plane, "click", (e) => { if (model.run) goto(cellAt(plane, e).s); });
  }
  on(document, "pointerdown", (e) => {
    if (hover && !root.contains(e.target)) setHover(null);
    if (tipOf && !tipOf.contains(e.target)) hideTip();
  });

  function setHover(to) {
    hover = to;
    schedule();
  }

  // ---- tooltip: one floating box, kept inside the stage
  function showTip(anchor, kids) {
    tipOf = null;
    tip.replaceChildren(...kids);
    tip.hidden = false;
    const a = anchor.getBoundingClientRect(), box = inner.getBoundingClientRect(), w = tip.offsetWidth, ht = tip.offsetHeight;
    const below = a.bottom + 8 + ht < global.innerHeight || a.top - 8 - ht < 0;
    tip.style.left = `${clamp(a.left + a.width / 2 - w / 2 - box.left, 8, Math.max(8, box.width - w - 8))}px`;
    tip.style.top = `${(below ? a.bottom + 8 : a.top - 8 - ht) - box.top}px`;
  }
  function hideTip() { tip.hidden = true; tipOf = null; }

  function tipContent(d) {
    const title = h("p", "d2-tip-token", { textContent: d.masked ? (d.again === null ? "still masked" : "masked again") : d.eos ? "end token" : visible(d.text) });
    const kids = [title, h("p", "d2-tip-where", { textContent: d.place })];
    if (d.write) kids.push(h("p", "", { textContent: `written in step ${d.step + 1} with confidence ${fixed(d.conf, 2)}` }));
    if (d.again !== null) kids.push(h("p", "", { textContent: `${d.was === null ? "its token" : quoted(d.was)} was masked again in step ${d.again + 1}` }));
    if (d.masked && d.candidate !== null) kids.push(h("p", "", { textContent: `its best guess now has confidence ${fixed(d.candidate, 2)}` }));
    if (d.bars.length) kids.push(h("p", "d2-tip-caption", { textContent: barsCaption(model.start) }), h("div", "d2-top", {}, ...d.bars.flatMap(({ text, share }) => {
      const fill = h("i");
      fill.style.width = `${clamp(share, 0, 1) * 100}%`;
      return [h("span", "d2-top-token", { textContent: text }), h("span", "d2-top-bar", {}, fill), h("span", "d2-top-p", { textContent: share === null ? "written" : fixed(share, 2) })];
    })));
    const layered = model.start.by_layer && !policyWords(model.start).even ? ", in at least one layer" : "";
    kids.push(h("p", "", { textContent: `recomputed in ${d.recomputed} of ${plural(d.steps, "step")} so far${layered}` }));
    kids.push(h("p", "d2-tip-reasons", {}, ...model.reasons.filter((r) => d.byReason[r.key]).map((r) => swatch(r.colour, r.label, d.byReason[r.key]))));
    return kids;
  }

  // ---- chips
  function buildChips() {
    const make = (p) => h("span", "d2-chip", { tabIndex: p === 0 || p === model.P ? 0 : -1, role: "option", "aria-selected": "false", "data-p": p });
    chips = Array.from({ length: model.T }, (_, p) => make(p));
    prompt.replaceChildren(...chips.slice(0, model.P));
    answer.replaceChildren(...chips.slice(model.P));
    chips.forEach((el, p) => { el.was = ""; if (p < model.P) paintChip(el, p); });
    promptTitle.textContent = `Prompt (${plural(model.P, "token")})`;
    asked.textContent = asked.title = promptText(model);
    made.textContent = madeBy(model.start);
  }

  function chipFill(p, d) {
    const reason = mode === "reason" && model.recs[step] ? reasonOf(model.recs[step].y[p]) : null;
    if (mode === "reason") return reason ? REASONS.find((r) => r.key === reason).colour : "";
    if (!d.write) return "";
    const v = mode === "order" ? d.write.s / Math.max(1, model.expected - 1) : d.write.conf;
    return css(colourAt(mode, v, dark));
  }

  function paintChip(el, p) {
    const d = chipData(model, p, step), fill = chipFill(p, d), is = `${d.state}|${d.eos}|${fill}|${d.text}`;
    if (el.was === is) return;              // most chips stay as they are from step to step
    el.was = is;
    el.className = `d2-chip d2-${d.state}${d.masked ? " d2-masked" : ""}${d.eos ? " d2-eos" : ""}${fill ? " d2-filled" : ""}`;
    el.textContent = d.eos ? "end" : d.masked ? "" : visible(d.text);
    if (d.masked) el.setAttribute("aria-label", `${placeOf(model, p)}, masked`); else el.removeAttribute("aria-label");
    el.style.setProperty("--d2-fill", fill || "transparent");
    const br = el.nextSibling && el.nextSibling.tagName === "BR" ? el.nextSibling : null, wants = d.text.endsWith("\n");
    if (wants && !br) el.after(h("br"));
    if (!wants && br) br.remove();
  }

  // ---- painting: everything waits for the next frame, and a frame paints once
  function schedule() {
    if (!frame) frame = requestAnimationFrame(paint);
  }

  function paint() {
    frame = 0;
    if (live) step = lastStep();
    const empty_ = !model.run;
    empty.hidden = !empty_;
    full.hidden = empty_;
    if (!empty_) {
      paintMaps();
      paintStep();
      paintHover();
    }
    const rec = model.recs.at(-1);
    element.dispatchEvent(new CustomEvent("d2:paint", { detail: { step, seq: rec ? rec.seq : -1, time: performance.now() } }));
    if (onState) onState(state());
  }

  // New rows only; all rows again when the run, the theme or the scale of the order has changed.
  function paintMaps() {
    const key = `${model.run}|${dark}|${model.expected}`;
    if (drawnFor !== key) {
      drawnFor = key;
      drawn = painted = 0;
      colours = tables(dark, model.expected);
      maps.forEach((m) => resetStore(m, model.T, model.expected));
      paintLegends();
      dirty = true;
    }
    if (drawn === model.recs.length && !dirty && shownZoom === zoom) return;
    for (; drawn < model.recs.length; drawn++) {
      for (const m of maps) drawRow(m, model, drawn, colours);
      if (model.recs[drawn]) painted++;       // a lost record leaves a blank row
    }
    const [x0, x1] = window_();
    maps.forEach((m) => showMap(m, model, x0, x1));
    showStrip(byKey.cache, model, dark ? "#7f93ad" : "#8fa3bb");
    shownZoom = zoom;
    dirty = false;
    right.style.setProperty("--d2-cols", x1 - x0);
    right.style.setProperty("--d2-split", (model.P - x0) / (x1 - x0));
    right.style.setProperty("--d2-rows", model.expected);
    right.style.setProperty("--d2-got", model.recs.length);
    right.classList.toggle("d2-zoomed", zoom === "answer" || model.P === 0);
  }

  function paintLegends() {
    for (const r of model.reasons) {
      whys[r.key].textContent = r.why;
      for (const { swatches } of reasonLegends) swatches.find((x) => x.key === r.key).label.textContent = r.label;
    }
    byKey.density.legend.replaceChildren(colourBar("density", dark, ["0", "0.5", "1"], "share of the neighbourhood that is known"));
    byKey.rollout.legend.replaceChildren(colourBar("rollout", dark, ["1/16", "1/2", "4", "32"], "× the mean mass of a position (log scale)"));
    byKey.order.legend.replaceChildren(swatch(css(rgb(PAPER[dark ? "dark" : "light"].masked)), "masked"), swatch(WRITTEN_NOW, "written in this step"), againMarks[0],
      colourBar("order", dark, ["1", String(model.expected)], "step of writing"));
    for (const m of maps) {
      m.more.textContent = CAPTIONS[m.spec.key](model.start);
      m.last.textContent = model.expected;
    }
    const none = !model.start.rollout;
    byKey.rollout.el.classList.toggle("d2-none", none);
    byKey.rollout.absent.hidden = !none;
    detailButton.hidden = none || !onDetail;
    showDetail();
    axis.children[0].textContent = `prompt · ${model.P}`;
    axis.children[1].textContent = `answer · ${model.G}`;
    byKey.density.plane.lastChild.textContent = byKey.order.plane.lastChild.textContent = model.P / model.T < 0.3 ? "given" : "the prompt is given, never masked";
    root.classList.toggle("d2-many", model.G > 256);
  }

  function paintStep() {
    const rec = model.recs[step], totals = formatTotals(totalsAt(model, step) || { hit_rate: hitRateSoFar(model, step) });
    chips.forEach(paintChip);
    stats.step.textContent = `${step + 1} / ${model.recs.length}`;
    for (const key of ["tps", "hit", "flops"]) stats[key].textContent = totals[key];
    range.max = Math.max(0, lastStep());
    range.value = Math.max(0, step);
    range.setAttribute("aria-valuetext", `step ${step + 1} of ${model.recs.length}`);
    back.disabled = step <= 0;
    next.disabled = step >= lastStep();
    liveButton.classList.toggle("d2-on", live && model.status === "running");
    liveButton.classList.toggle("d2-paused", model.paused);
    liveButton.lastChild.textContent = lampText(model);
    liveButton.setAttribute("aria-pressed", String(live));
    sentence.textContent = rec ? explain(rec, model) : model.recs.length ? `Step ${step + 1}: its record was lost.` : `All ${model.G} answer positions are masked; waiting for the first step.`;
    why.textContent = rec ? explainWhy(rec, model) : "";
    right.style.setProperty("--d2-step", step);
    paintCounts(rec);
    paintNote();
    say();
    paintDetail();
  }

  // The legend of the cache map: made once, so that the focus can rest on it while a run goes on.
  function reasonLegend(el) {
    const swatches = model.reasons.map(({ key, colour = "" }) => {
      const dot = h("i", "d2-dot"), label = h("span"), count = h("b");
      dot.style.background = colour;
      return { key, dot, label, count, el: explained(h("button", "d2-swatch", { type: "button", "aria-describedby": whys[key].id }, dot, label, count), whys[key]) };
    });
    el.replaceChildren(...swatches.map((x) => x.el));
    return { el, swatches };
  }

  // It counts the positions of the step on view, for the reasons seen so far only.
  function paintCounts(rec) {
    const key = `${drawnFor}|${step}|${mode}|${drawn}`;
    if (legendFor === key) return;
    legendFor = key;
    const counts = { ...(rec ? reasonCounts(rec) : {}), reused: rec ? model.T - touchedIn(rec) : 0 };
    for (; countedUpTo < model.recs.length; countedUpTo++) for (const byte of model.recs[countedUpTo]?.y || []) bitsSeen |= byte;
    const seen = new Set(["reused", ...reasonsIn(bitsSeen)]);
    for (const { swatches } of reasonLegends) for (const x of swatches) {
      if (x.key === "reused") x.dot.style.background = PAPER[dark ? "dark" : "light"].reused;
      x.el.hidden = !seen.has(x.key);
      x.count.textContent = counts[x.key] || 0;
    }
    const ring = swatch(WRITTEN_NOW, "written in this step"), tail = { reason: reasonLegends[1].el };
    if (mode === "order") tail.order = colourBar("order", dark, ["1", String(model.expected)], "step of writing");
    if (mode === "confidence") tail.confidence = colourBar("confidence", dark, ["0", "0.5", "1"], confidenceUnit(model.start));
    if (chipLegend.lastChild !== tail[mode]) chipLegend.replaceChildren(ring, againMarks[1], tail[mode]);   // not again: a swatch may hold the focus
    for (const mark of againMarks) mark.hidden = !model.again;
  }

  function paintNote() {
    const lines = [];
    if (model.start.stored) lines.push("A stored run; press Run for a live one.");
    if (model.status === "done" && model.note) lines.push(model.note);
    if (model.status === "stopped") lines.push(`Stopped after ${plural(model.recs.length, "step")}. ${model.note}`);
    if (model.status === "failed") lines.push(`The run failed${model.note ? `: ${model.note}` : ""}.`);
    if (model.gaps) lines.push(`${plural(model.gaps, "record")} lost on the way; their lines are blank.`);
    const text = lines.join(" ").trim();
    if (note.textContent !== text) note.textContent = text;
    note.hidden = !text;
    note.classList.toggle("d2-alert", model.status === "failed" || model.gaps > 0);
  }

  // Tell a screen reader where we are, at most every 1.5 s, and always the last place.
  function say() {
    const wait = saidAt + 1500 - performance.now();
    if (sayTimer || spoken.textContent === sentence.textContent) return;
    sayTimer = setTimeout(() => { sayTimer = 0; saidAt = performance.now(); spoken.textContent = sentence.textContent; }, Math.max(200, wait));
  }

  function paintHover() {
    const p = hover && hover.p < model.T ? hover.p : null, s = hover && hover.s !== null ? hover.s : step;
    if (marked !== p) {
      chips[marked]?.classList.remove("d2-marked");
      chips[marked]?.removeAttribute("aria-describedby");
      marked = p;
    }
    const [x0] = window_(), seen = p !== null && p >= x0;
    right.classList.toggle("d2-pointed", seen);
    if (p === null || s < 0) {
      read.textContent = "Point at a token or a map to follow one position.";
      read.classList.add("d2-quiet");
      if (!tipOf) hideTip();
      return;
    }
    chips[p].classList.add("d2-marked");
    right.style.setProperty("--d2-col", p - x0);
    right.style.setProperty("--d2-at", p);
    const data = tooltipData(model, p, s);
    read.textContent = `step ${s + 1}, ${readout(data)}`;
    read.classList.remove("d2-quiet");
    if (hover.chip) {
      showTip(hover.chip, tipContent(data));
      chips[p].setAttribute("aria-describedby", tip.id);
    } else if (!tipOf) hideTip();
  }

  // ---- the T x T map of one step, fetched on request; it stays open from run to run
  const mapKey = () => `${model.run}|${step}`;

  function showDetail() {
    detail.hidden = !mapOpen || detailButton.hidden;
    detailButton.setAttribute("aria-expanded", String(!detail.hidden));
    detailButton.textContent = detail.hidden ? "show this step's attention map" : "hide the attention map";
  }

  on(detailButton, "click", () => {
    mapOpen = !mapOpen;
    showDetail();
    if (mapOpen && !(mapShown && mapShown.key === mapKey())) loadDetail();
  });
  on(detailNow, "click", loadDetail);

  function paintDetail() {
    if (detail.hidden) return;
    const key = mapKey(), old = !mapShown || mapShown.key !== key, due = old && mapAskedFor !== key;
    detailBox.classList.toggle("d2-stale", old);
    if (mapShown && (mapShown.dark !== dark || mapShown.noted !== model.run)) drawDetail();
    clearTimeout(mapTimer);
    if (due && wantsMap(model, live)) mapTimer = setTimeout(loadDetail, 250);
    detailNow.classList.toggle("d2-away", !due || wantsMap(model, live) || step < 0);
  }

  async function loadDetail() {
    if (step < 0) return;
    const asked = ++mapAsked, at = step, run = model.run, { T, P } = model;
    mapAskedFor = mapKey();
    if (!mapShown) detailNote.textContent = `Loading the map of step ${at + 1} …`;
    let got = null, problem = "there is none for this step";
    try { got = await onDetail(at); } catch (error) { problem = String(error && error.message || error); }
    if (asked !== mapAsked || run !== model.run) return;     // the reader has moved on
    mapShown = got && { ...got, key: `${run}|${at}`, run, at, T, P };
    if (got) drawDetail();
    else {
      detailCanvas.width = detailCanvas.height;              // blank
      detailNote.textContent = `No map: ${problem}.`;
    }
    schedule();
  }

  function drawDetail() {
    const { n, map, prompt: pooled, run, at, T, P } = mapShown;
    const bytes = decodePlane(map), lut = table((u) => colourAt("rollout", u / 255, dark)), image = new ImageData(n, n);
    const pixels = new Uint32Array(image.data.buffer);
    for (let i = 0; i < pixels.length; i++) pixels[i] = lut[bytes[i]];
    detailCanvas.width = detailCanvas.height = n;
    detailCanvas.getContext("2d").putImageData(image, 0, 0);
    detailBox.style.setProperty("--d2-part", (n !== T && pooled === P ? P / T : pooled / n));   // a pooled map keeps the share
    detailBox.style.setProperty("--d2-all", T);
    detailNote.textContent = mapNote(at, dark, run !== model.run);
    mapShown.dark = dark;
    mapShown.noted = model.run;
  }

  // ---- surroundings: size and theme
  const sizes = new ResizeObserver(() => {
    const ratio = Math.min(2, global.devicePixelRatio || 1);
    for (const m of maps) for (const c of [m.canvas, m.strip]) {
      const w = Math.round(c.clientWidth * ratio), ht = Math.round(c.clientHeight * ratio);
      if (c.width !== w || c.height !== ht) { c.width = w; c.height = ht; dirty = true; }
    }
    schedule();
  });
  sizes.observe(right);

  const night = global.matchMedia("(prefers-color-scheme: dark)");
  function readTheme() {
    const hosted = root.closest("gradio-app, .gradio-container");       // Gradio decides by its class alone
    const now = Boolean(root.closest(".dark")) || (!hosted && night.matches);
    root.classList.toggle("d2-dark", now);
    if (dark !== now) { dark = now; schedule(); }
  }
  const themes = new MutationObserver(readTheme);
  for (const el of [document.documentElement, document.body]) themes.observe(el, { attributes: true, attributeFilter: ["class"] });
  on(night, "change", readTheme);

  // ---- the outside
  const state = () => ({ run: model.run, received: model.received, painted, step, steps: model.recs.length, gaps: model.gaps, live, status: model.status, paused: model.paused });

  function receive(text) {
    if (text === lastText) return;          // the same message again, see addRecord
    lastText = text;
    const before = model;
    model = applyText(model, text);
    if (model !== before) reset();
    schedule();
  }

  function reset() {
    stop();
    live = true;
    hover = null;
    step = -1;
    drawn = painted = 0;
    drawnFor = "";
    countedUpTo = bitsSeen = 0;
    marked = null;
    buildChips();
  }

  function destroy() {
    off.abort();
    sizes.disconnect();
    themes.disconnect();
    stop();
    cancelAnimationFrame(frame);
    clearTimeout(sayTimer);
    clearTimeout(mapTimer);
    root.remove();
  }

  readTheme();
  schedule();
  return { receive, destroy, state, goto: (to) => goto(to) };
}

global.D2Stage = { mount, pure: { REASONS, POLICY_WORDS, DECODER_WORDS, reasonsOf, decodePlane, confidence, density, rolloutMass, massShade, reasonsIn, reasonOf, colourAt, hitRate, hitRateSoFar,
  reasonCounts, touchedIn, shade, totalsAt, visible, formatTotals, explain, explainWhy, captions: CAPTIONS, promptText, madeBy, barsCaption, candidateBars, confidenceUnit, lampText, wantsMap, mapNote,
  STATS, MAPS, emptyModel, applyEvent, applyText, writeAt, chipData, tooltipData, readout } };
})(globalThis);
