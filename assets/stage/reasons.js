/* Why a position was recomputed, in words that are true of the policy and decoder of the run. */
import { WHY } from "./contract.js";
import { short } from "./numbers.js";

// The most telling reason first: the order is also which colour wins on the map.
const REASONS = [
  {
    key: "written",
    bit: WHY.WRITTEN,
    label: "written in the previous step",
    colour: "#e69f00",
    why: "its token was written in the previous step; the cached K,V still belong to a mask",
  },
  {
    key: "chosen",
    bit: WHY.CHOSEN,
    label: "chosen by the policy",
    colour: "#009e73",
    why: "the policy chose this position",
  },
  {
    key: "rollout",
    bit: WHY.ROLLOUT,
    label: "attention rollout",
    colour: "#cc79a7",
    why: "one of the positions that attention led to most in the previous step",
  },
  {
    key: "gap",
    bit: WHY.GAP,
    label: "gap fill",
    colour: "#f0e442",
    why: "lies in a gap between recomputed positions",
  },
  {
    key: "shift",
    bit: WHY.SHIFT,
    label: "shift",
    colour: "#999933",
    why: "a neighbour that is needed where a model predicts one position to the right",
  },
  {
    key: "block",
    bit: WHY.BLOCK,
    label: "block",
    colour: "#0072b2",
    why: "inside the block that is being decoded",
  },
  {
    key: "window",
    bit: WHY.WINDOW,
    label: "window",
    colour: "#56b4e9",
    why: "inside the window around what is being decoded",
  },
  {
    key: "full",
    bit: WHY.FULL,
    label: "full pass",
    colour: "#a08468",
    why: "a pass over the whole canvas",
  },
];
const REUSED = {
  key: "reused",
  label: "reused",
  why: "the cached K,V of an earlier step were used: no work",
};
// Some policies and decoders give a reason a meaning of their own, and its explanation must be true
// of the current run. Its name and colour are the same in every run and tab. What is not listed here
// gets the plain words.
const POLICY_WORDS = {
  d2: {
    pads: true,
    chosen: {
      why: "a mask with a sure guess near known text: likely to be written soon",
    },
  },
  dkv: {
    chosen: { why: "masked: such a position is recomputed at every step" },
  },
  dllm: {
    kept: "layer outputs",
    reused: {
      why:
        "the cached outputs of its layers were used; at most its values (V) were computed, to " +
        "see how far they moved",
    },
    full: {
      why: "a refresh: the prompt, the answer or the whole first layer was due to be computed again",
    },
    chosen: {
      why:
        "in some layer its values (V) are among those that moved most since the previous step; " +
        "of equals, the leftmost",
    },
    more: (knobs) =>
      knobs.rho > 0
        ? "Between refreshes each layer computes the values (V) of the whole answer, to find " +
          "those that moved most."
        : "",
  },
  elastic: {
    chosen: {
      why: "attention had drifted in some layer; all later layers recompute every position",
    },
    window: { why: "one of the masked positions furthest left" },
    more: () => "When attention drifts in a layer, the layers after it recompute every position.",
  },
  prefix: { window: { why: "follows the block that is being decoded" } },
  sparse: {
    even: true,
    reused: {
      why:
        "the cached K,V of an earlier step were used, or left out of attention (evicted): no " +
        "work",
    },
    more: (knobs) =>
      knobs.keep_ratio < 1
        ? "While a block is filled, each layer leaves the positions that the block attends to " +
          "least out of attention (evicted)."
        : "",
  },
};
const DECODER_WORDS = {
  adaptive: { order: () => "the likeliest guesses first", ownWidth: true },
  confidence: { order: () => "the likeliest guesses first" },
  eb: { order: () => "as many of the surest guesses at once as a bound on their entropy allows" },
  entropy: {
    order: () => "first where the fewest words compete",
    confidence: "1 − entropy / its largest value",
  },
  factor: {
    order: () => "as many of the surest guesses at once as are rarely wrong together",
    tests: true,
  },
  klass: { order: () => "all guesses at once that are sure and have hardly changed", tests: true },
  margin: {
    order: () => "first where the best guess leads the second most",
    confidence: "lead of the best guess over the second",
  },
  pc: {
    order: (knobs) => `${knobs.position > 0 ? "early positions and " : ""}sure, rare words first`,
  },
  random: { order: () => "in a random order", scores: "its random numbers" },
  slowfast: {
    order: () => "a few at first, and all sure guesses of a stretch once its end is settled",
    tests: true,
  },
  threshold: {
    order: (knobs) => `all guesses of confidence ${short(knobs.threshold)} or more at once`,
    tests: true,
  },
  wino: {
    order: () => "many sure guesses at once; what a second look doubts is masked again",
    written: {
      why:
        "its token was written, or masked again, in the previous step; the cached K,V still " +
        "belong to the old one",
    },
  },
};
const wordsOf = (table, name) => (Object.hasOwn(table, name ?? "") ? table[name] : {});
const policyWords = (start) => wordsOf(POLICY_WORDS, start.policy);
const decoderWords = (start) => wordsOf(DECODER_WORDS, start.decoder);

// "reused" and the reasons, in the words that hold for one run.
const reasonsOf = (start) =>
  [REUSED, ...REASONS].map((r) => ({
    ...r,
    ...policyWords(start)[r.key],
    ...decoderWords(start)[r.key],
  }));
const labelIn = (run, key) => run.reasons.find((r) => r.key === key).label;
const reasonsIn = (byte) => REASONS.filter((r) => byte & r.bit).map((r) => r.key);
const reasonOf = (byte) => (REASONS.find((r) => byte & r.bit) || { key: null }).key;
// How many positions each reason has in one step; a position counts for its most telling reason.
function reasonCounts(record) {
  const counts = {};
  for (const byte of record.y) if (byte) counts[reasonOf(byte)] = (counts[reasonOf(byte)] || 0) + 1;
  return counts;
}

export {
  REASONS,
  REUSED,
  POLICY_WORDS,
  DECODER_WORDS,
  wordsOf,
  policyWords,
  decoderWords,
  reasonsOf,
  labelIn,
  reasonsIn,
  reasonOf,
  reasonCounts,
};
