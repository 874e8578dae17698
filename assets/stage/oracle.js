/* Two lines of positions in the truth tab: what the oracle would have recomputed in the step on
 * view, above what the policy recomputed. */
import { CellMap, divide } from "./cells.js";
import { rgb } from "./colours.js";
import { h } from "./dom.js";
import { pixel } from "./pixels.js";
import { placeOf } from "./sentences.js";
import { MARKS, oracleMarks, oracleSentence } from "./truths.js";
import { caption, marker, paper } from "./widgets.js";

// In ink: the colours of the reasons mean something else. Also in view-looks.css.
const INKS = { light: "#1f2937", dark: "#e6e9ee" };
const SHOWN = new Set(["hit", "missed", "needless"]);
const LEAD =
  "The oracle knows how far each kept K,V had drifted and would recompute those that drifted " +
  "most: as many as the policy did. Upper line: the oracle's choice. Lower line: the policy's.";

function oracleWords(run, step, p) {
  const marks = oracleMarks(run, step),
    place = placeOf(run, p);
  if (!marks) return `${place}: nothing to choose in this step`;
  const mark = MARKS.find((x) => x.key === marks[p]);
  return `${place}: ${mark.label}: ${mark.why}`;
}

// Told apart by shape as well. hit: filled above and below; missed: a ring above; needless: a bar
// below. half: the height of one line.
const SHAPES = {
  hit(ctx, x, wide, half) {
    ctx.fillRect(x, half * 0.12, wide, half * 0.76);
    ctx.fillRect(x, half * 1.12, wide, half * 0.76);
  },
  missed(ctx, x, wide, half, ratio) {
    const line = (ctx.lineWidth = Math.min(2 * ratio, wide / 2));
    const [top, ht] = [half * 0.12 + line / 2, half * 0.76 - line];
    ctx.strokeRect(x + line / 2, top, Math.max(wide - line, 0.5), ht);
  },
  needless(ctx, x, wide, half) {
    ctx.fillRect(x, half * 1.4, wide, half * 0.2);
  },
};

function drawMarks(ctx, marks, w, ht, ratio, dark) {
  const cell = w / marks.length,
    wide = Math.max(cell - (cell > 4 * ratio ? ratio : 0), ratio);
  ctx.fillStyle = ctx.strokeStyle = INKS[dark ? "dark" : "light"];
  marks.forEach((mark, p) => {
    if (!SHAPES[mark]) return;
    SHAPES[mark](ctx, cell * p, wide, ht / 2, ratio);
  });
}

class OracleStrip {
  constructor(page) {
    const mark = marker(page);
    this.page = page;
    this.sentence = h("p", "d2-sentence");
    this.cells = new CellMap({
      label: "The oracle above, the policy below",
      read: (p) => oracleWords(page.run, page.step, p),
      choose: (p) => page.select(p),
      point: (p) => page.setHover(p === null ? null : { p, s: null, lane: page.lane }),
    });
    this.cells.el.classList.add("d2-two");
    const names = ["oracle", "policy"].map((textContent) => h("span", "", { textContent })),
      entries = MARKS.filter((m) => SHOWN.has(m.key));
    this.parts = [
      h("h3", "d2-title d2-gap", { textContent: "The oracle: what should have been recomputed" }),
      caption(LEAD),
      this.sentence,
      h(
        "div",
        "d2-look-frame",
        {},
        this.cells.el,
        h("div", "d2-two-names", { "aria-hidden": "true" }, ...names),
      ),
      this.cells.below,
      h("div", "d2-legend", {}, ...entries.map((m) => mark(`d2-dot-${m.key}`, m.label, m.why))),
    ];
  }

  paint(run, step, dark) {
    const marks = oracleMarks(run, step),
      { reused, masked } = paper(dark),
      ground = pixel(rgb(marks ? reused : masked));
    this.cells.draw(
      run.T,
      2,
      (out) => out.fill(ground),
      (ctx, w, ht, ratio) => {
        divide(ctx, w, ht, run.P / run.T, ratio, dark);
        if (marks) drawMarks(ctx, marks, w, ht, ratio, dark);
      },
    );
    this.sentence.textContent = step < 0 ? "" : oracleSentence(run, step);
  }

  follow(p) {
    this.cells.follow(p);
  }

  destroy() {
    this.cells.destroy();
  }
}

export { OracleStrip };
