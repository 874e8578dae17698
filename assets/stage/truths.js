/* What an exact pass reports about the cache: drift, changed predictions, the oracle. Pure. */
import { DIVERGENCE, DRIFT, LAST_CODE } from "./contract.js";
import { divergence, drift, fixed, plural } from "./numbers.js";
import { placeOf } from "./sentences.js";

// The ends of a scale: its least value, and that of the last code.
const DRIFTS = { of: drift, low: 2 ** DRIFT.least, high: drift(LAST_CODE) };
const DIVERGENCES = { of: divergence, low: 2 ** DIVERGENCE.least, high: divergence(LAST_CODE) };

const TRUTHS = [
  {
    key: "kd",
    label: "K drift",
    unit: "K drift: 1 − cosine",
    ...DRIFTS,
    answer: false,
    why:
      "How far the key (K) that attention read at a position is from the exact one: 1 minus the " +
      "cosine between the two, over all heads, mean over the layers. 0: the same direction; 1: " +
      "nothing in common.",
  },
  {
    key: "vd",
    label: "V drift",
    unit: "V drift: 1 − cosine",
    ...DRIFTS,
    answer: false,
    why:
      "How far the value (V) that attention read at a position is from the exact one: 1 minus " +
      "the cosine between the two, over all heads, mean over the layers.",
  },
  {
    key: "kl",
    label: "KL of predictions",
    unit: "KL, in nats",
    ...DIVERGENCES,
    answer: true,
    why:
      "How far the prediction at a position is from that of an exact pass: the Kullback-Leibler " +
      "divergence of the exact probabilities from the cached ones, in nats. 0: the same " +
      "prediction. Only where a prediction was made.",
  },
];

const hasTruth = (run) => run.records.some((record) => record?.truth);

// "hit": moved most, recomputed; "missed": moved most, reused; "needless": moved less, recomputed;
// "kept": moved less, reused.
function oracleMarks(run, s) {
  const record = run.records[s];
  if (!record?.truth || record.truth.recall === null) return null; // all or nothing was recomputed
  const oracle = new Set(record.truth.oracle);
  return Array.from(record.y, (byte, p) =>
    oracle.has(p) ? (byte ? "hit" : "missed") : byte ? "needless" : "kept",
  );
}

const MARKS = [
  { key: "hit", label: "hit", why: "its kept K,V had drifted most, and the policy recomputed it" },
  {
    key: "missed",
    label: "missed",
    why: "its kept K,V had drifted most, but the policy reused them",
  },
  {
    key: "needless",
    label: "beyond the oracle's",
    why:
      "the policy recomputed it, though others had drifted more; some it must compute in order " +
      "to predict there",
  },
  { key: "kept", label: "rightly reused", why: "among those that had drifted least, and reused" },
];

function truthSums(run) {
  let recall = 0,
    recalls = 0,
    flips = 0,
    flipSteps = 0,
    steps = 0;
  for (const record of run.records) {
    if (!record?.truth) continue;
    steps++;
    if (record.truth.recall !== null) {
      recall += record.truth.recall;
      recalls++;
    }
    flips += record.truth.flips.length;
    flipSteps += record.truth.flips.length > 0;
  }
  return { steps, recall: recalls ? recall / recalls : null, recalls, flips, flipSteps };
}

// A value of a map between low and high on its logarithmic scale, 0..1.
const logShade = (v, low, high) =>
  v <= 0 ? 0 : Math.min(1, Math.max(0, Math.log(v / low) / Math.log(high / low)));

// "step 12, answer position 5: K drift 0.031; its best guess differs from the exact one"
function truthReadout(run, kind, s, p) {
  const truth = run.records[s]?.truth,
    where = `step ${s + 1}, ${placeOf(run, p)}`;
  if (!truth) return `${where}: no exact pass was made at this step`;
  const plane = truth[kind.key],
    i = kind.answer ? p - run.P : p;
  if (kind.answer && i < 0) return `${where}: nothing is predicted in the prompt`;
  const u = plane ? plane[i] : 0,
    value = kind.of(u);
  const words = u
    ? `${kind.label} ${value < 0.01 ? value.toExponential(1) : fixed(value, value < 1 ? 3 : 2)}`
    : kind.answer
      ? "no difference, or no prediction"
      : "no drift";
  return (
    `${where}: ` +
    `${words}${truth.flips.includes(p) ? "; its best guess differs from the exact one" : ""}`
  );
}

function oracleSentence(run, s) {
  const record = run.records[s],
    marks = oracleMarks(run, s);
  if (!record?.truth) return `Step ${s + 1}: no exact pass was made at it.`;
  if (!marks) {
    const rows = record.y.reduce((n, byte) => n + (byte > 0), 0);
    return rows === record.y.length
      ? `Step ${s + 1} recomputed every position: there was nothing to choose.`
      : rows
        ? `Step ${s + 1}: what had drifted before it is not known.`
        : `Step ${s + 1} recomputed nothing.`;
  }
  const n = (key) => marks.filter((m) => m === key).length,
    k = n("hit") + n("missed");
  return (
    `Step ${s + 1}: of the ${plural(k, "position")} whose kept K,V had drifted most, the policy ` +
    `recomputed ${n("hit")} (recall ${fixed(record.truth.recall, 2)}).`
  );
}

export {
  DRIFTS,
  TRUTHS,
  hasTruth,
  oracleMarks,
  MARKS,
  truthSums,
  logShade,
  truthReadout,
  oracleSentence,
};
