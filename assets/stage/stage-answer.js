/* The left side of the tab Stage: what happened in the current step, and the tokens as chips. */
import { chipEvents, chipList, layChips, makeChips, paintChip } from "./chips.js";
import { MASKED_NOW, WRITTEN_NOW } from "./colours.js";
import { POINTS } from "./contract.js";
import { choice, colourBar, h, swatch } from "./dom.js";
import { worded } from "./glossary.js";
import { GridView } from "./grid-view.js";
import { orderBar } from "./maps.js";
import { plural } from "./numbers.js";
import { ReasonLegend } from "./reason-legend.js";
import { askedText, confidenceUnit, explain, explainWhy, madeBy, noteOf } from "./sentences.js";
import { fill, setText } from "./widgets.js";

const MODES = [
  ["order", "order"],
  ["confidence", "confidence"],
  ["reason", "recomputed now"],
];

class StageAnswer {
  constructor(page, whys) {
    this.page = page;
    this.mode = "order"; // what the colour of a token means
    this.chips = [];
    this.marked = null; // the position outlined now
    this.reasons = new ReasonLegend(page, h("div", "d2-reasons"), whys);
    this.again = swatch(MASKED_NOW, "masked again in this step");
    this.build();
    for (const list of [this.answer, this.prompt]) chipEvents(list, page, () => page.lane);
  }

  build() {
    this.sentence = h("p", "d2-sentence");
    this.why = h("p", "d2-why");
    this.note = h("p", "d2-note", { role: "status", hidden: true });
    this.asked = h("p", "d2-asked");
    this.made = h("p", "d2-more");
    this.promptTitle = h("summary", "d2-summary");
    this.prompt = chipList(" d2-prompt", "Prompt tokens, by position");
    this.answer = chipList("", "Answer tokens, by position");
    this.grid = new GridView(this.page, () => this.page.lane);
    this.answer.dataset.point = POINTS.answer;
    this.legend = h("div", "d2-legend");
    this.fold = h("details", "d2-fold", { "data-point": POINTS.prompt });
    this.fold.append(this.promptTitle, this.prompt);
    this.title = h("h3", "d2-title");
    const { sentence, why, note, title } = this;
    this.el = h(
      "div",
      "d2-left",
      {},
      h("div", "d2-said", { "data-point": POINTS.sentence }, sentence, why, note),
      h("div", "d2-which", {}, this.asked, this.made),
      this.fold,
      h("div", "d2-head", {}, title, this.makeModes()),
      this.grid.el,
      this.answer,
      this.legend,
    );
  }

  makeModes() {
    return choice("Colour of the tokens", MODES, this.mode, (mode) => {
      this.mode = mode;
      this.page.schedule();
    });
  }

  // The chips of another run.
  restart(run) {
    this.chips = makeChips(run);
    layChips(run, this.chips, this.prompt, this.answer);
    this.grid.restart(run);
    this.promptTitle.textContent = `Prompt (${plural(run.P, "token")})`;
    this.fold.hidden = run.gapped;
    this.title.textContent = run.gapped ? "Text" : "Answer";
    this.asked.textContent = this.asked.title = askedText(run);
    this.made.textContent = madeBy(run.start);
    this.marked = null;
  }

  paint(run, step, dark) {
    const record = run.records[step],
      look = {
        run,
        step,
        mode: this.mode,
        dark,
        selected: this.page.selected,
        ghosts: this.page.ghosts,
      };
    this.chips.forEach((el, p) => paintChip(el, p, look));
    this.grid.paint(look);
    this.sentence.textContent = explain(record, run, step);
    const why = record ? explainWhy(record, run) : "";
    fill(this.why, why, () => worded(why));
    this.paintNote(run, step);
    this.paintLegend(run, dark);
  }

  paintNote(run, step) {
    const text = noteOf(run, step);
    setText(this.note, text);
    this.note.hidden = !text;
    this.note.classList.toggle("d2-alert", run.status === "failed" || run.gaps > 0);
  }

  paintLegend(run, dark) {
    const { mode } = this;
    this.again.hidden = !run.again;
    fill(this.legend, `${run.key}|${run.expected}|${dark}|${mode}`, () => [
      swatch(WRITTEN_NOW, "written in this step"),
      this.again,
      this.scaleOf(mode, run, dark),
    ]);
  }

  scaleOf(mode, run, dark) {
    if (mode === "reason") return this.reasons.el;
    if (mode === "order") return orderBar(dark, run.expected);
    return colourBar("confidence", dark, ["0", "0.5", "1"], confidenceUnit(run.start));
  }

  // p: the position pointed at, or null
  paintHover(p) {
    if (this.marked !== p) this.chips[this.marked]?.classList.remove("d2-marked");
    this.marked = p;
    this.chips[p]?.classList.add("d2-marked");
    this.grid.mark(p);
  }
}

export { StageAnswer };
