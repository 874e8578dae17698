/* The T x T map of one step in the tab Stage, fetched on request; it stays open from run to run. */
import { colourAt } from "./colours.js";
import { LAST_CODE, QUESTIONS } from "./contract.js";
import { h } from "./dom.js";
import { decodePlane } from "./numbers.js";
import { evenShades, table } from "./pixels.js";
import { mapNote, wantsMap } from "./sentences.js";
import { asker, caption } from "./widgets.js";

const SHOW = "show this step's attention map",
  HIDE = "hide the attention map";
const WAIT = 250; // ms that a step must be shown before its map is asked for

class RolloutMap {
  constructor(page) {
    this.page = page;
    this.ask = asker(page);
    this.open = false;
    this.shown = null; // the map that was loaded last, and of what it is
    this.askedFor = "";
    this.timer = 0;
    this.build();
  }

  build() {
    this.button = h("button", "d2-text", {
      type: "button",
      "aria-expanded": "false",
      hidden: true,
      textContent: SHOW,
      onclick: () => this.toggle(),
    });
    this.canvas = h("canvas", "d2-detail-canvas");
    this.note = caption("", { role: "status" });
    const hairs = ["d2-hair", "d2-hair-row"].map((cls) => h("div", cls));
    this.box = h("div", "d2-detail-box", {}, this.canvas, ...hairs);
    this.now = h("button", "d2-text", {
      type: "button",
      textContent: "load the map of the current step",
      onclick: () => this.load(),
    });
    this.el = h("div", "d2-detail", { hidden: true }, this.note, this.box, this.now);
  }

  key() {
    return `${this.page.run.key}|${this.page.step}`;
  }

  toggle() {
    this.open = !this.open;
    this.show();
    if (this.open && this.shown?.key !== this.key()) this.load();
  }

  show() {
    const { button, el, page } = this;
    button.hidden = !page.run.start?.rollout || page.offline;
    el.hidden = !this.open || button.hidden;
    button.setAttribute("aria-expanded", String(!el.hidden));
    button.textContent = el.hidden ? SHOW : HIDE;
  }

  paint() {
    this.show();
    if (this.el.hidden) return;
    const { run, live, dark, step } = this.page,
      { shown } = this,
      old = shown?.key !== this.key(),
      due = old && this.askedFor !== this.key(),
      soon = due && wantsMap(run, live);
    this.box.classList.toggle("d2-stale", old);
    if (shown && (shown.dark !== dark || shown.noted !== run.key)) this.draw();
    clearTimeout(this.timer);
    if (soon) this.timer = setTimeout(() => this.load(), WAIT);
    this.now.classList.toggle("d2-away", !due || soon || step < 0);
  }

  load() {
    const { run, step: at } = this.page,
      { key: of, T, P } = run;
    if (at < 0) return;
    this.askedFor = this.key();
    if (!this.shown) this.note.set(`Loading the map of step ${at + 1} …`);
    this.ask(QUESTIONS.attention, { run: of, step: at, layer: "rollout" }, (got, problem) => {
      if (of !== this.page.run.key) return; // the reader has moved on
      this.shown = got && { ...got, key: `${of}|${at}`, of, at, T, P };
      if (got) this.draw();
      else this.showProblem(problem);
      this.page.schedule();
    });
  }

  showProblem(problem) {
    this.canvas.width = this.canvas.height; // blank
    this.note.set(`No map: ${problem ?? "there is none for this step"}.`);
  }

  draw() {
    const { canvas, shown } = this,
      { n, edges, map, of, at } = shown,
      { dark, run } = this.page,
      bytes = evenShades(decodePlane(map), edges),
      colours = table((u) => colourAt("rollout", u / LAST_CODE, dark)),
      image = new ImageData(n, n),
      pixels = new Uint32Array(image.data.buffer);
    for (let i = 0; i < pixels.length; i++) pixels[i] = colours[bytes[i]];
    canvas.width = canvas.height = n;
    canvas.getContext("2d").putImageData(image, 0, 0);
    this.placeLines();
    this.note.set(mapNote(at, dark, of !== run.key));
    shown.dark = dark;
    shown.noted = run.key;
  }

  // Where the prompt ends; a pooled map keeps the prompt's share.
  placeLines() {
    const { n, prompt: pooled, T, P } = this.shown;
    this.box.style.setProperty("--d2-part", n !== T && pooled === P ? P / T : pooled / n);
    this.box.style.setProperty("--d2-all", T);
  }

  destroy() {
    clearTimeout(this.timer);
  }
}

export { RolloutMap };
