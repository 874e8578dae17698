/* The rows of the maps as pixels. Pure: a row is an array of 32-bit colours. */
(function (D2) {
"use strict";

const { density, rolloutMass, WRITTEN_NOW, MASKED_NOW, PAPER, rgb, mixed, colourAt, massShade, REASONS, reasonOf, changeAt } = D2.pure;

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

// Each fills one row of pixels (all T positions) for one step; 0 is transparent: nothing to show.
const MAPS = [
  { key: "cache", short: "cache", title: "Cache: reused or recomputed",
    row(out, rec, m, t) { for (let p = 0; p < m.T; p++) out[p] = t.cache[shade(rec, p, m.layers)][rec.y[p]]; } },
  { key: "density", short: "density", title: "Certainty density",
    row(out, rec, m, t) { if (rec.d) for (let g = 0; g < m.G; g++) out[m.P + g] = t.density[rec.d[g]]; } },
  { key: "rollout", short: "rollout", title: "Attention rollout",
    row(out, rec, m, t) { if (rec.r) for (let p = 0; p < m.T; p++) out[p] = t.rollout[rec.r[p]]; } },
  { key: "order", short: "order", title: "Decode order",
    row(out, rec, m, t) {
      for (let p = m.P; p < m.T; p++) {
        const change = changeAt(m, p, rec.s), now = change?.s === rec.s;
        if (!change || change.text === null) out[p] = now ? t.again : t.masked;
        else out[p] = now ? t.now : t.order[change.s];
      }
    } },
];

Object.assign(D2.pure ??= {}, { pixel, table, SHADES, shade, tables, MAPS });
})(globalThis.D2Stage ??= {});
