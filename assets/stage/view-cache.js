/* The cache tab: layer by layer, what was reused and what was recomputed in the step on view, and how old it is. */
import { agesAt, cacheReadout, cellStates, layered, meanAges, PARTS } from "./ages.js";
import { colourAt, css, RAMPS, rgb } from "./colours.js";
import { PART } from "./contract.js";
import { choice, colourBar, h } from "./dom.js";
import { amount, fixed } from "./numbers.js";
import { pixel } from "./pixels.js";
import { REASONS } from "./reasons.js";
import {
  divide,
  fill,
  hatching,
  makePlane,
  marker,
  paper,
  paragraph,
  promptBar,
  term,
} from "./widgets.js";

const LOOKED = "#7a5195"; // computed for no reason of the row's own
const GONE = { light: "#aab2be", dark: "#566072" }; // evicted; hatched as well
const OLDEST = 32; // steps; the ramp of ages is logarithmic and ends here

const AGE_TICKS = ["0", "1", "3", "9", `${OLDEST}+`]; // about evenly spaced on it
const ageShade = (age) => Math.min(1, Math.log2(1 + age) / Math.log2(1 + OLDEST));

const KEPT = [PART.KEY, PART.VALUE]; // what every policy keeps

function mount(host, page) {
  const mark = marker(page);
  let bit = PART.KEY,
    colour = "reason",
    drawn = "",
    offered = "";
  const title = h("h4", "d2-title", { textContent: "The cache, layer by layer" });
  const lead = paragraph(
    "d2-more",
    "One line is one layer of the model, one column is one position. The first layer is at the top. It shows the step on view; click a cell to choose its position.",
  );
  const whats = h("div", "d2-chosen"),
    only = h("p", "d2-more", { hidden: true });
  const colours = choice(
    "Colour of the cells",
    [
      ["reason", "why"],
      ["age", "age"],
    ],
    colour,
    (v) => {
      colour = v;
      page.schedule();
    },
  );
  const ask = promptBar(),
    legend = h("div", "d2-legend"),
    means = h("canvas", "d2-means", { "aria-hidden": "true" }),
    mean = h("p", "d2-more");
  const first = paragraph(
    "d2-more",
    "In the first layer K and V depend on the token and its place alone. While the token stands, a kept K or V there is exact, however old.",
  );
  const plane = makePlane(page, {
    label: "Layers by positions",
    read: (p, l) => cacheReadout(page.run, page.step, l, p),
    choose: (p) => page.select(p),
    point: (p) => page.setHover(p === null ? null : { p, s: null, lane: page.lane }),
  });
  const top = h("span", "", { textContent: "1" }),
    last = h("span");
  const layers = h(
    "div",
    "d2-steps",
    { "aria-hidden": "true" },
    top,
    h("em", "", { textContent: "layer" }),
    last,
  );
  const meanTerm = term(
    page,
    "mean age",
    "Mean over the positions of one layer of how many steps ago the chosen part was computed: 0 is in this step. Positions that were never computed do not count.",
  );
  const frame = h("div", "d2-look-frame", {}, layers, plane.el, means);
  host.append(
    h(
      "section",
      "d2-look",
      { "aria-label": "Cache" },
      h("div", "d2-head", {}, title, h("div", "d2-tools", {}, whats, colours)),
      lead,
      only,
      h("div", "d2-look-frame d2-look-over", {}, h("span"), ask, meanTerm),
      frame,
      plane.said,
      legend,
      mean,
      first,
    ),
  );

  // K and V, and the outputs where the run keeps them apart
  function offer(run) {
    const all = layered(run),
      key = `${run.key}|${all}`;
    if (offered === key) return;
    offered = key;
    const parts = PARTS.filter((part) => all || KEPT.includes(part.bit));
    if (!parts.some((part) => part.bit === bit)) bit = PART.KEY;
    whats.replaceChildren(
      choice(
        "Part of the cache",
        parts.map(({ bit, label }) => [String(bit), label]),
        String(bit),
        (v) => {
          bit = Number(v);
          page.schedule();
        },
      ),
    );
    only.hidden = all;
    only.textContent =
      "This policy computes a position in every layer or in none, so K and V of a position are always of one age, and all lines are alike. Try dllm, elastic or sparse to see them differ.";
  }

  function colourTable(dark) {
    const table = {
      reused: pixel(rgb(paper(dark).reused)),
      evicted: pixel(rgb(GONE[dark ? "dark" : "light"])),
      looked: pixel(rgb(LOOKED)),
    };
    for (const r of REASONS) table[r.key] = pixel(rgb(r.colour));
    return table;
  }

  function paintCells(run, step, dark) {
    const record = run.records[step],
      ages = agesAt(run, step, bit),
      table = colourTable(dark),
      { T, P, layers: L } = run;
    const old = Uint32Array.from({ length: run.records.length + 1 }, (_, a) =>
        pixel(colourAt("age", ageShade(a), dark)),
      ),
      never = pixel(rgb(paper(dark).masked));
    const { states, names, gone } = record ? cellStates(run, record, bit) : { names: [], gone: [] };
    const tints = names.map((name) => table[name]);
    plane.draw(
      T,
      L,
      (out) => {
        if (record)
          for (let i = 0; i < out.length; i++)
            out[i] = colour === "age" ? (ages[i] < 0 ? never : old[ages[i]]) : tints[states[i]];
      },
      (ctx, w, ht, ratio) => {
        ctx.fillStyle = hatching(ctx, dark ? "#e6e9ee" : "#1f2937", ratio);
        for (const i of gone)
          ctx.fillRect((w * (i % T)) / T, (ht * Math.floor(i / T)) / L, w / T + 0.5, ht / L);
        if (L <= 40) {
          // thin lines between the layers
          ctx.fillStyle = dark ? "#10141b" : "#ffffff";
          for (let l = 1; l < L; l++) ctx.fillRect(0, Math.round((ht * l) / L), w, ratio);
        }
        divide(ctx, w, ht, P / T, ratio, dark);
      },
    );
    paintMeans(run, meanAges(run, ages), dark);
    return { seen: names, evicted: gone.length > 0 };
  }

  function paintMeans(run, list, dark) {
    const w = (means.width = 2 * means.clientWidth),
      ht = (means.height = 2 * means.clientHeight),
      ctx = means.getContext("2d"),
      most = Math.max(1, ...list.map((x) => x ?? 0));
    ctx.fillStyle = dark ? "#7f93ad" : "#8fa3bb";
    list.forEach((x, l) => {
      if (x !== null)
        ctx.fillRect(
          0,
          Math.round((ht * l) / list.length) + 1,
          (w * x) / most,
          Math.max(1, Math.round(ht / list.length) - 2),
        );
    });
    const name = PARTS.find((x) => x.bit === bit).name,
      known = list.filter((x) => x !== null),
      say = (x) => (x === null ? "–" : amount(x));
    const overall = known.length ? known.reduce((a, b) => a + b, 0) / known.length : null;
    const by =
      list.length > 8 || !layered(run) ? "" : `; layer by layer ${list.map(say).join(", ")}`;
    mean.textContent =
      overall === null
        ? ""
        : `Mean age of ${KEPT.includes(bit) ? name : `the ${name}`}: ${fixed(overall, 1)} steps${by}.`;
  }

  function paintLegend(run, dark, seen, evicted) {
    const gone = evicted
      ? [
          [
            "d2-dot-gone",
            "evicted",
            "its K and V were left out of attention in this layer and step",
          ],
        ]
      : [];
    if (colour === "age") {
      return fill(legend, `age|${dark}|${evicted}`, () => [
        mark(css(colourAt("age", 0, dark)), "computed now", "age 0: computed in the step on view"),
        colourBar("age", dark, AGE_TICKS, "steps since it was computed (log scale)"),
        ...gone.map((x) => mark(...x)),
      ]);
    }
    const list = run.reasons
      .filter((r) => seen.includes(r.key))
      .map((r) => [r.key === "reused" ? paper(dark).reused : r.colour, r.label, r.why]);
    if (seen.includes("looked"))
      list.push([
        LOOKED,
        "only looked at",
        "computed to see whether it had moved; the rest of the layer's work was left out",
      ]);
    list.push(...gone);
    fill(legend, list.join("|"), () => list.map((x) => mark(...x)));
  }

  function paint() {
    const { run, step, dark } = page;
    if (!run?.key) return;
    offer(run);
    const key = [run.key, step, run.records.length, bit, colour, dark].join("|");
    if (key !== drawn) {
      drawn = key;
      host.style.setProperty("--d2-layers", run.layers);
      ask.show(run.P, run.G);
      last.textContent = run.layers;
      top.parentElement.hidden = false;
      const { seen, evicted } = paintCells(run, Math.max(0, step), dark);
      paintLegend(run, dark, seen, evicted);
    }
    plane.follow(page.hover?.p ?? page.selected);
  }

  return { paint, destroy: plane.destroy };
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
const tab = { key: "cache", title: "Cache", mount };

export { tab };
