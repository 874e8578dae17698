/* The right side of the tab Stage: four maps of every position and step on one position axis. */
import { css, MASKED_NOW, rgb, WRITTEN_NOW } from "./colours.js";
import { choice, fitCanvas, h, swatch } from "./dom.js";
import {
  cellUnder,
  densityBar,
  drawRow,
  makeMap,
  mapEvents,
  orderBar,
  resetStore,
  rolloutBar,
  showMap,
  showStrip,
} from "./maps.js";
import { MAPS, tables } from "./pixels.js";
import { ReasonLegend } from "./reason-legend.js";
import { RolloutMap } from "./rollout-map.js";
import { captions, partNames } from "./sentences.js";
import { caption, paper } from "./widgets.js";

const LEAD =
  "Each column is a position of the canvas, each line a denoising step; time runs downwards. " +
  "Point anywhere to follow a position, click to go to that step.";
const ZOOMS = [
  ["all", "whole canvas"],
  ["answer", "answer only"],
];
const SHORT_PROMPT = 0.3; // of the canvas: no room there for a sentence

class StageMaps {
  constructor(page, whys) {
    this.page = page;
    this.run = page.run;
    this.zoom = "all";
    this.shownZoom = "";
    this.drawn = 0; // rows
    this.dirty = true;
    this.colours = null;
    this.build(whys);
    this.sizes = new ResizeObserver(() => this.resize());
    this.sizes.observe(this.el);
  }

  build(whys) {
    this.maps = MAPS.map(makeMap);
    this.byKey = Object.fromEntries(this.maps.map((m) => [m.spec.key, m]));
    this.again = swatch(MASKED_NOW, "masked again in this step");
    const { cache, rollout } = this.byKey;
    this.reasons = new ReasonLegend(this.page, cache.legend, whys);
    const label = { textContent: "hit rate", "aria-hidden": "true" };
    cache.strip.before(h("span", "d2-striplabel", label));
    this.rollout = new RolloutMap(this.page);
    rollout.el.append(this.rollout.button, this.rollout.el);
    for (const { plane } of this.maps) mapEvents(plane, this.page, (e) => this.cellAt(plane, e));
    this.askedAxis = h("span", "d2-axis-prompt");
    this.answerAxis = h("span", "d2-axis-answer");
    const title = h("h3", "d2-title", { textContent: "Every position, every step" });
    this.el = h(
      "div",
      "d2-right",
      {},
      h("div", "d2-head", {}, title, this.makeZooms()),
      caption(LEAD),
      h("div", "d2-axis", { "aria-hidden": "true" }, this.askedAxis, this.answerAxis),
      ...this.maps.map((m) => m.el),
    );
  }

  makeZooms() {
    return choice("Part of the canvas", ZOOMS, this.zoom, (zoom) => {
      this.zoom = zoom;
      this.page.setHover(null);
    });
  }

  // The positions shown.
  range() {
    const { P, T } = this.run;
    return this.zoom === "answer" ? { x0: P, x1: T } : { x0: 0, x1: T };
  }

  cellAt(plane, e) {
    const view = { ...this.range(), rows: this.run.expected };
    return { ...cellUnder(plane, e, this.run, view), lane: this.page.lane };
  }

  resize() {
    const fit = (m) => [m.canvas, m.strip].map((canvas) => fitCanvas(canvas));
    if (this.maps.flatMap(fit).some(Boolean)) this.dirty = true;
    this.page.schedule();
  }

  // All rows are drawn again: another run, theme or scale of the order.
  restart(run, dark) {
    this.run = run;
    this.drawn = 0;
    this.dirty = true;
    this.colours = tables(dark, run.expected);
    this.maps.forEach((m) => resetStore(m, run.T, run.expected));
    this.paintLegends(run, dark);
  }

  paintLegends(run, dark) {
    const { density, rollout, order } = this.byKey;
    density.legend.replaceChildren(densityBar(dark));
    rollout.legend.replaceChildren(rolloutBar(dark));
    order.legend.replaceChildren(
      swatch(css(rgb(paper(dark).masked)), "masked"),
      swatch(WRITTEN_NOW, "written in this step"),
      this.again,
      orderBar(dark, run.expected),
    );
    for (const m of this.maps) {
      m.more.set(captions[m.spec.key](run.start));
      m.last.textContent = run.expected;
    }
    rollout.el.classList.toggle("d2-none", !run.start.rollout);
    rollout.absent.hidden = Boolean(run.start.rollout);
    this.paintAxis(run);
  }

  paintAxis(run) {
    const { P, G, T } = run,
      [before, after] = partNames(run);
    this.askedAxis.textContent = `${before} · ${P}`;
    this.answerAxis.textContent = `${after} · ${G}`;
    const short = run.gapped || P / T < SHORT_PROMPT,
      text = short ? "given" : "the prompt is given, never masked";
    for (const key of ["density", "order"]) this.byKey[key].plane.lastChild.textContent = text;
  }

  // New rows only.
  paint(run, dark) {
    const steps = run.records.length;
    if (this.drawn === steps && !this.dirty && this.shownZoom === this.zoom) return;
    for (; this.drawn < steps; this.drawn++)
      for (const m of this.maps) drawRow(m, run, this.drawn, this.colours); // blank if it was lost
    const { x0, x1 } = this.range();
    this.maps.forEach((m) => showMap(m, run, x0, x1));
    showStrip(this.byKey.cache, run, dark);
    this.shownZoom = this.zoom;
    this.dirty = false;
    this.setRange(run, x0, x1);
  }

  setRange(run, x0, x1) {
    this.set("cols", x1 - x0);
    this.set("split", (run.P - x0) / (x1 - x0));
    this.set("rows", run.expected);
    this.set("got", run.records.length);
    this.el.classList.toggle("d2-zoomed", this.zoom === "answer" || run.P === 0);
  }

  set(name, value) {
    this.el.style.setProperty(`--d2-${name}`, value);
  }

  paintStep(step) {
    this.set("step", step);
    this.again.hidden = !this.run.again;
    this.rollout.paint();
  }

  // p: the position pointed at, or null
  paintHover(p) {
    const { x0 } = this.range();
    this.el.classList.toggle("d2-pointed", p !== null && p >= x0);
    if (p === null) return;
    this.set("col", p - x0);
    this.set("at", p);
  }

  destroy() {
    this.sizes.disconnect();
    this.rollout.destroy();
  }
}

export { StageMaps };
