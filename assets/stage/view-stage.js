/* The tab Stage: the run of the current lane as chips, sentences and four maps. */
import { h } from "./dom.js";
import { frame } from "./frame.js";
import { reasonCounts, reasonsIn } from "./reasons.js";
import { reasonWhys } from "./reason-legend.js";
import { touchedIn } from "./run.js";
import { StageAnswer } from "./stage-answer.js";
import { StageMaps } from "./stage-maps.js";

const MANY = 256; // positions of an answer; above it they are drawn smaller

class StageView {
  constructor(host, page) {
    this.page = page;
    this.host = host;
    this.built = null; // the run that it was built for
    this.lookFor = "";
    this.countsFor = "";
    this.countedUpTo = 0; // steps whose reasons are in `bits`
    this.bits = 0;
    this.whys = reasonWhys(page);
    this.answer = new StageAnswer(page, this.whys);
    this.maps = new StageMaps(page, this.whys);
    this.off = new AbortController();
    frame.stick(this.answer.el, this.off.signal);
    this.legends = [this.answer.reasons, this.maps.reasons];
    const help = h("div", "d2-sr", { hidden: true }, ...Object.values(this.whys));
    host.append(h("div", "d2-body", {}, this.answer.el, this.maps.el), help);
  }

  paint() {
    const { run, step, dark, hover } = this.page;
    if (!run.key) return;
    if (this.built !== run) this.restart(run);
    this.paintLook(run, dark);
    this.maps.paint(run, dark);
    this.answer.paint(run, step, dark);
    this.paintCounts(run, step);
    this.maps.paintStep(step);
    const p = hover && hover.p < run.T ? hover.p : null;
    this.answer.paintHover(p);
    this.maps.paintHover(p);
  }

  restart(run) {
    this.built = run;
    this.lookFor = "";
    this.countedUpTo = this.bits = 0;
    this.answer.restart(run);
  }

  // What changes with the run, the theme and the scale of the order alone.
  paintLook(run, dark) {
    const key = `${run.key}|${dark}|${run.expected}`;
    if (this.lookFor === key) return;
    this.lookFor = key;
    for (const r of run.reasons) this.whys[r.key].textContent = r.why;
    for (const legend of this.legends) legend.name(run, dark);
    this.maps.restart(run, dark);
    this.host.classList.toggle("d2-many", run.G > MANY);
  }

  // The positions of the current step by reason, for the reasons seen so far.
  paintCounts(run, step) {
    const key = `${this.lookFor}|${step}|${run.records.length}`;
    if (this.countsFor === key) return;
    this.countsFor = key;
    const record = run.records[step],
      counts = record ? { ...reasonCounts(record), reused: run.T - touchedIn(record) } : {};
    for (; this.countedUpTo < run.records.length; this.countedUpTo++)
      for (const byte of run.records[this.countedUpTo]?.y || []) this.bits |= byte;
    const seen = new Set(["reused", ...reasonsIn(this.bits)]);
    for (const legend of this.legends) legend.paint(counts, seen);
  }

  destroy() {
    this.off.abort();
    this.maps.destroy();
    this.answer.grid.destroy();
  }
}

const tab = { key: "stage", title: "Stage", mount: (host, page) => new StageView(host, page) };

export { tab };
