/* A map on a canvas: all its rows are kept, a pixel per position and step, and a part is shown. */
import { POINTS } from "./contract.js";
import { colourBar, h, onMouseLeave } from "./dom.js";
import { clamp } from "./numbers.js";
import { drawPooled } from "./pooling.js";
import { hitRate } from "./run.js";
import { caption } from "./widgets.js";

const MARKS = ["d2-veil", "d2-edge", "d2-now", "d2-hair"]; // over the pixels
const ABSENT = "This policy makes no attention map; d2 does.";

// spec: one of MAPS
function makePlane(spec) {
  const store = h("canvas"),
    ctx = store.getContext("2d", { willReadFrequently: false }),
    canvas = h("canvas", "d2-canvas", { "aria-hidden": "true" }),
    marks = MARKS.map((cls) => h("div", cls)),
    plane = h("div", "d2-plane", {}, canvas, ...marks, h("span", "d2-inprompt"));
  return { spec, plane, canvas, store, ctx, image: null };
}

// A plane with its title, caption, ticks and legend.
function makeMap(spec) {
  const map = makePlane(spec),
    strip = h("canvas", "d2-strip", { "aria-hidden": "true" }),
    absent = h("p", "d2-absent", { hidden: true, textContent: ABSENT }),
    more = caption(),
    legend = h("div", "d2-legend"),
    first = h("span", "", { textContent: "1" }),
    unit = h("em", "", { textContent: "step" }),
    last = h("span"),
    steps = h("div", "d2-steps", { "aria-hidden": "true" }, first, unit, last);
  const el = h(
    "section",
    `d2-map d2-map-${spec.key}`,
    { "aria-label": spec.title, "data-point": POINTS[`${spec.key}-map`] },
    h("h3", "d2-title", { textContent: spec.title }),
    more,
    h("div", "d2-frame", {}, steps, map.plane, strip, absent),
    legend,
  );
  return { ...map, el, strip, absent, more, legend, last };
}

// {p, s} under the pointer, of a map that shows positions x0 to x1 of a run in so many rows.
function cellUnder(plane, e, run, { x0, x1, rows }) {
  const box = plane.getBoundingClientRect(),
    p = x0 + Math.floor(((e.clientX - box.left) / box.width) * (x1 - x0)),
    s = Math.floor(((e.clientY - box.top) / box.height) * rows);
  return { p: clamp(p, x0, x1 - 1), s: clamp(s, 0, Math.max(0, run.records.length - 1)) };
}

// Pointing at a map marks cellAt(event) everywhere; a click goes to its step.
function mapEvents(plane, page, cellAt) {
  const point = (e) => page.setHover(cellAt(e));
  plane.addEventListener("pointermove", point);
  plane.addEventListener("pointerdown", point);
  onMouseLeave(plane, () => page.setHover(null));
  plane.addEventListener("click", (e) => {
    const { lane, s } = cellAt(e);
    page.gotoIn(lane, s);
  });
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
  const { canvas, store } = map,
    { width, height } = canvas,
    ctx = canvas.getContext("2d"),
    steps = run.records.length,
    cols = x1 - x0;
  ctx.clearRect(0, 0, width, height);
  if (!steps || !width) return;
  drawPooled(canvas, store, { x0, cols, rows: steps }, width, (height * steps) / rows);
}

// Beside the cache map: one bar per step, as long as the share of positions reused.
function showStrip({ strip }, run, dark) {
  const ctx = strip.getContext("2d"),
    row = strip.height / run.expected;
  ctx.clearRect(0, 0, strip.width, strip.height);
  ctx.fillStyle = dark ? "#7f93ad" : "#8fa3bb";
  for (const record of run.records) {
    if (!record) continue;
    const top = Math.round(record.s * row),
      next = Math.round((record.s + 1) * row), // whole pixels, or the bars shimmer
      share = Math.max(0, hitRate(record, run.T));
    ctx.fillRect(0, top, share * strip.width, Math.max(1, next - top));
  }
}

const densityBar = (dark) =>
  colourBar("density", dark, ["0", "0.5", "1"], "share of the neighbourhood that is known");
const rolloutBar = (dark) =>
  colourBar(
    "rollout",
    dark,
    ["1/16", "1/2", "4", "32"],
    "× the mean mass of a position (log scale)",
  );
const orderBar = (dark, steps) => colourBar("order", dark, ["1", String(steps)], "step of writing");

export {
  makePlane,
  makeMap,
  cellUnder,
  mapEvents,
  resetStore,
  drawRow,
  showMap,
  showStrip,
  densityBar,
  rolloutBar,
  orderBar,
};
