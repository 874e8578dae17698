/* One lane of the tab Compare: its numbers, its answer as words, and one map. */
import { differs, firstDivergence, placeIn } from "./board.js";
import { chipEvents } from "./chips.js";
import { fitCanvas, h } from "./dom.js";
import { outsideGrid } from "./grid.js";
import { GridView } from "./grid-view.js";
import { cellUnder, drawRow, makePlane, mapEvents, resetStore, showMap } from "./maps.js";
import { clamp } from "./numbers.js";
import { differenceWords, isAhead, progressWords } from "./race.js";
import { hitRateSoFar, totalsAt, writeAt } from "./run.js";
import { formatTotals, noteOf, numberOf, STATS, visible } from "./sentences.js";

const FACTS = [
  ["step", "step"],
  ["tps", "tokens / s"],
  ["hit", "cache hit rate"],
  ["flops", "FLOPs vs no cache"],
];
const MANY = 96,
  BLOCK = 32; // positions
const FEW_LANES = 3;
const TOKENS_AT_LEAST = 16; // painted before the time is looked at
const HOLE = "\u2002\u200b"; // a mask: an en space with a pattern behind it; a line may break after

// What a token looks like, as a text to compare.
function lookOf(write, step, differs, picked) {
  const pin = picked ? "p" : " ";
  if (!write) return pin;
  return `${pin}${differs ? "≠" : " "}${write.s === step ? "n" : "s"}${write.text}`;
}

class LaneTokens {
  constructor(page, index) {
    this.page = page;
    this.index = index;
    this.run = null;
    this.places = []; // the position of each token
    this.spans = [];
    this.was = []; // the look of each token
    this.marked = null;
    this.el = h("div", "d2-tokens", {
      role: "listbox",
      "aria-orientation": "horizontal",
      "aria-label": `Answer of lane ${index + 1}, by position`,
      tabIndex: -1,
    });
    chipEvents(this.el, page, () => index);
  }

  build(run) {
    this.run = run;
    this.places = outsideGrid(run);
    this.spans = this.places.map((p, g) => this.makeToken(p, g === 0));
    this.was = this.places.map(() => " ");
    this.el.hidden = !this.places.length;
    this.marked = null;
    // blocks of their own: a change lays out one of them, not the whole answer
    const { length } = this.places,
      size = length > MANY ? BLOCK : Math.max(1, length),
      blocks = Array.from({ length: Math.ceil(length / size) }, (_, k) => this.makeBlock(k, size));
    this.el.replaceChildren(...blocks);
    // for all its words, kept free from the start
    this.el.style.setProperty(
      "--d2-room",
      `${clamp(Math.ceil(length / 8) * 21, run.grid ? 28 : 112, 252)}px`,
    );
  }

  makeToken(p, first) {
    return h("span", "d2-token d2-hole", {
      role: "option",
      "aria-selected": "false",
      "aria-label": "masked",
      textContent: HOLE,
      tabIndex: first ? 0 : -1,
      "data-p": p,
    });
  }

  makeBlock(k, size) {
    const end = Math.min(this.spans.length, (k + 1) * size),
      [first, last] = [k * size, end - 1].map((g) => numberOf(this.run, this.places[g])),
      label = `positions ${first} to ${last}`,
      spans = this.spans.slice(k * size, end);
    return h("div", "d2-tokenblock", { role: "group", "aria-label": label }, ...spans);
  }

  // Only tokens whose look has changed are touched. False: the time is up, the rest is for the next
  // frame.
  paint(steps, until) {
    const { page, index, run, was, places } = this,
      first = page.board.lanes[0],
      step = steps[index],
      same = index === 0 || (first.P === run.P && first.T === run.T);
    let changed = 0;
    for (let g = 0; g < places.length; g++) {
      const p = places[g],
        write = writeAt(run, p, step),
        q = same ? p : placeIn(run, first, p),
        its = write && index && q !== null ? writeAt(first, q, steps[0]) : null,
        differs = Boolean(its && its.text !== write.text),
        picked = page.selected === p,
        is = lookOf(write, step, differs, picked);
      if (was[g] === is) continue;
      if (++changed > TOKENS_AT_LEAST && performance.now() > until) return false;
      was[g] = is;
      this.paintToken(this.spans[g], write, { fresh: write?.s === step, differs, picked });
    }
    return true;
  }

