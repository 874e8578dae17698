/* The cache tab: layer by layer, what was reused and what was recomputed in the current step, and
 * how old it is. */
import { agesAt, cacheReadout, cellStates, layered, meanAges, PARTS } from "./ages.js";
import { CellMap, divide, hatching, promptBar } from "./cells.js";
import { colourAt, css, RAMPS, rgb } from "./colours.js";
import { PART } from "./contract.js";
import { choice, colourBar, h } from "./dom.js";
import { amount, fixed } from "./numbers.js";
import { pixel } from "./pixels.js";
import { REASONS } from "./reasons.js";
import { caption, fill, marker, paper, term } from "./widgets.js";

const LOOKED = "#7a5195"; // computed for no reason of the row's own
const GONE = { light: "#aab2be", dark: "#566072" }; // evicted; hatched as well
const OLDEST = 32; // steps; the ramp of ages is logarithmic and ends here

const AGE_TICKS = ["0", "1", "3", "9", `${OLDEST}+`]; // about evenly spaced on it
const ageShade = (age) => Math.min(1, Math.log2(1 + age) / Math.log2(1 + OLDEST));

const KEPT = [PART.KEY, PART.VALUE]; // what every policy keeps
const MOST_LAYERS = { lines: 40, listed: 8 }; // with lines between them; named one by one

const LEAD =
  "Each line is a layer of the model, each column a position. The first layer is at the top. It " +
  "shows the current step; click a cell to choose its position.";
const FIRST_LAYER =
  "In the first layer K and V depend on the token and its place alone. While the token stays the " +
  "same, a kept K or V there is exact, however old.";
const ALIKE =
  "This policy computes a position in every layer or in none, so K and V of a position are " +
  "always of one age, and all lines are alike. Try dllm, elastic or sparse to see them differ.";
const MEAN_WHY =
  "Mean over the positions of one layer of how many steps ago the chosen part was computed: 0 is " +
  "in this step. Positions that were never computed do not count.";
const COLOURINGS = [
  ["reason", "why"],
  ["age", "age"],
];
const EVICTED = [
  "d2-dot-gone",
  "evicted",
  "its K and V were left out of attention in this layer and step",
];
const ONLY_LOOKED = [
  LOOKED,
  "only looked at",
  "computed to see whether it had moved; the rest of the layer's work was left out",
];

// A pixel per state that a cell can be in.
function stateColours(dark) {
  const colours = {
    reused: pixel(rgb(paper(dark).reused)),
    evicted: pixel(rgb(GONE[dark ? "dark" : "light"])),
    looked: pixel(rgb(LOOKED)),
  };
  for (const r of REASONS) colours[r.key] = pixel(rgb(r.colour));
  return colours;
}

// Fills a pixel per layer and position with the age of what is kept.
function fillAges(out, ages, steps, dark) {
  const colour = (_, age) => pixel(colourAt("age", ageShade(age), dark)),
    colours = Uint32Array.from({ length: steps + 1 }, colour),
    never = pixel(rgb(paper(dark).masked));
  for (let i = 0; i < out.length; i++) out[i] = ages[i] < 0 ? never : colours[ages[i]];
}

function fillStates(out, { states, names }, dark) {
  const table = stateColours(dark),
    colours = names.map((name) => table[name]);
  for (let i = 0; i < out.length; i++) out[i] = colours[states[i]];
}

// Over the cells: what was evicted, thin lines between the layers, the end of the prompt.
function drawOver(ctx, w, ht, ratio, { run, gone, dark }) {
  const { T, P, layers } = run;
  ctx.fillStyle = hatching(ctx, dark ? "#e6e9ee" : "#1f2937", ratio);
  for (const i of gone) {
    const layer = Math.floor(i / T);
    ctx.fillRect((w * (i % T)) / T, (ht * layer) / layers, w / T + 0.5, ht / layers);
  }
  if (layers <= MOST_LAYERS.lines) {
    ctx.fillStyle = dark ? "#10141b" : "#ffffff";
    for (let l = 1; l < layers; l++) ctx.fillRect(0, Math.round((ht * l) / layers), w, ratio);
  }
  divide(ctx, w, ht, P / T, ratio, dark);
}

// Beside the map: one bar per layer, as long as its mean age.
function drawMeans(canvas, means, dark) {
  const w = (canvas.width = 2 * canvas.clientWidth),
    ht = (canvas.height = 2 * canvas.clientHeight),
    ctx = canvas.getContext("2d"),
    most = Math.max(1, ...means.map((x) => x ?? 0)),
    high = Math.max(1, Math.round(ht / means.length) - 2);
  ctx.fillStyle = dark ? "#7f93ad" : "#8fa3bb";
  means.forEach((x, l) => {
    if (x === null) return;
    ctx.fillRect(0, Math.round((ht * l) / means.length) + 1, (w * x) / most, high);
  });
}

function meanWords(run, bit, means) {
  const known = means.filter((x) => x !== null);
  if (!known.length) return "";
  const { name } = PARTS.find((x) => x.bit === bit),
    overall = known.reduce((a, b) => a + b, 0) / known.length,
    each = means.map((x) => (x === null ? "–" : amount(x))).join(", "),
    listed = means.length <= MOST_LAYERS.listed && layered(run);
  const part = KEPT.includes(bit) ? name : `the ${name}`,
    byLayer = listed ? `; layer by layer ${each}` : "";
  return `Mean age of ${part}: ${fixed(overall, 1)} steps${byLayer}.`;
}

