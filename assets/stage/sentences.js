/* What the stage says about a run: sentences, captions, tooltips. Pure. */
import { cellCount, gridPlace } from "./grid.js";
import {
  amount,
  confidence,
  density,
  fixed,
  percent,
  plural,
  rolloutMass,
  short,
} from "./numbers.js";
import { decoderWords, labelIn, policyWords, reasonCounts, reasonsIn } from "./reasons.js";
import { chipData, layersDiffer, textBefore, touchedIn } from "./run.js";

// Make every character visible: a newline as an arrow, other control codes as their pictures.
function visible(text) {
  if (text === "") return "·";
  return text
    .replace(/\r?\n/g, "↵")
    .replace(/\p{Cc}/gu, (c) => (c < " " ? String.fromCharCode(0x2400 + c.charCodeAt(0)) : c));
}
const quoted = (text) => `'${visible(text)}'`;

function formatTotals(totals) {
  const t = totals || {};
  const tps = t.tps ?? NaN,
    ratio = t.flops_none ? t.flops / t.flops_none : NaN;
  return {
    tps: fixed(tps, tps < 10 ? 2 : 1),
    hit: percent(t.hit_rate ?? NaN),
    flops: Number.isFinite(ratio) ? `${fixed(ratio, 2)}×` : "–",
  };
}

// In words a cell of a grid has a row and a column; a position counts from 1, as a step does; in the
// data both count from 0.
const numberOf = (run, p) => (run.gapped ? p : p - run.P) + 1; // of an answer or a text with gaps
function placeOf(run, p) {
  const inGrid = gridPlace(run.grid, p);
  if (inGrid) return inGrid;
  if (run.gapped) return `position ${numberOf(run, p)}`;
  return p < run.P ? `prompt position ${p + 1}` : `answer position ${numberOf(run, p)}`;
}
// The same where a sentence begins with it.
const startingPlace = (run, p) => placeOf(run, p).replace(/^./, (c) => c.toUpperCase());
const tokenName = (run, text) => (run.eos.has(text) ? "end" : visible(text));

// "Step 12: recomputed 41 of 192 positions, then wrote ' apples' at answer position 5 with ..."
const sureness = (conf) =>
  conf === null || conf === undefined ? "by hand" : `with confidence ${fixed(conf, 2)}`;

function explain(record, run, step) {
  if (!record)
    return run.records.length > step && step >= 0
      ? `Step ${step + 1}: its record was lost.`
      : `All ${run.blank} ${run.gapped ? "masks are open" : "answer positions are masked"}; waiting for the first step.`;
  const written = [...record.w].sort((a, b) => a[0] - b[0]),
    n = written.length;
  const name = (text) =>
    text === null ? "a token" : run.eos.has(text) ? "the end token" : quoted(text);
  const at = (p) => gridPlace(run.grid, p) || numberOf(run, p),
    by = run.gapped ? ", by position" : ", by answer position";
  const some = (list) =>
    `${run.grid ? "" : by}: ${list
      .slice(0, 3)
      .map(([p, text]) => `${name(text)} (${at(p)})`)
      .join(", ")}${list.length > 3 ? ` and ${list.length - 3} more` : ""}`;
  let wrote = "wrote nothing";
  if (n === 1) {
    const [[p, text, conf]] = written;
    wrote = `wrote ${name(text)} at ${placeOf(run, p)} ${sureness(conf)}`;
  }
  if (n > 1) wrote = `wrote ${n} tokens${some(written)}`;
  const again = record.m.map((p) => [p, textBefore(run, p, record.s)]);
  if (again.length === 1)
    wrote += `; masked ${name(again[0][1])} again at ${placeOf(run, again[0][0])}`;
  if (again.length > 1) wrote += `; masked ${again.length} tokens again${some(again)}`;
  const mean = layersDiffer(record) ? ` (mean over ${run.layers} layers)` : "";
  return (
    `Step ${record.s + 1}: recomputed ${amount(record.rows)} of ${run.T} positions${mean}, then ` +
    `${wrote}.`
  );
}

// The second half, for readers who are new to it: why positions were recomputed.
function explainWhy(record, run) {
  const rest = run.T - touchedIn(record),
    differ = layersDiffer(record);
  if (rest === 0 && !differ) return "Every position was computed, nothing came from the cache.";
  const counts = reasonCounts(record),
    its = rest === 1 ? "its" : "their",
    { kept = "keys and values (K,V)" } = policyWords(run.start);
  const parts = run.reasons
    .filter((r) => counts[r.key])
    .map((r) => `${counts[r.key]} × ${r.label}`);
  const why = parts.length
    ? `Recomputed${differ ? " in at least one layer" : ""}: ${parts.join(", ")}. `
    : "";
  const evicted = record.out
    ? `, if not evicted: each layer left ${plural(amount(record.out), "position")} out of attention`
    : "";
  return (
    why +
    (rest
      ? `The other ${rest} reused ${its} cached ${kept}${evicted}.`
      : "The other layers reused what is cached.")
  );
}
// What each map shows. A caption must be true of the current run, so it asks for its knobs.
const knobsOf = (start, kind) => start.knobs?.[kind] || {};

