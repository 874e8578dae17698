/* How old each kept K, V, attention output and MLP output is, in steps: worked out in the page from
 * what each step recomputed, so that no plane of ages has to be sent. Pure. */
import { PART } from "./contract.js";
import { reasonOf } from "./reasons.js";
import { placeOf } from "./sentences.js";

const PARTS = [
  { key: "K", bit: PART.KEY, label: "K", name: "K" },
  { key: "V", bit: PART.VALUE, label: "V", name: "V" },
  { key: "attention", bit: PART.ATTENTION, label: "attention output", name: "attention output" },
  { key: "MLP", bit: PART.MLP, label: "MLP output", name: "MLP output" },
];
const EVERY = 32; // steps between checkpoints: going back replays fewer than that

// What layer l computed for position p in one step, as bits of Part. A policy that does not decide
// layer by layer computes all parts of a row, in every layer, or none.
function partsIn(run, record, l, p) {
  if (!record) return 0;
  if (record.code) return record.parts[l * run.T + p];
  return record.y[p] ? PART.ALL : 0;
}

// Without parts all layers are alike: one line of T cells is enough.
const layered = (run) => run.records.some((record) => record?.code);
const linesOf = (run) => (layered(run) ? run.layers : 1);

// Marks in `last` what step s computed; record.code is the run-length code of its parts.
function advance(run, last, s, bit) {
  const record = run.records[s];
  if (!record) return; // it was lost
  if (!record.code) {
    for (let i = 0; i < last.length; i++) if (record.y[i % run.T]) last[i] = s;
    return;
  }
  for (let i = 0, at = 0; i < record.code.length; at += record.code[i + 1], i += 2)
    if (record.code[i] & bit) last.fill(s, at, at + record.code[i + 1]);
}

// run -> part -> {marks: [last steps after EVERY, 2 EVERY, ... steps], at, last}
const stores = new WeakMap();

// The step in which each cell was last computed, up to step s; -1: never. Int16Array(lines * T)
// with as many lines as layers, or 1 where all layers are alike. It must not be kept or changed.
function lastComputed(run, s, bit) {
  const cells = linesOf(run) * run.T;
  let parts = stores.get(run);
  if (!parts) stores.set(run, (parts = new Map()));
  let store = parts.get(bit);
  if (!store || store.last.length !== cells)
    parts.set(bit, (store = { marks: [], at: -1, last: new Int16Array(cells).fill(-1) }));
  if (s < store.at) {
    const mark = Math.min(Math.floor((s + 1) / EVERY), store.marks.length) - 1;
    store.last = mark < 0 ? new Int16Array(cells).fill(-1) : store.marks[mark].slice();
    store.at = (mark + 1) * EVERY - 1;
  }
  while (store.at < s) {
    advance(run, store.last, ++store.at, bit);
    if ((store.at + 1) % EVERY === 0)
      store.marks[(store.at + 1) / EVERY - 1] ??= store.last.slice();
  }
  return store.last;
}

// Age in steps of one part in every layer and position: Int16Array(layers * T), 0 in this step,
// -1 never computed.
function agesAt(run, s, bit) {
  const last = lastComputed(run, s, bit),
    out = new Int16Array(run.layers * run.T);
  for (let i = 0; i < out.length; i++) {
    const from = last[last.length === out.length ? i : i % run.T];
    out[i] = from < 0 ? -1 : s - from;
  }
  return out;
}

// The same of one position in one layer, for all parts: {K, V, attention, MLP}.
function agesOf(run, s, l, p) {
  const out = {};
  for (const { key, bit } of PARTS) {
    const last = lastComputed(run, s, bit),
      from = last[last.length === run.T ? p : l * run.T + p];
    out[key] = from < 0 ? -1 : s - from;
  }
  return out;
}

// Mean age per layer over the positions that were computed at all; null where none was.
function meanAges(run, ages) {
  return Array.from({ length: run.layers }, (_, l) => {
    let sum = 0,
      n = 0;
    for (let i = l * run.T; i < (l + 1) * run.T; i++)
      if (ages[i] >= 0) {
        sum += ages[i];
        n++;
      }
    return n ? sum / n : null;
  });
}

// What one cell shows: "reused", "evicted", a reason's key, or "looked" where a part was computed
// though its row was not (dLLM-Cache projects all V to see which moved).
function stateOf(bits, byte, bit) {
  if (bits & bit) return reasonOf(byte) ?? "looked";
  return bits & PART.EVICTED ? "evicted" : "reused";
}

// The states of all cells of one step as numbers into `names`, and the cells left out of attention.
function cellStates(run, record, bit) {
  const { T, layers } = run,
    parts = record.code && record.parts,
    out = new Uint8Array(layers * T),
    names = [],
    gone = [],
    known = new Map();
  for (let i = 0; i < out.length; i++) {
    const byte = record.y[i % T],
      bits = parts ? parts[i] : byte ? PART.ALL : 0,
      key = (bits << 8) | byte;
    if (!known.has(key)) {
      const name = stateOf(bits, byte, bit);
      if (!names.includes(name)) names.push(name);
      known.set(key, names.indexOf(name));
    }
    out[i] = known.get(key);
    if (bits & PART.EVICTED) gone.push(i);
  }
  return { states: out, names, gone };
}

const ageWords = (age) =>
  age < 0 ? "never computed" : age === 0 ? "now" : `${age} step${age === 1 ? "" : "s"} old`;

// "K and V 4 steps old", "K 4 steps old, V now": parts of one age are named together.
function agesWords(ages, keys = PARTS.map((x) => x.key)) {
  const groups = [];
  for (const { key, name } of PARTS.filter((x) => keys.includes(x.key))) {
    const group = groups.find((x) => x.age === ages[key]);
    if (group) group.names.push(name);
    else groups.push({ age: ages[key], names: [name] });
  }
  const list = (names) =>
    names.length < 2 ? names[0] : `${names.slice(0, -1).join(", ")} and ${names.at(-1)}`;
  return groups.map(({ age, names }) => `${list(names)} ${ageWords(age)}`).join(", ");
}

// "layer 3, answer position 5: K 4 steps old, V now"; layers count from 1 in text, as positions do
function cacheReadout(run, s, l, p) {
  const record = run.records[s],
    where = `layer ${l + 1}, ${placeOf(run, p)}`;
  if (!record) return `${where}: the record of step ${s + 1} was lost`;
  const ages = agesWords(agesOf(run, s, l, p), layered(run) ? undefined : ["K", "V"]);
  const gone = partsIn(run, record, l, p) & PART.EVICTED;
  return `${where}: ${ages}${gone ? "; left out of attention in this step (evicted)" : ""}`;
}

export {
  PARTS,
  partsIn,
  layered,
  agesAt,
  agesOf,
  meanAges,
  cellStates,
  ageWords,
  agesWords,
  cacheReadout,
};
