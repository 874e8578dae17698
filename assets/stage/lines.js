/* Lines over the steps in a small box; beside the title, the number of the current step or pointed
 * at. */
import { h, onMouseLeave } from "./dom.js";
import { clamp } from "./numbers.js";
import { atStep, linePath } from "./token-life.js";
import { svg, term } from "./widgets.js";

const upright = (s, count, cls) =>
  svg("line", { class: cls, x1: atStep(s, count), x2: atStep(s, count), y1: 0, y2: 100 });

// spec: {title, why, ticks: [top, bottom], format(value, step)}; flip: small values at the top.
class LineChart {
  constructor(page, spec) {
    this.page = page;
    this.spec = { low: 0, high: 1, flip: false, ...spec };
    this.values = [];
    this.steps = 0;
    this.pointed = null; // the step under the pointer
    this.on = -1; // the current step
    this.build();
    this.listen();
  }

  build() {
    const { page, spec } = this;
    this.value = h("b", "d2-line-value");
    this.box = svg("svg", {
      viewBox: "0 0 1000 100",
      preserveAspectRatio: "none",
      "aria-hidden": "true",
    });
    this.top = h("span");
    this.bottom = h("span");
    this.plot = h("div", "d2-line-box", {}, this.box);
    this.cursor = svg("line", { class: "d2-line-now", y1: 0, y2: 100 });
    const ticks = h("div", "d2-line-ticks", { "aria-hidden": "true" }, this.top, this.bottom);
    this.el = h(
      "section",
      "d2-line",
      {},
      h("div", "d2-line-head", {}, term(page, spec.title, spec.why), this.value),
      h("div", "d2-line-frame", {}, ticks, this.plot),
    );
  }

  listen() {
    const { plot } = this;
    plot.addEventListener("pointermove", (e) => this.point(this.stepAt(e)));
    onMouseLeave(plot, () => this.point(null));
    plot.addEventListener("click", (e) => {
      if (this.steps) this.page.goto(this.stepAt(e));
    });
  }

  stepAt(e) {
    const box = this.plot.getBoundingClientRect(),
      last = this.steps - 1;
    return clamp(Math.round(((e.clientX - box.left) / box.width) * last), 0, Math.max(0, last));
  }

  point(s) {
    this.pointed = s;
    this.showValue();
  }

  showValue() {
    const s = this.pointed ?? this.on,
      v = this.values[s] ?? null,
      text = v !== null ? this.spec.format(v, s) : s < 0 ? "" : "–";
    this.value.textContent = this.pointed === null ? text : `${text} (step ${this.pointed + 1})`;
  }

  // marks: [{s, cls}], upright lines. scale: {low, high, ticks, map: value -> 0..1} for this once.
  draw(values, steps, marks = [], scale = {}) {
    const { spec } = this,
      { low, high, ticks } = { ...spec, ...scale },
      map = scale.map ?? ((v) => (v - low) / (high - low || 1)),
      height = (v) => (v === null ? null : spec.flip ? 1 - map(v) : map(v));
    Object.assign(this, { values, steps });
    [this.top.textContent, this.bottom.textContent] = ticks;
    this.box.replaceChildren(
      ...marks.map(({ s, cls }) => upright(s, steps, cls)),
      svg("path", { class: "d2-line-path", d: linePath(values.map(height), steps, 0, 1) }),
      this.cursor,
    );
  }

  follow(s) {
    this.on = s;
    const x = atStep(Math.max(0, s), this.steps);
    this.cursor.setAttribute("x1", x);
    this.cursor.setAttribute("x2", x);
    this.cursor.style.display = s < 0 ? "none" : "";
    this.showValue();
  }
}

export { LineChart };