const captions = {
  cache(start) {
    const { kept = "keys and values (K,V)", more = () => "", even } = policyWords(start),
      own = more(knobsOf(start, "policy"));
    const paler =
      start.by_layer && !even
        ? `, and is paler where only some of the ${start.layers} layers did`
        : "";
    return (
      `Grey: ${kept} reused from the cache. A coloured position was computed again in this ` +
      `step; the colour says why${paler}.${own && ` ${own}`}`
    );
  },
  density(start) {
    const { sigma, as_shipped: padded } = knobsOf(start, "decoder"),
      { tests, scores = "confidence", ownWidth } = decoderWords(start);
    const shipped =
      (policyWords(start).pads && knobsOf(start, "policy").as_shipped) || (sigma > 0 && padded);
    const edge = shipped
      ? "as shipped, the last answer position counts again beyond the right edge"
      : "nothing lies beyond the right edge, so the last positions reach about one half at most";
    const width = ownWidth
      ? `σ follows the spread of the latest writes, from ${short(start.sigma)} positions at first`
      : `σ = ${short(start.sigma)} positions`;
    const use = !(sigma > 0)
      ? "The decoder ignores it in this run (its sigma is 0)."
      : tests
        ? "What passes the decoder's test is written anyway; other guesses are ranked by " +
          "confidence times density, which favours places next to known text."
        : `The decoder multiplies ${scores} by it to rank its guesses, which favours places ` +
          "next to known text.";
    return (
      "How much of a position's neighbourhood is already known, nearer neighbours counting more. " +
      `A Gaussian, ${width}; ${edge}. ${use}`
    );
  },
  rollout(start) {
    const { rollout_p, as_shipped: shipped } = knobsOf(start, "policy");
    const next =
      rollout_p === 0 && !shipped
        ? "This run does not use it (its rollout p is 0)."
        : "The reused positions with the most rollout mass are recomputed next.";
    return start.rollout
      ? "Where attention leads, followed through all layers of this step. A recomputed position " +
          "passes its weight on to the positions it reads; a reused position keeps its own (1) " +
          `and gains what is passed to it. ${next}`
      : "";
  },
  order(start) {
    const { sigma } = knobsOf(start, "decoder"),
      { order, ownWidth } = decoderWords(start);
    const how = order ? `: ${order(knobsOf(start, "decoder"))}` : "",
      blocks = start.block_length < start.G ? ", block by block" : "";
    const prior = "favours places next to known text, so the order leans left to right";
    const lean = !(sigma > 0)
      ? ""
      : ownWidth
        ? ` The certainty prior, its width set by the run itself, ${prior}.`
        : ` The certainty prior (σ = ${short(sigma)}) ${prior}; set the decoder's sigma to 0 to ` +
          "let it jump.";
    return `When each token was written${blocks}${how}.${lean}`;
  },
};

// What is before the first mask of a run, and from there on, as a heading of it.
const partNames = (run) =>
  run.gapped ? ["before the first gap", "from the first gap on"] : ["prompt", "answer"];
// The prompt; or a text with its gaps, an underscore for each token that is to be written.
function promptText(run) {
  const given = new Map(run.start.given ?? []),
    rest = Array.from({ length: run.gapped ? run.G : 0 }, (_, i) => given.get(run.P + i) ?? null),
    tokens = [...run.prompt, ...rest],
    space = (p) => (p && tokens[p - 1] !== null ? " " : ""), // before a gap, as it was typed
    text = tokens.map((token, p) => token ?? `${space(p)}_`).join("");
  return text.replace(/\s+/g, " ").trim() || "(no prompt)";
}
// The same for a line on the page, where a grid shows its cells: "Sudoku: 30 of 81 cells are given".
function askedText(run) {
  const { grid } = run;
  if (!grid) return promptText(run);
  const text = (p) => run.prompt[p].trim(),
    given = grid.given.filter((p) => text(p) !== grid.blank).length,
    before = run.prompt.slice(0, grid.given[0]).join("").replace(/^Q: /, "").trim();
  return `${before} ${given} of ${cellCount(grid)} cells are given`;
}
const madeBy = (start) =>
  ["policy", "decoder", "model"]
    .filter((k) => start[k])
    .map((k) => `${k} ${start[k]}`)
    .join(" · ");

const confidenceUnit = (start) =>
  "confidence when " +
  `written${decoderWords(start).confidence ? ` (${decoderWords(start).confidence})` : ""}`;
const lampText = (run) => (run.status !== "running" ? "end" : run.paused ? "paused" : "live");

