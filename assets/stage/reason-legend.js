/* A legend of the reasons for recomputing, with how many positions each has in the current step.
 * Made once, so that the focus can rest on it while a run goes on. */
import { h } from "./dom.js";
import { paper } from "./widgets.js";

// The explanations of the reasons, shared by the legends of a page: key -> element.
const reasonWhys = (page) =>
  Object.fromEntries(
    page.run.reasons.map(({ key }) => [key, h("span", "", { id: `${page.uid}-why-${key}` })]),
  );

class ReasonLegend {
  constructor(page, el, whys) {
    this.el = el;
    this.swatches = page.run.reasons.map((reason) => this.makeSwatch(page, reason, whys));
    el.replaceChildren(...this.swatches.map((x) => x.el));
  }

  makeSwatch(page, { key, colour = "" }, whys) {
    const dot = h("i", "d2-dot"),
      label = h("span"),
      count = h("b"),
      el = h("button", "d2-swatch", { type: "button" }, dot, label, count);
    dot.style.background = colour;
    return { key, dot, label, count, el: page.explained(el, whys[key]) };
  }

  // The names that a run has for its reasons, and the colour of what was reused.
  name(run, dark) {
    for (const { key, label, dot } of this.swatches) {
      label.textContent = run.reasons.find((r) => r.key === key).label;
      if (key === "reused") dot.style.background = paper(dark).reused;
    }
  }

  // seen: the reasons that have occurred so far; the others are hidden
  paint(counts, seen) {
    for (const { key, el, count } of this.swatches) {
      el.hidden = !seen.has(key);
      count.textContent = counts[key] || 0;
    }
  }
}

export { ReasonLegend, reasonWhys };
