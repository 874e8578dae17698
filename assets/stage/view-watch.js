/* The tab Watch: every lane as text. What a step computes is lit, what it writes stands out, and
 * masks show what the model would write there now. */
import { stepsAt } from "./board.js";
import { chipEvents, chipList, layChips, makeChips, paintChip } from "./chips.js";
import { COMPUTED, WRITTEN_NOW } from "./colours.js";
import { POINTS } from "./contract.js";
import { h, swatch } from "./dom.js";
import { outsideGrid } from "./grid.js";
import { GridView } from "./grid-view.js";
import { writeAt } from "./run.js";
import { askedText, visible } from "./sentences.js";
import { setText } from "./widgets.js";
import { progressAt, watchWords } from "./watch-words.js";

const LEGEND = [
  [COMPUTED, "computed now"],
  ["d2-dot-reused", "from the cache"],
  [WRITTEN_NOW, "just written"],
  ["d2-dot-mask", "the model's guess"],
];

function entry([look, label]) {
  if (look.startsWith("#")) return swatch(look, label);
  return h("span", "d2-swatch", {}, h("i", `d2-dot ${look}`), label);
}

// One lane: its name, how much it has computed, and its tokens.
class WatchLane {
  constructor(page, i) {
    this.page = page;
    this.i = i;
    this.built = null;
    this.chips = []; // those that are shown
    this.title = h("h3", "d2-watch-title");
    this.share = h("b", "d2-watch-share");
    this.bar = h("i", "");
    this.prompt = chipList(" d2-watch-prompt", "Prompt tokens, by position");
    this.answer = chipList(" d2-watch-answer", "Answer tokens, by position");
    this.grid = new GridView(page, () => this.i);
    for (const list of [this.prompt, this.answer]) chipEvents(list, page, () => this.i);
    const { title, share, bar, prompt, grid, answer } = this,
      meter = h("div", "d2-watch-meter", { "aria-hidden": "true" }, bar),
      work = h("span", "d2-watch-work", {}, share, " of the work");
    this.el = h(
      "section",
      "d2-watch-lane",
      {},
      h("div", "d2-watch-head", {}, title, work),
      meter,
      prompt,
      grid.el,
      answer,
    );
  }

  remove() {
    this.grid.destroy();
    this.el.remove();
  }

  paint(run, step, dark) {
    if (this.built !== run) this.restart(run);
    const { board, selected, hover } = this.page,
      look = { run, step, mode: "computed", dark, selected, ghosts: this.page.ghosts };
    for (const el of this.chips) paintChip(el, Number(el.dataset.p), look);
    this.grid.paint(look);
    this.grid.mark(hover && hover.lane === this.i ? hover.p : null);
    const { work } = progressAt(board, this.i, step);
    setText(this.share, `${Math.round(100 * work)} %`);
    this.bar.style.width = `${Math.min(100, 100 * work)}%`;
  }

  // A token's place is as wide as the token that ends up in it: nothing moves while masks are filled.
  reserve(run) {
    const outside = outsideGrid(run);
    if (!outside.length) return;
    const chips = this.chips.slice(run.P),
      widthOf = ruler(getComputedStyle(chips[0]));
    chips.forEach((chip, k) => {
      const text = writeAt(run, outside[k], run.records.length)?.text;
      if (text === undefined) return;
      const shown = run.eos.has(text) ? "end" : visible(text).trim();
      chip.style.width = `${(widthOf(shown) + 0.75).toFixed(2)}em`;
    });
  }

  restart(run) {
    this.built = run;
    this.chips = layChips(run, makeChips(run), this.prompt, this.answer);
    this.grid.restart(run);
    this.el.classList.toggle("d2-watch-board", Boolean(run.grid));
    if (run.status !== "running") this.reserve(run);
    setText(this.title, run.title);
    this.el.setAttribute("aria-label", run.title);
    this.el.classList.toggle("d2-watch-long", run.T > 160);
  }
}

// Measures the width of a text in em.
function ruler({ font, fontSize }) {
  const context = h("canvas").getContext("2d");
  context.font = font;
  return (text) => context.measureText(text).width / parseFloat(fontSize);
}

class WatchView {
  constructor(host, page) {
    this.page = page;
    this.lanes = [];
    this.says = h("p", "d2-watch-says");
    this.asked = h("p", "d2-watch-asked"); // on a phone, where prompt tokens have no room for text
    this.wrong = entry(["d2-dot-wrong", "breaks a rule"]);
    const legend = h("div", "d2-legend", {}, ...LEGEND.map(entry), this.wrong);
    this.grid = h("div", "d2-watch-lanes");
    const point = { "data-point": POINTS.watch };
    host.append(h("div", "d2-watch", point, this.says, this.asked, this.grid, legend));
  }

  paint() {
    const { board, moment, dark } = this.page,
      steps = stepsAt(board, moment);
    while (this.lanes.length > board.lanes.length) this.lanes.pop().remove();
    while (this.lanes.length < board.lanes.length) {
      const lane = new WatchLane(this.page, this.lanes.length);
      this.lanes.push(lane);
      this.grid.append(lane.el);
    }
    this.grid.classList.toggle("d2-watch-one", board.lanes.length === 1);
    this.lanes.forEach((lane, i) => lane.paint(board.lanes[i], steps[i], dark));
    this.wrong.hidden = !board.lanes.some(({ grid }) => grid);
    setText(this.says, watchWords(board, steps));
    setText(this.asked, board.lanes.length ? askedText(board.lanes[0]) : "");
  }

  destroy() {
    for (const lane of this.lanes) lane.remove();
  }
}

const tab = { key: "watch", title: "Watch", mount: (host, page) => new WatchView(host, page) };

export { tab };
