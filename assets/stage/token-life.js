/* The life of one position over the steps of a run: how sure the model was, when it was recomputed
 * and why, when it was written; and the lines that draw this. Pure. */
import { CONFIDENCE, DENSITY } from "./contract.js";
import { confidence, density, drift, fixed, plural } from "./numbers.js";
import { labelIn, reasonOf, reasonsIn } from "./reasons.js";
import { writeAt } from "./run.js";
import { placeOf, quoted, startingPlace } from "./sentences.js";

// What the decoder ranks its guesses by; without a prior, confidence alone.
const hasPrior = (run) => run.start?.knobs?.decoder?.sigma > 0;
const rankedBy = (run) => (hasPrior(run) ? "confidence × density" : "confidence");

// [from, to) of the current block in step s: the block of the leftmost position masked before it.
function currentBlock(run, s) {
  const size = run.start?.block_length || run.G;
  for (let p = run.P; p < run.T; p++)
    if (!writeAt(run, p, s - 1)) {
      const from = run.P + Math.floor((p - run.P) / size) * size;
      return [from, Math.min(run.T, from + size)];
    }
  return [run.T, run.T];
}

// {rank, of}: the rank of position p among the masked positions of the current block that got a
// guess in step s, best first; equal scores share a rank. null: it is not among them.
function rankOf(run, s, p) {
  const record = run.records[s],
    prior = hasPrior(run);
  if (!record?.c || !record.d || p < run.P) return null;
  const score = (g) => (record.c[g] - CONFIDENCE.zero) * (prior ? record.d[g] - DENSITY.zero : 1),
    [from, to] = currentBlock(run, s);
  const runs = (q) => q >= from && q < to && record.c[q - run.P] > 0 && !writeAt(run, q, s - 1);
  if (!runs(p)) return null;
  const own = score(p - run.P);
  let rank = 1,
    of = 0;
  for (let q = from; q < to; q++)
    if (runs(q)) {
      of++;
      if (score(q - run.P) > own) rank++;
    }
  return { rank, of };
}

const ranked = new WeakMap(); // run -> position -> its ranks so far: what is past does not change

function ranksOf(run, p) {
  if (!ranked.has(run)) ranked.set(run, new Map());
  const known = ranked.get(run),
    list = known.get(p) ?? [];
  known.set(p, list);
  for (let s = list.length; s < run.records.length; s++) list.push(rankOf(run, s, p));
  return list;
}

// Lines over all steps received; null where there is nothing to show. kd: only with truth events.
function lifeOf(run, p) {
  const g = p - run.P,
    each = (f) => Array.from(run.records, (record, s) => (record ? f(record, s) : null));
  const conf = each((record) => (g >= 0 && record.c ? confidence(record.c[g]) : null));
  const dens = each((record) => (g >= 0 && record.d ? density(record.d[g]) : null));
  const ranks = ranksOf(run, p);
  return {
    conf,
    density: dens,
    product: conf.map((c, s) => (c === null || dens[s] === null ? null : c * dens[s])),
    rank: ranks.map((r) => r && r.rank),
    of: ranks.map((r) => r && r.of),
    why: each((record) => record.y[p]),
    drift: each((record) => (record.truth?.kd ? drift(record.truth.kd[p]) : null)),
    written: (run.changes[p] || []).filter((x) => x.text !== null).map((x) => x.s),
    masked: (run.changes[p] || []).filter((x) => x.text === null).map((x) => x.s),
  };
}

// Steps 0..s in which p was recomputed, each counted once, for its most telling reason.
function tallyOf(run, p, s) {
  const counts = {};
  let recomputed = 0,
    steps = 0;
  for (let i = 0; i <= s; i++) {
    const record = run.records[i];
    if (!record) continue;
    steps++;
    if (record.y[p]) {
      recomputed++;
      counts[reasonOf(record.y[p])] = (counts[reasonOf(record.y[p])] || 0) + 1;
    }
  }
  return { recomputed, steps, counts };
}

const nameIn = (run, text) => (run.eos.has(text) ? "the end token" : quoted(text));

// "given from the start.": a prompt position's token, or the one that replaced it.
function givenWords(run, p, write) {
  const given = quoted(run.prompt[p] ?? write?.text ?? "");
  return write && !write.given
    ? `${nameIn(run, write.text)}, changed by hand in step ${write.s + 1}; it was ${given}.`
    : `${given}, given from the start.`;
}

// "written in step 12 as ' cat' with confidence 0.93, rank 1 of 30 then."
function writtenWords(run, p, write) {
  const rank = rankOf(run, write.s, p),
    facts = [`written in step ${write.s + 1} as ${nameIn(run, write.text)}`];
  if (write.conf !== null) facts[0] += ` with confidence ${fixed(write.conf, 2)}`;
  if (rank) facts.push(`rank ${rank.rank} of ${rank.of} then`);
  return `${facts.join(", ")}.`;
}

function maskedWords(run, p, s) {
  const code = run.records[s]?.c?.[p - run.P],
    guess = code === undefined ? null : confidence(code),
    rank = rankOf(run, s, p);
  if (guess === null) return "still masked; no guess was made here in this step.";
  const ranked = rank ? `, rank ${rank.rank} of ${rank.of}` : "";
  return `still masked; its best guess has confidence ${fixed(guess, 2)}${ranked}.`;
}

// "Answer position 5: written in step 12 as ' cat' ... . Recomputed in 7 of 20 steps: 7 × block."
function lifeSentence(run, p, s) {
  if (s < 0) return `${placeOf(run, p)}: no step yet.`;
  const write = writeAt(run, p, s),
    place = startingPlace(run, p),
    { recomputed, steps, counts } = tallyOf(run, p, s),
    times = (run.changes[p] || []).filter((x) => x.text === null && x.s <= s).length;
  const now =
    p < run.P || write?.given
      ? givenWords(run, p, write)
      : write
        ? writtenWords(run, p, write)
        : maskedWords(run, p, s);
  const again = times ? ` Masked again ${times === 1 ? "once" : `${times} times`}.` : "";
  const why = run.reasons.filter((r) => counts[r.key]).map((r) => `${counts[r.key]} × ${r.label}`),
    reasons = why.length ? `: ${why.join(", ")}` : "";
  return (
    `${place}: ${now}${again} ` +
    `Recomputed in ${recomputed} of ${plural(steps, "step")}${reasons}.`
  );
}

const whyWords = (run, byte) =>
  reasonsIn(byte)
    .map((key) => labelIn(run, key))
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
    const dot = !open && (values[s + 1] ?? null) === null ? "h0.01" : ""; // a dot
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
  currentBlock,
  rankOf,
  lifeOf,
  tallyOf,
  lifeSentence,
  whyWords,
  atStep,
  linePath,
  fitPoints,
};
