/* The life of one position over the steps of a run: what the model thought of it, when it was
 * recomputed and why, when it was written. And the lines that draw it. No document here. */
import { confidence, density, fixed, plural, drift } from "./numbers.js";
import { reasonOf, reasonsIn, labelIn } from "./reasons.js";
import { writeAt } from "./run.js";
import { placeOf, quoted } from "./sentences.js";

// The decoder ranks its guesses by this: confidence times density, or confidence alone without a prior.
const hasPrior = (model) => model.start?.knobs?.decoder?.sigma > 0;
const rankedBy = (model) => (hasPrior(model) ? "confidence × density" : "confidence");

// The block that is being filled in step s: that of the leftmost position masked before it. [from, to)
function openBlock(model, s) {
  const size = model.start?.block_length || model.G;
  for (let p = model.P; p < model.T; p++)
    if (!writeAt(model, p, s - 1)) {
      const from = model.P + Math.floor((p - model.P) / size) * size;
      return [from, Math.min(model.T, from + size)];
    }
  return [model.T, model.T];
}

// Where position p stands among the masked ones of the open block that got a guess in step s, best
// first; equal scores share a rank. null: it is none of them. {rank, of}
function rankOf(model, s, p) {
  const rec = model.recs[s],
    prior = hasPrior(model);
  if (!rec?.c || !rec.d || p < model.P) return null;
  const score = (g) => (rec.c[g] - 1) * (prior ? rec.d[g] : 1),
    [from, to] = openBlock(model, s);
  const runs = (q) => q >= from && q < to && rec.c[q - model.P] > 0 && !writeAt(model, q, s - 1);
  if (!runs(p)) return null;
  const own = score(p - model.P);
  let rank = 1,
    of = 0;
  for (let q = from; q < to; q++)
    if (runs(q)) {
      of++;
      if (score(q - model.P) > own) rank++;
    }
  return { rank, of };
}

const ranked = new WeakMap(); // model -> position -> its ranks so far: what is past does not change

function ranksOf(model, p) {
  if (!ranked.has(model)) ranked.set(model, new Map());
  const known = ranked.get(model),
    list = known.get(p) ?? [];
  known.set(p, list);
  for (let s = list.length; s < model.recs.length; s++) list.push(rankOf(model, s, p));
  return list;
}

// Lines over all steps received; null where there is nothing to show. kd: only with truth events.
function lifeOf(model, p) {
  const g = p - model.P,
    each = (f) => Array.from(model.recs, (rec, s) => (rec ? f(rec, s) : null));
  const conf = each((rec) => (g >= 0 && rec.c ? confidence(rec.c[g]) : null));
  const dens = each((rec) => (g >= 0 && rec.d ? density(rec.d[g]) : null));
  const ranks = ranksOf(model, p);
  return {
    conf,
    density: dens,
    product: conf.map((c, s) => (c === null || dens[s] === null ? null : c * dens[s])),
    rank: ranks.map((r) => r && r.rank),
    of: ranks.map((r) => r && r.of),
    why: each((rec) => rec.y[p]),
    drift: each((rec) => (rec.truth?.kd ? drift(rec.truth.kd[p]) : null)),
    written: (model.changes[p] || []).filter((x) => x.text !== null).map((x) => x.s),
    masked: (model.changes[p] || []).filter((x) => x.text === null).map((x) => x.s),
  };
}

// Steps 0..s in which p was recomputed, each counted once, for its most telling reason.
function tallyOf(model, p, s) {
  const counts = {};
  let recomputed = 0,
    steps = 0;
  for (let i = 0; i <= s; i++) {
    const rec = model.recs[i];
    if (!rec) continue;
    steps++;
    if (rec.y[p]) {
      recomputed++;
      counts[reasonOf(rec.y[p])] = (counts[reasonOf(rec.y[p])] || 0) + 1;
    }
  }
  return { recomputed, steps, counts };
}

// "Written in step 12 as ' cat' with confidence 0.93, rank 1 of 30 when written. Recomputed in 7 of 20 steps: ..."
function lifeSentence(model, p, s) {
  if (s < 0) return `${placeOf(model, p)}: no step yet.`;
  const write = writeAt(model, p, s),
    rank = rankOf(model, write ? write.s : s, p),
    { recomputed, steps, counts } = tallyOf(model, p, s);
  const place = placeOf(model, p).replace(/^./, (c) => c.toUpperCase()),
    parts = [];
  const name = (text) => (model.eos.has(text) ? "the end token" : quoted(text));
  const again = (model.changes[p] || []).filter((x) => x.text === null && x.s <= s).length;
  const ranked = rank ? `rank ${rank.rank} of ${rank.of}` : "";
  if (p < model.P && write)
    parts.push(
      `${place}: ${name(write.text)}, changed by hand in step ${write.s + 1}; it was ${quoted(model.prompt[p] ?? "")}.`,
    );
  else if (p < model.P)
    parts.push(`${place}: ${quoted(model.prompt[p] ?? "")}, given from the start.`);
  else if (write)
    parts.push(
      `${place}: written in step ${write.s + 1} as ${name(write.text)}${write.conf === null ? "" : ` with confidence ${fixed(write.conf, 2)}`}${ranked && `, ${ranked} then`}.`,
    );
  else {
    const guess = model.recs[s]?.c ? confidence(model.recs[s].c[p - model.P]) : null;
    parts.push(
      `${place}: still masked${guess === null ? "; no guess was made here in this step" : `; its best guess has confidence ${fixed(guess, 2)}${ranked && `, ${ranked}`}`}.`,
    );
  }
  if (again) parts.push(`Masked again ${again === 1 ? "once" : `${again} times`}.`);
  const why = model.reasons
    .filter((r) => counts[r.key])
    .map((r) => `${counts[r.key]} × ${r.label}`);
  parts.push(
    `Recomputed in ${recomputed} of ${plural(steps, "step")}${why.length ? `: ${why.join(", ")}` : ""}.`,
  );
  return parts.join(" ");
}

const whyWords = (model, byte) =>
  reasonsIn(byte)
    .map((key) => labelIn(model, key))
    .join(", ");

// ---- lines: values (null: a gap) as an SVG path in a box of width 1000 and height 100
const atStep = (s, steps) => (steps < 2 ? 500 : (1000 * s) / (steps - 1));

function linePath(values, steps, low, high) {
  let path = "",
    open = false;
  values.forEach((v, s) => {
    if (v === null || !Number.isFinite(v)) {
      open = false;
      return;
    }
    const x = atStep(s, steps),
      y = 100 * (1 - Math.min(1, Math.max(0, (v - low) / (high - low || 1))));
    const dot = !open && (values[s + 1] ?? null) === null ? "h0.01" : ""; // a lone value shows as a dot (round caps)
    path += `${open ? "L" : "M"}${Number(x.toFixed(2))} ${Number(y.toFixed(2))}${dot}`;
    open = true;
  });
  return path;
}

// Points (one a step) fitted into a unit square without changing their proportions, y upwards.
function fitPoints(points) {
  const xs = points.map((q) => q[0]),
    ys = points.map((q) => q[1]);
  const [x0, x1, y0, y1] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)],
    size = Math.max(x1 - x0, y1 - y0) || 1;
  return points.map(([x, y]) => [
    0.5 + (x - (x0 + x1) / 2) / size,
    0.5 - (y - (y0 + y1) / 2) / size,
  ]);
}

export {
  hasPrior,
  rankedBy,
  openBlock,
  rankOf,
  lifeOf,
  tallyOf,
  lifeSentence,
  whyWords,
  atStep,
  linePath,
  fitPoints,
};