class CacheView {
  constructor(host, page) {
    this.page = page;
    this.host = host;
    this.mark = marker(page);
    this.bit = PART.KEY; // the current part
    this.colouring = "reason";
    this.drawnFor = "";
    this.partsFor = "";
    this.build();
  }

  build() {
    const { page } = this;
    this.parts = h("div", "d2-chosen");
    this.alike = caption(ALIKE, { hidden: true });
    this.bar = promptBar();
    this.legend = h("div", "d2-legend");
    this.means = h("canvas", "d2-means", { "aria-hidden": "true" });
    this.mean = h("p", "d2-more");
    this.map = this.makeMap();
    const title = h("h3", "d2-title", { textContent: "The cache, layer by layer" }),
      tools = h("div", "d2-tools", {}, this.parts, this.makeColourings()),
      meanTerm = term(page, "mean age", MEAN_WHY);
    this.host.append(
      h(
        "section",
        "d2-look",
        { "aria-label": "Cache" },
        h("div", "d2-head", {}, title, tools),
        caption(`${LEAD} ${FIRST_LAYER}`),
        this.alike,
        h("div", "d2-look-frame d2-look-over", {}, h("span"), this.bar, meanTerm),
        h("div", "d2-look-frame", {}, this.makeLayers(), this.map.el, this.means),
        this.map.below,
        this.legend,
        this.mean,
      ),
    );
  }

  makeColourings() {
    return choice("Colour of the cells", COLOURINGS, this.colouring, (v) => {
      this.colouring = v;
      this.page.schedule();
    });
  }

  makeMap() {
    const { page } = this;
    return new CellMap({
      label: "Layers by positions",
      read: (p, l) => cacheReadout(page.run, page.step, l, p),
      choose: (p) => page.select(p),
      point: (p) => page.setHover(p === null ? null : { p, s: null, lane: page.lane }),
    });
  }

  makeLayers() {
    this.last = h("span");
    const first = h("span", "", { textContent: "1" }),
      unit = h("em", "", { textContent: "layer" });
    return h("div", "d2-steps", { "aria-hidden": "true" }, first, unit, this.last);
  }

  paint() {
    const { run, step, dark, hover, selected } = this.page;
    if (!run?.key) return;
    this.offerParts(run);
    const key = [run.key, step, run.records.length, this.bit, this.colouring, dark].join("|");
    if (key !== this.drawnFor) {
      this.drawnFor = key;
      this.draw(run, Math.max(0, step), dark);
    }
    this.map.follow(hover?.p ?? selected);
  }

  // K and V, and the outputs where the run keeps them apart.
  offerParts(run) {
    const all = layered(run),
      key = `${run.key}|${all}`;
    if (this.partsFor === key) return;
    this.partsFor = key;
    const parts = PARTS.filter((part) => all || KEPT.includes(part.bit)),
      options = parts.map(({ bit, label }) => [String(bit), label]);
    if (!parts.some((part) => part.bit === this.bit)) this.bit = PART.KEY;
    this.parts.replaceChildren(
      choice("Part of the cache", options, String(this.bit), (v) => {
        this.bit = Number(v);
        this.page.schedule();
      }),
    );
    this.alike.hidden = all;
  }

  draw(run, step, dark) {
    this.host.style.setProperty("--d2-layers", run.layers);
    this.bar.show(run);
    this.last.textContent = run.layers;
    const record = run.records[step],
      ages = agesAt(run, step, this.bit),
      cells = record ? cellStates(run, record, this.bit) : { names: [], gone: [] };
    this.drawCells(run, record && cells, ages, dark);
    const means = meanAges(run, ages);
    drawMeans(this.means, means, dark);
    this.mean.textContent = meanWords(run, this.bit, means);
    this.paintLegend(run, dark, cells.names, cells.gone.length > 0);
  }

  // cells: null where the record of the step was lost
  drawCells(run, cells, ages, dark) {
    const gone = cells?.gone ?? [];
    this.map.draw(
      run.T,
      run.layers,
      (out) => {
        if (!cells) return;
        if (this.colouring === "age") fillAges(out, ages, run.records.length, dark);
        else fillStates(out, cells, dark);
      },
      (ctx, w, ht, ratio) => drawOver(ctx, w, ht, ratio, { run, gone, dark }),
    );
  }

  paintLegend(run, dark, seen, evicted) {
    const { legend, mark } = this,
      gone = evicted ? [EVICTED] : [];
    if (this.colouring === "age") {
      fill(legend, `age|${dark}|${evicted}`, () => [
        mark(css(colourAt("age", 0, dark)), "computed now", "age 0: computed in the current step"),
        colourBar("age", dark, AGE_TICKS, "steps since it was computed (log scale)"),
        ...gone.map((x) => mark(...x)),
      ]);
      return;
    }
    const list = run.reasons
      .filter((r) => seen.includes(r.key))
      .map((r) => [r.key === "reused" ? paper(dark).reused : r.colour, r.label, r.why]);
    if (seen.includes("looked")) list.push(ONLY_LOOKED);
    list.push(...gone);
    fill(legend, list.join("|"), () => list.map((x) => mark(...x)));
  }

  destroy() {
    this.map.destroy();
  }
}

RAMPS.age = {
  ink: false,
  stops: [
    "#fde725",
    "#b5de2b",
    "#6ece58",
    "#35b779",
    "#1f9e89",
    "#26828e",
    "#31688e",
    "#3e4989",
    "#482878",
  ],
};
const tab = { key: "cache", title: "Cache", mount: (host, page) => new CacheView(host, page) };

export { tab };