  paintToken(span, write, { fresh, differs, picked }) {
    const eos = write && this.run.eos.has(write.text),
      state = !write ? " d2-hole" : fresh ? " d2-fresh" : "",
      marks = `${differs ? " d2-differs" : ""}${eos ? " d2-eos" : ""}${picked ? " d2-picked" : ""}`;
    span.className = `d2-token${state}${marks}`;
    span.ariaLabel = write ? null : "masked";
    span.ariaSelected = String(picked);
    span.textContent = !write ? HOLE : eos ? "end" : visible(write.text);
  }

  spanAt(p) {
    return this.spans[this.places.indexOf(p)];
  }

  // p: the position pointed at, or null. True when that is another than before.
  mark(p) {
    if (this.marked === p) return false;
    this.spanAt(this.marked)?.classList.remove("d2-marked");
    this.spanAt(p)?.classList.add("d2-marked");
    this.marked = p;
    return true;
  }
}

class LaneMap {
  constructor(page, index) {
    this.page = page;
    this.index = index;
    this.map = null;
    this.rows = 1;
    this.drawn = 0;
    this.drawnFor = "";
    this.dirty = true;
    this.resized = true;
    this.el = h("div", "d2-lane-map");
    this.absent = h("p", "d2-absent", { hidden: true });
    this.diverge = h("div", "d2-diverge", { hidden: true }, h("span", "", { textContent: "≠" }));
    this.branch = h(
      "div",
      "d2-branch",
      { hidden: true },
      h("span", "", { textContent: "what if" }),
    );
  }

  get run() {
    return this.page.board.lanes[this.index];
  }

  choose(spec) {
    this.map = makePlane(spec);
    this.drawnFor = "";
    this.resized = true;
    const { plane } = this.map;
    plane.append(this.diverge, this.branch);
    mapEvents(plane, this.page, (e) => this.cellAt(e));
    this.el.replaceChildren(plane, this.absent);
  }

  cellAt(e) {
    const { run, rows } = this;
    return { ...cellUnder(this.map.plane, e, run, { x0: 0, x1: run.T, rows }), lane: this.index };
  }

  restart() {
    this.drawnFor = "";
  }

  // frame: {rows: of the longest lane, colours, spec: which map}
  paint({ rows, colours, spec }) {
    const { run } = this;
    if (this.map?.spec !== spec) this.choose(spec);
    this.rows = rows;
    if (this.paintAbsent(spec)) return;
    if (this.resized && fitCanvas(this.map.canvas)) this.dirty = true;
    this.resized = false;
    const key = `${run.key}|${this.page.dark}|${rows}`;
    if (this.drawnFor !== key) {
      this.drawnFor = key;
      this.clear();
    }
    this.drawRows(colours);
    this.paintMarks();
  }

  // True when the policy of this lane makes no such map.
  paintAbsent(spec) {
    const { start } = this.run,
      absent = spec.key === "rollout" && !start.rollout;
    this.map.plane.hidden = absent;
    this.absent.hidden = !absent;
    if (absent)
      this.absent.textContent = `${start.policy || "This policy"} makes no attention map; d2 does.`;
    return absent;
  }

  clear() {
    const { run, rows } = this;
    this.drawn = 0;
    this.dirty = true;
    resetStore(this.map, run.T, rows);
    this.set("rows", rows);
    this.set("split", run.P / run.T);
    this.set("cols", run.T);
  }

  drawRows(colours) {
    const { run, map } = this;
    if (this.drawn < run.records.length) this.dirty = true;
    for (; this.drawn < run.records.length; this.drawn++) drawRow(map, run, this.drawn, colours);
    if (this.dirty) showMap(map, run, 0, run.T, this.rows);
    this.dirty = false;
  }

  // Where the lane leaves lane 1, and where it branched off.
  paintMarks() {
    const { run, diverge, branch, rows } = this,
      at = firstDivergence(this.page.board, this.index);
    diverge.hidden = at === null;
    branch.hidden = !run.branch;
    diverge.style.top = `${((at ?? 0) / rows) * 100}%`;
    branch.style.top = `${(((run.branch?.step ?? 0) + 1) / rows) * 100}%`;
  }

  // On the map alone: what is set on the lane would restyle all of its tokens.
  set(name, value) {
    this.el.style.setProperty(`--d2-${name}`, value);
  }

  mark(p) {
    this.el.classList.toggle("d2-pointed", p !== null);
    if (p !== null) this.set("col", p);
  }
}

