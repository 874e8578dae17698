/* The stage: mount(element) draws a board, receive(text) feeds it. */
import { boardFrom } from "./board.js";
import { TAB_KEYS } from "./contract.js";
import { Depth } from "./depth.js";
import { h } from "./dom.js";
import { Announcer, Banner, HoverLine, Stats } from "./header.js";
import { frame } from "./frame.js";
import { Keys } from "./keys.js";
import { Lanes } from "./lanes.js";
import { Page } from "./page.js";
import { explain } from "./sentences.js";
import { Tabs } from "./tabs.js";
import { Teach } from "./teach.js";
import { watchTheme } from "./theme.js";
import { Tip } from "./tip.js";
import { Transport } from "./transport.js";
import { PARTS_OF_PAGE } from "./views.js";

const [WATCH, STAGE] = TAB_KEYS; // what is shown alone at first, and what looking inside opens
let mounted = 0; // makes ids unique when a page holds two stages

const LABEL = "Denoising stage: arrow keys step, space plays";
const MASKS = ["The", "", "", " cache", "", " is", "", "", " warm", ""]; // "": a mask
const INVITATION = "Press Run: an answer will appear out of masks.";
const PROMISE =
  "At every step a few masks become tokens. You will see which positions are computed again, and " +
  "which come from the cache.";

// What is shown before the first run.
function emptyStage() {
  const chips = MASKS.map((textContent) =>
    h("span", `d2-chip ${textContent ? "d2-settled" : "d2-masked"}`, { textContent }),
  );
  return h(
    "div",
    "d2-empty",
    {},
    h("div", "d2-demo", { "aria-hidden": "true" }, ...chips),
    h("p", "d2-invite", { textContent: INVITATION }),
    h("p", "d2-more", { textContent: PROMISE }),
  );
}

class Stage {
  constructor(element, options) {
    this.element = element;
    this.options = options;
    this.off = new AbortController();
    this.lastText = null;
    this.painted = 0; // steps received when it was painted last
    this.stateWas = "";
    this.openedFrom = null; // the tab that Compare took the place of by itself
    const uid = `d2-${++mounted}`,
      on = (target, type, fn, more) =>
        target.addEventListener(type, fn, { signal: this.off.signal, ...more });
    this.page = new Page({ uid, options, on, paint: () => this.paint() });
    this.build(uid, on);
    on(document, "pointerdown", (e) => {
      if (this.page.hover && !this.root.contains(e.target)) this.page.setHover(null);
    });
    this.themes = watchTheme(this.root, on, (dark) => this.setDark(dark));
    this.page.schedule();
    this.parts = PARTS_OF_PAGE.map((part) => part(this.page));
  }

  // ---- skeleton

  build(uid, on) {
    const { page } = this;
    this.inner = h("div", "d2-inner");
    const group = { tabIndex: 0, role: "group", "aria-label": LABEL };
    this.root = h("div", "d2-stage", group, this.inner);
    this.tip = new Tip({ uid, inner: this.inner, on });
    this.transport = new Transport(page, { on });
    this.tabs = new Tabs(page, { uid });
    const changed = () => this.setDepth();
    this.depth = new Depth(page, { first: WATCH, second: STAGE, changed });
    this.teach = new Teach(page, { on });
    page.attach(this);
    this.lanes = new Lanes(page);
    this.stats = new Stats(page);
    this.hoverLine = new HoverLine(page, this.tip);
    this.announcer = new Announcer();
    this.banner = new Banner();
    this.keys = new Keys(page, { on, close: () => this.closeAll() });
    this.empty = emptyStage();
    this.full = this.buildFull();
    const { banner, empty, full, announcer, tip, teach } = this;
    const actions = h("div", "d2-actions", {}, this.depth.button, teach.button);
    this.inner.append(banner.el, empty, full, actions);
    this.inner.append(announcer.el, tip.help, tip.el, teach.pointer);
    this.element.append(this.root);
    const known = this.depth.inside && this.tabs.show(this.depth.tab);
    if (!known) this.tabs.show(WATCH);
    this.setDepth();
  }

  buildFull() {
    const { transport, stats, lanes, hoverLine, keys, tabs } = this;
    transport.el.append(keys.button);
    return h(
      "div",
      "d2-full",
      { hidden: true },
      stats.el,
      lanes.el,
      frame.stick(
        h("div", "d2-topbar", {}, transport.el, hoverLine.el, keys.list),
        this.off.signal,
      ),
      tabs.bar,
      tabs.panels,
    );
  }

  setDepth() {
    this.root.classList.toggle("d2-simple", !this.depth.inside);
    this.page.schedule();
  }