// The state of a run where it needs words: stored, ended early, failed, incomplete. How it ended is
// shown at its last step only: earlier steps still have masks to fill.
function noteOf(run, s) {
  const lines = [],
    atEnd = s >= run.records.length - 1;
  if (run.start.stored) lines.push("A stored run; press Run for a live one.");
  if (run.status === "done" && run.note && atEnd) lines.push(run.note);
  if (run.status === "stopped")
    lines.push(`Stopped after ${plural(run.records.length, "step")}. ${run.note}`);
  if (run.status === "failed") lines.push(`The run failed${run.note ? `: ${run.note}` : ""}.`);
  if (run.gaps) lines.push(`${plural(run.gaps, "record")} lost on the way; their lines are blank.`);
  return lines.join(" ").trim();
}

// The T x T map costs the server a pass: while a run is followed live, it is not fetched by itself.
const wantsMap = (run, live) =>
  run.records.length > 0 && (run.status !== "running" || run.paused || !live);

// dashed: whether the map has lines at the end of the prompt.
function mapNote(s, dark, before, dashed = true) {
  return (
    `${before ? "From the previous run: step" : "Step"} ${s + 1}, computed again by a full pass ` +
    "without a cache. Row i, column j: how much position i draws on position j, followed " +
    `through all layers${dashed ? "; dashed lines separate the prompt from the answer" : ""}. ` +
    `${dark ? "Brighter" : "Darker"} is more: the shade grows with the square root of the ` +
    "share, up to the largest on this map."
  );
}
// Everything the stage can say about position p at step s.
function tooltipData(run, p, s) {
  const record = run.records[s],
    chip = chipData(run, p, s),
    g = p - run.P,
    byReason = {};
  let recomputed = 0,
    steps = 0;
  for (let i = 0; i <= s; i++) {
    if (!run.records[i]) continue;
    const byte = run.records[i].y[p];
    steps++;
    if (byte) recomputed++;
    for (const key of reasonsIn(byte)) byReason[key] = (byReason[key] || 0) + 1;
  }
  return {
    ...chip,
    pos: p,
    answer: g >= 0 ? g : null,
    step: chip.write ? chip.write.s : null,
    conf: chip.write ? chip.write.conf : null,
    top: chip.write ? chip.write.top : [],
    at: s,
    place: placeOf(run, p),
    density: record && record.d && g >= 0 ? density(record.d[g]) : null,
    rollout: record && record.r ? rolloutMass(record.r[p]) : null,
    candidate: record && record.c && g >= 0 ? confidence(record.c[g]) : null,
    now: record ? reasonsIn(record.y[p]).map((key) => labelIn(run, key)) : null,
    layers:
      record && record.l && record.l[p] < run.layers
        ? `${record.l[p]} of ${run.layers} layers`
        : null,
    was: chip.again === null ? null : textBefore(run, p, chip.again),
    recomputed,
    steps,
    byReason,
  };
}

// "answer position 17: ' apples' - density 0.42, rollout 1.7, confidence 0.93, reused"
function readout(data) {
  const token = data.masked ? "masked" : data.eos ? "end" : quoted(data.text);
  const conf = data.conf ?? data.candidate,
    facts = [];
  if (data.density !== null) facts.push(`density ${fixed(data.density, 2)}`);
  if (data.rollout !== null)
    facts.push(`rollout ${fixed(data.rollout, data.rollout < 0.1 ? 3 : 1)}`);
  if (conf !== null) facts.push(`confidence ${fixed(conf, 2)}`);
  if (data.now)
    facts.push(
      data.now.length
        ? `recomputed${data.layers ? ` in ${data.layers}` : ""} (${data.now.join(", ")})`
        : "reused",
    );
  return `${data.place}: ${token} - ${facts.join(", ")}`;
}
const STATS = [
  [
    "step",
    "step",
    "One denoising step: one pass of the model over what must be computed, then a few tokens " +
      "are written. Shown: the current step / steps received so far.",
  ],
  [
    "tps",
    "tokens / s",
    "Answer tokens before the first end token (EOS), divided by the seconds the run has " +
      "taken, both up to the current step. The padding after the end does not count. It is wall " +
      "time, measured once on this machine: equal work can take unequal time; FLOPs compare the " +
      "work.",
  ],
  [
    "hit",
    "cache hit rate",
    "Of all positions in all steps up to the current step, the share that came from the " +
      "cache: 1 − recomputed positions / (steps × canvas length). Where layers differ, " +
      "recomputed positions are the mean over the layers.",
  ],
  [
    "flops",
    "FLOPs vs no cache",
    "Floating-point operations of this run up to the current step, divided by those of the " +
      "same steps without a cache. 0.31× means about a third of the arithmetic. A second look " +
      "that the decoder takes counts as work of the run alone.",
  ],
];

export {
  visible,
  quoted,
  formatTotals,
  placeOf,
  numberOf,
  startingPlace,
  tokenName,
  explain,
  explainWhy,
  knobsOf,
  captions,
  partNames,
  promptText,
  askedText,
  madeBy,
  confidenceUnit,
  lampText,
  noteOf,
  wantsMap,
  mapNote,
  tooltipData,
  readout,
  STATS,
};
