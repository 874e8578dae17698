/* What the stage shares with the package. Generated: change a value where Python has
 * it, then run python -m analysis.page.contract. */

const WHY = {
  FULL: 1,
  CHOSEN: 2,
  VERIFY: 2,
  WRITTEN: 4,
  ROLLOUT: 8,
  GAP: 16,
  SHIFT: 32,
  BLOCK: 64,
  WINDOW: 128,
};
const PART = {
  KEY: 1,
  VALUE: 2,
  ATTENTION: 4,
  MLP: 8,
  ALL: 15,
  EVICTED: 16,
};
const LAST_CODE = 255;
const CONFIDENCE = {
  zero: 1,
};
const DENSITY = {
  zero: 0,
};
const ROLLOUT = {
  one: 128,
  least: -8,
  doubling: 16,
};
const DRIFT = {
  one: 239,
  least: -14,
  doubling: 16,
};
const DIVERGENCE = {
  one: 191,
  least: -12,
  doubling: 16,
};
const MAP_ROOT = 2;
const RUN_WORDS = {
  prompt: "prompt",
  model: "model",
  gen: "gen",
  block: "block",
  seed: "seed",
  full: "full",
  truth: "truth",
  turns: "turns",
  lane: "lane",
  trace: "trace",
  branch: "branch",
};
const VIEW_WORDS = {
  tab: "tab",
  at: "at",
  see: "see",
  clock: "clock",
  pos: "pos",
  lesson: "lesson",
  card: "card",
  teach: "teach",
  map: "map",
};
const LANE_MARKS = {
  edit: "~",
  decoder: "/",
  knob: ",",
};
const EDIT = {
  refresh: "refresh",
  all: "all",
  owners: ["policy", "decoder"],
  next: ",",
  is: "=",
  dot: ".",
};
const TAB_KEYS = ["watch", "stage", "compare", "cache", "attention", "truth", "token", "figures"];
const CLOCKS = ["step", "ms", "flops"];
const MOST_LANES = 6;
const QUESTIONS = {
  attention: "attention",
  life: "life",
  figures: "figures",
  sigmas: "sigmas",
  export: "export",
  token: "token",
};
const EXPORTS = {
  html: "html",
  notebook: "notebook",
  trace: "trace",
};
const SIGMAS = [0, 3, 10, 40];
const LESSON_NAMES = [
  "step",
  "steps",
  "lane",
  "lanes",
  "branches",
  "selected",
  "block",
  "hit_rate",
  "flops",
  "agreement",
  "tab",
  "clock",
  "status",
  "policy",
  "decoder",
];
const OPERATORS = ["!=", "<=", ">=", "=", "<", ">"];
const POINTS = {
  watch: "watch",
  stats: "stats",
  scrubber: "scrubber",
  sentence: "sentence",
  answer: "answer",
  prompt: "prompt",
  "cache-map": "cache-map",
  "density-map": "density-map",
  "rollout-map": "rollout-map",
  "order-map": "order-map",
  tabs: "tabs",
  lanes: "lanes",
  clock: "clock",
  "watch-tab": "watch-tab",
  "stage-tab": "stage-tab",
  "compare-tab": "compare-tab",
  "cache-tab": "cache-tab",
  "attention-tab": "attention-tab",
  "truth-tab": "truth-tab",
  "token-tab": "token-tab",
  "figures-tab": "figures-tab",
  whatif: "whatif",
};
const DATA_TAG = "d2-data";

export {
  WHY,
  PART,
  LAST_CODE,
  CONFIDENCE,
  DENSITY,
  ROLLOUT,
  DRIFT,
  DIVERGENCE,
  MAP_ROOT,
  RUN_WORDS,
  VIEW_WORDS,
  LANE_MARKS,
  EDIT,
  TAB_KEYS,
  CLOCKS,
  MOST_LANES,
  QUESTIONS,
  EXPORTS,
  SIGMAS,
  LESSON_NAMES,
  OPERATORS,
  POINTS,
  DATA_TAG,
};