  closeAll() {
    this.page.setHover(null);
    this.tip.hide();
  }

  setDark(dark) {
    this.root.classList.toggle("d2-dark", dark);
    if (this.page.dark === dark) return;
    this.page.dark = dark;
    this.page.schedule();
  }

  // ---- painting: everything waits for the next frame, and a frame paints once

  paint() {
    this.transport.follow();
    const { run } = this.page;
    this.banner.paint(this.page);
    this.empty.hidden = Boolean(run.key);
    this.full.hidden = !run.key;
    if (run.key) this.paintFull(run);
    this.painted = run.received;
    const { step } = this.page,
      seq = run.records.at(-1)?.seq ?? -1;
    this.tell("d2:paint", { step, seq, time: performance.now() });
    this.tellState();
  }

  paintFull(run) {
    const { step } = this.page;
    this.stats.paint(run, step);
    this.announcer.say(explain(run.records[step], run, step));
    this.lanes.paint();
    this.transport.paint();
    this.tabs.paint();
    this.hoverLine.paint();
  }

  tell(type, detail) {
    this.element.dispatchEvent(new CustomEvent(type, { detail }));
  }

  // Where the reader is, for the address: only when it has changed.
  tellState() {
    const now = this.state(),
      { tab, lane, step, clock, map, selected, lesson, teach } = now,
      is = JSON.stringify([tab, lane, step, clock, map, selected, lesson, teach]);
    if (is !== this.stateWas) {
      this.stateWas = is;
      this.tell("d2:state", now);
    }
    this.options.onState?.(now);
  }

  // ---- the outside

  state() {
    const { board, run, step, live, tab, map, selected, moment, lesson } = this.page;
    return {
      run: run.key,
      received: run.received,
      painted: this.painted,
      step,
      steps: run.records.length,
      gaps: run.gaps,
      live,
      status: run.status,
      paused: run.paused,
      board: board.key,
      lanes: board.lanes.length,
      lane: board.lane,
      tab,
      clock: board.clock,
      map,
      selected,
      moment,
      inside: this.depth.inside,
      playing: this.transport.playing !== 0,
      lesson,
      teach: this.teach.active,
    };
  }

  receive(text) {
    if (text === this.lastText) return; // the same message again, see addRecord
    this.lastText = text;
    const { page } = this,
      before = page.board,
      had = before.lanes.length,
      onView = before.lanes[before.lane];
    page.board = boardFrom(before, text);
    const another = page.board !== before;
    if (another) this.startBoard(before);
    if (another || page.board.lanes[page.board.lane] !== onView) page.hover = null;
    if (another || had < 2) this.compare();
    page.schedule();
  }

  // Another board: from its start, and back from a tab that opened by itself.
  startBoard(before) {
    const { page } = this;
    this.transport.reset();
    page.selected = null;
    if (this.openedFrom && page.chosenFor !== before.key) page.open(this.openedFrom);
    this.openedFrom = null;
  }

  // Several lanes open Compare, unless the reader has chosen a tab for this board.
  compare() {
    const { board, chosenFor, tab } = this.page;
    if (board.lanes.length < 2 || chosenFor === board.key || tab === "compare") return;
    if (!this.depth.inside) return; // Watch shows them all
    if (this.page.open("compare")) this.openedFrom = tab;
  }

  // The tab that was open last, for what the page opens with.
  reopen() {
    if (this.depth.inside) this.page.show(this.depth.tab);
  }

  destroy() {
    for (const part of this.parts) part?.destroy?.();
    this.off.abort();
    this.themes.disconnect();
    this.transport.stop();
    this.tabs.destroy();
    this.teach.destroy();
    this.page.destroy();
    this.announcer.destroy();
    this.root.remove();
  }
}

/* options: ask(name, args) -> the server's answer; send(query) asks for runs; offline: a page that
 * is a file; onState(state) after every frame; lessons, glossary, presets, view, plotly. */
function mount(element, options = {}) {
  const stage = new Stage(element, options),
    { page } = stage;
  return {
    page,
    receive: (text) => stage.receive(text),
    state: () => stage.state(),
    destroy: () => stage.destroy(),
    goto: (step) => page.goto(step),
    show: (tab) => page.show(tab),
    reopen: () => stage.reopen(),
    setLane: (i) => page.setLane(i),
    setClock: (name) => page.setClock(name),
    setMap: (key) => page.setMap(key),
    select: (p) => page.select(p),
    playSlowly: () => stage.transport.playSlowly(),
    setTeach: (on) => stage.teach.set(on),
    setAway: (text) => page.setAway(text),
  };
}

export { mount };
