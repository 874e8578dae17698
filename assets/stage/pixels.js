/* The rows of the maps as pixels. Pure: a row is an array of 32-bit colours. */
import { colourAt, MASKED_NOW, massShade, mixed, PAPER, rgb, WRITTEN_NOW } from "./colours.js";
import { LAST_CODE, MAP_ROOT } from "./contract.js";
import { density, rolloutMass } from "./numbers.js";
import { reasonOf, REASONS } from "./reasons.js";
import { changeAt } from "./run.js";

// One 32-bit pixel per byte value, in the memory order of ImageData.
const pixel = ([r, g, b]) => ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;
const table = (colour) =>
  Uint32Array.from({ length: 256 }, (_, i) => {
    const c = colour(i);
    return c ? pixel(c) : 0;
  });

const SHADES = 8; // of a reason's colour: paler where fewer layers recomputed the position
const shade = (record, p, layers) =>
  record.l ? Math.round(SHADES * Math.min(1, record.l[p] / layers)) : SHADES;

function tables(dark, expected) {
  const paper = PAPER[dark ? "dark" : "light"];
  const reason = Object.fromEntries(REASONS.map((r) => [r.key, rgb(r.colour)]));
  return {
    density: table((u) => colourAt("density", density(u), dark)),
    rollout: table((u) => colourAt("rollout", massShade(rolloutMass(u)), dark)),
    cache: Array.from({ length: SHADES + 1 }, (_, i) =>
      table((u) =>
        mixed(
          rgb(paper.reused),
          u ? reason[reasonOf(u)] : rgb(paper.reused),
          0.25 + (0.75 * i) / SHADES,
        ),
      ),
    ),
    order: Uint32Array.from({ length: expected }, (_, s) =>
      pixel(colourAt("order", s / Math.max(1, expected - 1), dark)),
    ),
    masked: pixel(rgb(paper.masked)),
    now: pixel(rgb(WRITTEN_NOW)),
    again: pixel(rgb(MASKED_NOW)),
  };
}

// Each fills one row of pixels (all T positions) for one step; 0 is transparent: nothing to show.
const MAPS = [
  {
    key: "cache",
    short: "cache",
    title: "Cache: reused or recomputed",
    row(out, record, m, t) {
      for (let p = 0; p < m.T; p++) out[p] = t.cache[shade(record, p, m.layers)][record.y[p]];
    },
  },
  {
    key: "density",
    short: "density",
    title: "Certainty density",
    row(out, record, m, t) {
      if (record.d) for (let g = 0; g < m.G; g++) out[m.P + g] = t.density[record.d[g]];
    },
  },
  {
    key: "rollout",
    short: "rollout",
    title: "Attention rollout",
    row(out, record, m, t) {
      if (record.r) for (let p = 0; p < m.T; p++) out[p] = t.rollout[record.r[p]];
    },
  },
  {
    key: "order",
    short: "order",
    title: "Decode order",
    row(out, record, m, t) {
      for (let p = m.P; p < m.T; p++) {
        const change = changeAt(m, p, record.s),
          now = change?.s === record.s;
        if (change?.given) continue;
        if (!change || change.text === null) out[p] = now ? t.again : t.masked;
        else out[p] = now ? t.now : t.order[change.s];
      }
    },
  },
];

// Codes of a map, and the share of the largest cell that each is.
const shareOf = (code) => (code / LAST_CODE) ** MAP_ROOT;
const codeOf = (share) => Math.round(LAST_CODE * share ** (1 / MAP_ROOT));

// A large map arrives summed: cell i holds the positions from edges[i] up to the next.
// A cell of two positions is no darker than two cells of one: shades by share of a pair.
function evenShades(bytes, edges) {
  const n = edges.length - 1,
    wide = edges.slice(1).map((e, i) => e - edges[i]);
  if (wide.every((w) => w === wide[0])) return bytes;
  const shares = Float64Array.from(
      bytes,
      (u, i) => shareOf(u) / (wide[Math.floor(i / n)] * wide[i % n]),
    ),
    most = shares.reduce((a, b) => Math.max(a, b), 0) || 1;
  return Uint8Array.from(shares, (x) => codeOf(x / most));
}

export { evenShades, shareOf, pixel, table, SHADES, shade, tables, MAPS };
