/* An edit of a run as text that the server reads, see Edit.parse of the package. Steps and
 * positions count from 0; an edit is made after its step. Pure. */
import { EDIT, LANE_MARKS, RUN_WORDS } from "./contract.js";
import { plural } from "./numbers.js";
import { placeOf, quoted } from "./sentences.js";

const whole = (x) => Number.isInteger(x) && x >= 0;
const value = (v) => String(typeof v === "boolean" ? v : Number(v));

// edit: {step, tokens: [[position, id]], refresh: null, "all" or [positions],
//        policy: {knob: value}, decoder: {knob: value}}
function editText({ step, tokens = [], refresh = null, policy = {}, decoder = {} }) {
  if (!whole(step)) throw new Error(`The step is ${step}; choose a step of the run first.`);
  const parts = [step];
  for (const [p, id] of [...tokens].sort((a, b) => a[0] - b[0])) {
    if (!whole(p) || !whole(id))
      throw new Error(`Token ${id} at position ${p}: both must be whole numbers from 0.`);
    parts.push(`${p}${EDIT.is}${id}`);
  }
  const rows =
    refresh === "all" ? EDIT.all : [...(refresh ?? [])].sort((a, b) => a - b).join(EDIT.dot);
  if (rows) parts.push(`${EDIT.refresh}${EDIT.is}${rows}`);
  for (const [kind, knobs] of [
    ["policy", policy],
    ["decoder", decoder],
  ])
    for (const name of Object.keys(knobs).sort()) {
      if (!Number.isFinite(Number(knobs[name])))
        throw new Error(`${name} is ${knobs[name]}; give a number such as 8 or 0.5.`);
      parts.push(`${kind}${EDIT.dot}${name}${EDIT.is}${value(knobs[name])}`);
    }
  return parts.join(EDIT.next);
}

const branchQuery = (run, edit) => `${RUN_WORDS.branch}=${run}${LANE_MARKS.edit}${editText(edit)}`;

// Whether an edit changes anything.
const isEdit = ({ tokens = [], refresh = null, policy = {}, decoder = {} }) =>
  Boolean(
    tokens.length ||
    refresh === "all" ||
    refresh?.length ||
    Object.keys(policy).length ||
    Object.keys(decoder).length,
  );

// The positions a choice of "refresh" means; null for none.
function refreshOf(run, what, p) {
  const range = (from, to) => Array.from({ length: to - from }, (_, i) => from + i);
  return {
    none: null,
    position: [p],
    prompt: range(0, run.P),
    answer: range(run.P, run.T),
    all: "all",
  }[what];
}

// Knobs of the run that an edit may turn: [{kind, name, value, flag}]
function knobsOf(start) {
  return EDIT.owners.flatMap((kind) =>
    Object.entries(start?.knobs?.[kind] || {}).map(([name, v]) => ({
      kind,
      name,
      value: v,
      flag: typeof v === "boolean",
    })),
  );
}

// "After step 12: ' dog' at answer position 3; refresh of the prompt; policy sigma 5."
function editWords(
  run,
  { step, tokens = [], refresh = null, policy = {}, decoder = {} },
  names = {},
) {
  const parts = tokens.map(([p, id]) =>
    names[p] === null
      ? `mask ${placeOf(run, p)} again`
      : `write ${names[p] === undefined ? `token ${id}` : quoted(names[p])} at ${placeOf(run, p)}`,
  );
  if (refresh === "all") parts.push("refresh every position");
  else if (refresh?.length === 1) parts.push(`refresh ${placeOf(run, refresh[0])}`);
  else if (refresh?.length)
    parts.push(
      `refresh ${refresh[0] < run.P ? "the prompt" : "the answer"} ` +
        `(${plural(refresh.length, "position")})`,
    );
  for (const [kind, knobs] of [
    ["policy", policy],
    ["decoder", decoder],
  ])
    for (const [name, v] of Object.entries(knobs))
      parts.push(
        `set the ${kind}'s ${name.replaceAll("_", " ")} to ` +
          `${v === true ? "on" : v === false ? "off" : value(v)}`,
      );
  return parts.length ? `After step ${step + 1}: ${parts.join("; ")}.` : "";
}

export { editText, branchQuery, isEdit, refreshOf, knobsOf as editKnobs, editWords };
