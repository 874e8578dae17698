/* A map on a canvas: all its rows are kept one pixel per cell, and a part of it is shown. */
import { POINTS } from "./contract.js";
import { h } from "./dom.js";
import { hitRate } from "./run.js";

// A map keeps all its rows on a canvas of one pixel per position and step, and shows a part of it.
function makePlane(spec) {
  const store = h("canvas"),
    ctx = store.getContext("2d", { willReadFrequently: false });
  const canvas = h("canvas", "d2-canvas", { "aria-hidden": "true" });
  const plane = h(
    "div",
    "d2-plane",
    {},
    canvas,
    ...["d2-veil", "d2-edge", "d2-now", "d2-hair"].map((c) => h("div", c)),
    h("span", "d2-inprompt"),
  );
  return { spec, plane, canvas, store, ctx, image: null };
}

function makeMap(spec) {
  const map = makePlane(spec),
    { plane } = map;
  const strip = h("canvas", "d2-strip", { "aria-hidden": "true" });
  const absent = h("p", "d2-absent", {
    hidden: true,
    textContent: "This policy makes no attention map; d2 does.",
  });
  const first = h("span", "", { textContent: "1" }),
    last = h("span");
  const more = h("p", "d2-more"),
    legend = h("div", "d2-legend");
  const el = h(
    "section",
    `d2-map d2-map-${spec.key}`,
    { "aria-label": spec.title, "data-point": POINTS[`${spec.key}-map`] },
    h("h4", "d2-title", { textContent: spec.title }),
    more,
    h(
      "div",
      "d2-frame",
      {},
      h(
        "div",
        "d2-steps",
        { "aria-hidden": "true" },
        first,
        h("em", "", { textContent: "step" }),
        last,
      ),
      plane,
      strip,
      absent,
    ),
    legend,
  );
  return { ...map, el, strip, absent, more, legend, last };
}

function resetStore(map, T, steps) {
  map.store.width = T;
  map.store.height = steps;
  map.image = new ImageData(T, 1);
  map.pixels = new Uint32Array(map.image.data.buffer);
}

function drawRow(map, run, s, colours) {
  map.pixels.fill(0);
  if (run.records[s]) map.spec.row(map.pixels, run.records[s], run, colours);
  map.ctx.putImageData(map.image, 0, s);
}

function showMap(map, run, x0, x1, rows = run.expected) {
  const { canvas } = map,
    ctx = canvas.getContext("2d"),
    steps = run.records.length;
  ctx.clearRect(0, 0, canvas.width, canvas.height);
  if (!steps || !canvas.width) return;
  // shrinking must not drop columns
  ctx.imageSmoothingEnabled = x1 - x0 > canvas.width || rows > canvas.height;
  ctx.drawImage(
    map.store,
    x0,
    0,
    x1 - x0,
    steps,
    0,
    0,
    canvas.width,
    (canvas.height * steps) / rows,
  );
}

// Beside the cache map: one bar per step, as long as the share of positions reused.
function showStrip(map, run, ink) {
  const { strip } = map,
    ctx = strip.getContext("2d"),
    row = strip.height / run.expected;
  ctx.clearRect(0, 0, strip.width, strip.height);
  ctx.fillStyle = ink;
  for (const record of run.records) {
    if (!record) continue;
    const top = Math.round(record.s * row),
      next = Math.round((record.s + 1) * row); // whole pixels, or the bars shimmer
    ctx.fillRect(
      0,
      top,
      Math.max(0, hitRate(record, run.T)) * strip.width,
      Math.max(1, next - top),
    );
  }
}

export { makePlane, makeMap, resetStore, drawRow, showMap, showStrip };
