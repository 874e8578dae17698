/* The path of one position's keys and values over the steps, on a plane; made on request. */
import { colourAt, css } from "./colours.js";
import { QUESTIONS } from "./contract.js";
import { colourBar, h } from "./dom.js";
import { LineChart } from "./lines.js";
import { clamp } from "./numbers.js";
import { fitPoints } from "./token-life.js";
import { asker, caption, fill, marker, svg } from "./widgets.js";

const LEAD =
  "The exact K and V of this position, averaged over the layers, move from step to step. PCA " +
  "draws them on a plane: points close to each other are alike. While they hardly move, a cache " +
  "can keep them.";
const movedWhy = (what) =>
  `The distance between the exact ${what} here and that of the previous step, in the model's own ` +
  "units, averaged over the layers. High for a few steps: a rapid change; low throughout: stable.";
const PARTS = [
  { key: "k", name: "K", what: "key (K)" },
  { key: "v", name: "V", what: "value (V)" },
];

const movedChart = (page, { name, what }) =>
  new LineChart(page, {
    title: `how far ${name} moved`,
    why: movedWhy(what),
    ticks: ["", "0"],
    format: (v) => Number(v).toPrecision(2),
  });

function makePlot({ key, name }) {
  const box = svg("svg", { viewBox: "-0.06 -0.06 1.12 1.12", role: "img" }),
    title = h("p", "d2-line-head"),
    now = svg("circle", { r: 0.022, class: "d2-path-now" });
  return { key, name, box, title, now, points: [], el: h("div", "d2-path", {}, title, box) };
}

// Lines from point to point, a dot on each, a ring where the position was written.
function pathShapes(points, written, dark) {
  const tint = (s) => css(colourAt("order", s / Math.max(1, points.length - 1), dark)),
    shapes = [];
  for (let s = 1; s < points.length; s++) {
    const [[x1, y1], [x2, y2]] = [points[s - 1], points[s]];
    shapes.push(svg("line", { x1, y1, x2, y2, stroke: tint(s), class: "d2-path-line" }));
  }
  points.forEach(([cx, cy], s) => {
    shapes.push(svg("circle", { cx, cy, r: 0.012, fill: tint(s) }));
    if (written.has(s)) shapes.push(svg("circle", { cx, cy, r: 0.03, class: "d2-path-written" }));
  });
  return shapes;
}

function plotTitle(name, shares = []) {
  if (!shares.length) return `${name}: its path`;
  const all = shares.reduce((a, b) => a + b, 0);
  return `${name}: the plane shows ${Math.round(100 * all)} % of its movement`;
}

class KeyPath {
  constructor(page) {
    this.page = page;
    this.ask = asker(page);
    this.mark = marker(page);
    this.p = 0;
    this.path = null; // what the server sent, and the key of its run and position
    this.busy = false;
    this.trouble = "";
    this.drawnFor = "";
    this.build();
  }

  build() {
    this.button = h("button", "d2-button", {
      type: "button",
      textContent: "Trace its keys",
      onclick: () => this.load(),
    });
    this.status = h("p", "d2-more", { role: "status" });
    this.plots = PARTS.map(makePlot);
    this.moved = PARTS.map((part) => movedChart(this.page, part));
    this.box = h("div", "d2-paths", { hidden: true }, ...this.plots.map((x) => x.el));
    this.legend = h("div", "d2-legend", { hidden: true });
    this.movedBox = h("div", "d2-lines", { hidden: true }, ...this.moved.map((x) => x.el));
    this.parts = [
      h("h3", "d2-title d2-gap", { textContent: "The path of its keys and values" }),
      caption(LEAD),
      this.button,
      this.status,
      this.box,
      this.legend,
      this.movedBox,
    ];
  }

  key() {
    return `${this.page.run.key}|${this.p}`;
  }

  load() {
    const key = this.key();
    this.busy = true;
    this.trouble = "";
    this.page.schedule();
    this.ask(QUESTIONS.life, { run: this.page.run.key, position: this.p }, (got, problem) => {
      this.busy = false;
      this.trouble = problem || "";
      this.path = got && { ...got, key };
      this.drawnFor = "";
      this.page.schedule();
    });
  }

  // p: the position that the tab shows, and its life
  paint(p, life) {
    this.p = p;
    const { path, page } = this,
      here = path?.key === this.key();
    this.box.hidden = this.legend.hidden = !here;
    this.movedBox.hidden = !here || !path.moved;
    this.button.hidden = page.offline || here;
    this.button.disabled = this.busy;
    this.status.textContent = this.statusText();
    this.status.hidden = !this.status.textContent;
    if (!here) return;
    const is = `${path.key}|${page.dark}|${path.k.length}`;
    if (this.drawnFor !== is) {
      this.drawnFor = is;
      this.draw(life);
    }
    this.follow(page.step);
  }

  statusText() {
    if (this.page.offline)
      return "This needs the running app: it makes an exact pass for each step.";
    if (this.busy) return "Working: an exact pass for each step …";
    return this.trouble ? `No path: ${this.trouble}` : "";
  }

  draw(life) {
    const { path } = this,
      { dark } = this.page,
      written = new Set(life.written);
    for (const plot of this.plots) {
      plot.points = fitPoints(path[plot.key]);
      plot.box.replaceChildren(...pathShapes(plot.points, written, dark), plot.now);
      plot.title.textContent = plotTitle(plot.name, path.explained?.[plot.key]);
      const label = `${plot.title.textContent}, over ${plot.points.length} steps`;
      plot.box.setAttribute("aria-label", label);
    }
    this.drawLegend(dark);
    if (path.moved) this.drawMoved(life);
  }

  drawLegend(dark) {
    const steps = this.path.k.length;
    fill(this.legend, `${dark}|${steps}`, () => [
      colourBar("order", dark, ["1", String(steps)], "step"),
      this.mark(
        "d2-dot-ring",
        "before its writing",
        "the canvas on which this position was written, in the step that wrote it",
      ),
      this.mark("d2-dot-now", "current step", "on the canvas before the current step"),
    ]);
  }

  drawMoved(life) {
    const { path } = this,
      marks = life.written.map((s) => ({ s, cls: "d2-mark-written" }));
    this.moved.forEach((chart, i) => {
      const list = path.moved[PARTS[i].key],
        high = Math.max(1e-9, ...list.filter(Number.isFinite));
      chart.draw(list, path.k.length, marks, { high, ticks: [high.toPrecision(2), "0"] });
    });
  }

  follow(step) {
    for (const { points, now } of this.plots) {
      const [x, y] = points[clamp(step, 0, points.length - 1)] ?? [0.5, 0.5];
      now.setAttribute("cx", x);
      now.setAttribute("cy", y);
    }
    this.moved.forEach((chart) => chart.follow(step));
  }
}

export { KeyPath };