class LaneStrip {
  constructor(page, index) {
    this.page = page;
    this.index = index;
    this.run = null;
    this.visible = true;
    this.tokens = new LaneTokens(page, index);
    this.grid = new GridView(page, () => index, { heat: false });
    this.map = new LaneMap(page, index);
    this.build();
  }

  build() {
    const badge = h("b", "d2-badge", { textContent: this.index + 1 });
    this.name = h("span", "d2-lane-name");
    this.bar = h("i");
    this.progress = h("span", "d2-told");
    this.difference = h("p", "d2-more d2-difference");
    this.note = h("p", "d2-note", { hidden: true });
    const title = h("h3", "d2-title", {}, badge, this.name),
      progress = h("span", "d2-progress", {}, this.bar),
      racing = h("div", "d2-racing", {}, progress, this.progress),
      text = h("div", "d2-lane-text", {}, this.grid.el, this.tokens.el, this.difference, this.note);
    this.el = h(
      "section",
      "d2-lane",
      {},
      h("div", "d2-lane-head", {}, title, this.makeFacts(), racing),
      h("div", "d2-lane-body", {}, text, this.map.el),
    );
  }

  makeFacts() {
    this.facts = {};
    const fact = ([key, label]) => {
      this.facts[key] = h("b");
      const title = STATS.find((s) => s[0] === key)[2];
      return h("span", "d2-fact", { title }, this.facts[key], " ", label);
    };
    return h("div", "d2-facts", {}, ...FACTS.map(fact));
  }

  resized() {
    this.map.resized = true;
  }

  // Another run in this lane.
  restart(run) {
    this.run = run;
    this.el.classList.toggle("d2-many", run.G > MANY);
    this.el.classList.toggle("d2-lane-board", Boolean(run.grid));
    this.tokens.build(run);
    this.grid.restart(run);
    this.map.restart();
  }

  // frame: {steps, race, rows, colours, spec, until: the time for tokens, all: lanes off the screen
  // too}
  paint(frame) {
    const { page, index, map } = this,
      run = page.board.lanes[index],
      step = frame.steps[index];
    if (this.run !== run) this.restart(run);
    this.paintName(run);
    this.paintHead(run, step, frame.race);
    if (!this.visible && !frame.all) return; // the rest waits until nothing else is to be drawn
    this.paintNotes(run, step, frame.steps);
    if (!this.tokens.paint(frame.steps, frame.until)) page.schedule();
    if (run.grid) this.paintGrid(run, frame.steps);
    map.paint(frame);
    map.set("step", step);
    map.set("got", run.records.length);
    this.paintHover();
  }

  paintName({ name }) {
    if (this.name.textContent === name) return;
    this.name.textContent = this.name.title = name;
    this.el.setAttribute("aria-label", `Lane ${this.index + 1}: ${name}`);
  }

  paintHead(run, step, race) {
    const { board } = this.page,
      { facts, index } = this,
      { written, of } = race.lanes[index],
      totals = formatTotals(totalsAt(run, step) || { hit_rate: hitRateSoFar(run, step) });
    facts.step.textContent = `${step + 1} / ${run.records.length}`;
    for (const key of ["tps", "hit", "flops"]) facts[key].textContent = totals[key];
    this.bar.style.width = `${of ? (100 * written) / of : 0}%`;
    this.progress.textContent = progressWords(board, race, index);
    this.el.classList.toggle("d2-leads", isAhead(board, race, index));
    this.el.classList.toggle("d2-few", board.lanes.length <= FEW_LANES);
    this.el.classList.toggle("d2-inhand", board.lane === index && board.lanes.length > 1);
  }

  paintNotes(run, step, steps) {
    const { board } = this.page,
      text = noteOf(run, step);
    this.difference.textContent =
      board.lanes.length > 1 ? differenceWords(board, this.index, steps) : "";
    this.note.textContent = text;
    this.note.hidden = !text;
  }

  paintGrid(run, steps) {
    const { board, dark, selected, ghosts } = this.page,
      step = steps[this.index];
    this.grid.paint({
      run,
      step,
      mode: "order",
      dark,
      selected,
      ghosts,
      differs: (p) => differs(board, this.index, p, steps),
    });
  }

  paintHover() {
    const { hover, board } = this.page,
      from = hover && board.lanes[hover.lane],
      p = from ? placeIn(from, this.run, hover.p) : null;
    this.grid.mark(p);
    if (this.tokens.mark(p)) this.map.mark(p);
  }
}

export { LaneStrip };
