/* What is above the tabs: the numbers of the current step, the line about what is pointed at, and
 * what a screen reader hears. */
import { placeIn } from "./board.js";
import { guessWords } from "./candidates.js";
import { POINTS } from "./contract.js";
import { h } from "./dom.js";
import { hitRateSoFar, totalsAt } from "./run.js";
import { formatTotals, readout, STATS, tooltipData, visible } from "./sentences.js";
import { tipContent } from "./tip.js";

const PAUSE = 1500; // ms between two announcements
const IDLE = "Point at a token or a map to follow one position.";

class Stats {
  constructor(page) {
    this.page = page;
    this.values = {};
    const stats = STATS.map(([key, label, why]) => this.makeStat(key, label, why));
    this.el = h("div", "d2-stats", { "data-point": POINTS.stats }, ...stats);
  }

  makeStat(key, label, why) {
    const value = h("span", "d2-value", { textContent: "–" }),
      name = h("span", "d2-label", { textContent: label });
    this.values[key] = value;
    return this.page.explained(h("button", "d2-stat", { type: "button" }, value, name), why);
  }

  paint(run, step) {
    const totals = formatTotals(totalsAt(run, step) || { hit_rate: hitRateSoFar(run, step) });
    this.values.step.textContent = `${step + 1} / ${run.records.length}`;
    for (const key of ["tps", "hit", "flops"]) this.values[key].textContent = totals[key];
  }
}

// Reads out where the reader is, now and then, and always the last place.
class Announcer {
  constructor() {
    this.el = h("p", "d2-sr", { "aria-live": "polite" });
    this.text = "";
    this.at = 0; // of the last announcement
    this.timer = 0;
  }

  say(text) {
    this.text = text;
    if (this.timer || this.el.textContent === text) return;
    const wait = Math.max(200, this.at + PAUSE - performance.now());
    this.timer = setTimeout(() => this.speak(), wait);
  }

  speak() {
    this.timer = 0;
    this.at = performance.now();
    this.el.textContent = this.text;
  }

  destroy() {
    clearTimeout(this.timer);
  }
}

// The line under the transport follows one position; a token pointed at gets the tooltip too.
class HoverLine {
  constructor(page, tip) {
    this.page = page;
    this.tip = tip;
    this.el = h("p", "d2-readout");
    this.described = null; // the token that the tooltip is about
  }

  paint() {
    const { page, tip } = this,
      { hover } = page,
      run = hover && page.board.lanes[hover.lane],
      s = hover && (hover.s ?? page.stepOf(hover.lane)),
      data = run && hover.p < run.T && s >= 0 ? tooltipData(run, hover.p, s) : null;
    this.release(hover?.chip);
    this.el.textContent = data ? this.words(run, s, data) : IDLE;
    this.el.classList.toggle("d2-quiet", !data);
    if (data && hover.chip) this.showTip(run, data);
    else tip.hideToken();
  }

  words(run, s, data) {
    const { board, hover } = this.page,
      lane = board.lanes.length > 1 ? `lane ${hover.lane + 1}, ` : "";
    const guesses = guessWords(run, s, data.pos);
    return `${lane}step ${s + 1}, ${readout(data)}${guesses && `; ${guesses}`}`;
  }

  showTip(run, data) {
    const { chip } = this.page.hover;
    this.tip.show(chip, [...tipContent(run, data), ...this.inFirstLane()]);
    this.described = chip;
    chip.setAttribute("aria-describedby", this.tip.el.id);
  }

  release(chip) {
    if (!this.described || this.described === chip) return;
    this.described.removeAttribute("aria-describedby");
    this.described = null;
  }

  // What lane 1 has at the same place, for a token of another lane.
  inFirstLane() {
    const { board, hover } = this.page,
      [first] = board.lanes,
      q = hover.lane ? placeIn(board.lanes[hover.lane], first, hover.p) : null;
    if (q === null) return [];
    const { masked, text, eos, step } = tooltipData(first, q, this.page.stepOf(0)),
      token = eos ? "end token" : `'${visible(text)}'`,
      when = step === null ? "" : `, written in step ${step + 1}`;
    const textContent = masked ? "lane 1: still masked" : `lane 1: ${token}${when}`;
    return [h("p", "d2-tip-first", { textContent })];
  }
}

// Why nothing moves: the board waits for its turn, or the server is away.
class Banner {
  constructor() {
    this.el = h("p", "d2-banner", { role: "status", hidden: true });
  }

  paint({ away, board }) {
    const text = away || board.wait;
    if (this.el.textContent !== text) this.el.textContent = text;
    this.el.hidden = !text;
  }
}

export { Announcer, Banner, HoverLine, Stats };
