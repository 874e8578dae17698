/* The page: mount(element) draws a board, receive(text) feeds it. Tabs get the context made here. */
import { boardFrom, emptyBoard, momentOf, nextDifference, placeIn, stepAt } from "./board.js";
import { POINTS, TAB_KEYS } from "./contract.js";
import { h } from "./dom.js";
import { makeKeys } from "./keys.js";
import { makeLanes } from "./lanes.js";
import { emptyRun, hitRateSoFar, totalsAt } from "./run.js";
import { explain, formatTotals, readout, STATS, tooltipData, visible } from "./sentences.js";
import { makeTabs } from "./tabs.js";
import { Tip, tipContent } from "./tip.js";
import { makeTransport } from "./transport.js";
import { PARTS_OF_PAGE } from "./views.js";

let mounted = 0; // makes ids unique when a page holds two stages
const NOBODY = emptyRun();

function mount(element, options = {}) {
  const uid = `d2-${++mounted}`,
    off = new AbortController();
  const on = (target, type, fn, more) =>
    target.addEventListener(type, fn, { signal: off.signal, ...more });
  const ask = options.ask ?? (options.onDetail && ((name, { step }) => options.onDetail(step)));
  let board = emptyBoard(),
    lastText = null,
    dark = false,
    frame = 0,
    painted = 0,
    stateWas = "";
  let hover = null; // {p, s or null for the step on view, lane, chip: element or null}
  let selected = null,
    chosenFor = null,
    openedFrom = null; // the board for which the reader chose a tab; the tab that Compare took the place of
  let saidAt = 0,
    sayTimer = 0;

  // ---- what the tabs see
  const page = {
    uid,
    on,
    options,
    get root() {
      return root;
    },
    get board() {
      return board;
    },
    get lane() {
      return board.lane;
    },
    get run() {
      return board.lanes[board.lane] ?? NOBODY;
    },
    get moment() {
      return transport.at;
    },
    get step() {
      return page.stepOf(board.lane);
    },
    stepOf: (i) => (board.lanes[i] ? stepAt(board, i, transport.at) : -1),
    get live() {
      return transport.live;
    },
    get dark() {
      return dark;
    },
    get hover() {
      return hover;
    },
    get selected() {
      return selected;
    },
    get tab() {
      return tabs.key;
    },
    get offline() {
      return Boolean(options.offline) || !ask;
    },
    schedule() {
      if (!frame) frame = requestAnimationFrame(paint);
    },
    goto: (step) => page.gotoIn(board.lane, step),
    gotoIn(i, step) {
      if (board.lanes[i]) transport.goto(momentOf(board, i, step));
    },
    gotoMoment: (moment) => transport.goto(moment),
    nextDifference() {
      const s = nextDifference(board, page.step);
      if (s !== null) page.goto(s);
    },
    setLane(i) {
      if (board.lanes[i]) {
        board.lane = i;
        hover = null;
        page.schedule();
      }
    },
    setClock: (name) => transport.setClock(name),
    show(key) {
      chosenFor = board.key;
      return open(key);
    },
    setHover(to) {
      hover = to && { s: null, lane: board.lane, chip: null, ...to };
      page.schedule();
    },
    select(p) {
      selected = p;
      page.schedule();
    },
    explained: (el, words) => tip.explained(el, words),
    showTip: (anchor, nodes) => tip.show(anchor, nodes),
    hideTip: () => tip.hide(),
    async ask(name, args) {
      if (page.offline) throw new Error("this needs the running app");
      return ask(name, args);
    },
    send(query) {
      return options.offline ? undefined : options.send?.(query);
    },
    drawAll: () => tabs.drawAll(), // also what lies off the screen, for a picture
  };

  // ---- skeleton
  const stats = {},
    inner = h("div", "d2-inner"),
    tip = new Tip({ uid, inner, on });
  const header = h(
    "div",
    "d2-stats",
    { "data-point": POINTS.stats },
    ...STATS.map(([key, label, definition]) => {
      stats[key] = h("span", "d2-value", { textContent: "–" });
      return tip.explained(
        h(
          "button",
          "d2-stat",
          { type: "button" },
          stats[key],
          h("span", "d2-label", { textContent: label }),
        ),
        definition,
      );
    }),
  );
  const transport = makeTransport(page, { on }),
    lanes = makeLanes(page),
    tabs = makeTabs(page, { uid, onShow: page.show });
  const read = h("p", "d2-readout"),
    spoken = h("p", "d2-sr", { "aria-live": "polite" });
  const masks = h(
    "div",
    "d2-demo",
    { "aria-hidden": "true" },
    ...["The", "", "", " cache", "", " is", "", "", " warm", ""].map((t) =>
      h("span", `d2-chip ${t ? "d2-settled" : "d2-masked"}`, { textContent: t }),
    ),
  );
  const empty = h(
    "div",
    "d2-empty",
    {},
    masks,
    h("p", "d2-invite", { textContent: "Press Run: an answer will appear out of masks." }),
    h("p", "d2-more", {
      textContent:
        "At every step a few masks become tokens. You will see which positions it computes again, and which it takes from its cache.",
    }),
  );
  const root = h(
    "div",
    "d2-stage",
    { tabIndex: 0, role: "group", "aria-label": "Denoising stage: arrow keys step, space plays" },
    inner,
  );
  const keys = makeKeys(page, {
    root,
    on,
    transport,
    close: () => {
      page.setHover(null);
      tip.hide();
    },
  });
  transport.el.append(keys.button);
  const full = h(
    "div",
    "d2-full",
    { hidden: true },
    header,
    lanes.el,
    h("div", "d2-topbar", {}, transport.el, read, keys.list),
    tabs.bar,
    tabs.panels,
  );
  inner.append(empty, full, spoken, tip.help, tip.el);
  element.append(root);
  tabs.show(TAB_KEYS[0]);
  on(document, "pointerdown", (e) => {
    if (hover && !root.contains(e.target)) page.setHover(null);
  });

  function open(key) {
    const done = tabs.show(key);
    if (done) {
      hover = null;
      tip.hide();
      page.schedule();
    }
    return done;
  }

  // ---- painting: everything waits for the next frame, and a frame paints once
  function paint() {
    frame = 0;
    transport.follow();
    const { run } = page;
    empty.hidden = Boolean(run.key);
    full.hidden = !run.key;
    if (run.key) {
      paintHead(run);
      lanes.paint();
      transport.paint();
      tabs.paint();
      paintHover();
    }
    painted = run.received;
    element.dispatchEvent(
      new CustomEvent("d2:paint", {
        detail: { step: page.step, seq: run.records.at(-1)?.seq ?? -1, time: performance.now() },
      }),
    );
    const now = state(),
      is = JSON.stringify([now.tab, now.lane, now.step, now.clock, now.selected]);
    if (is !== stateWas) {
      stateWas = is;
      element.dispatchEvent(new CustomEvent("d2:state", { detail: now }));
    }
    options.onState?.(now);
  }

  function paintHead(run) {
    const { step } = page,
      totals = formatTotals(totalsAt(run, step) || { hit_rate: hitRateSoFar(run, step) });
    stats.step.textContent = `${step + 1} / ${run.records.length}`;
    for (const key of ["tps", "hit", "flops"]) stats[key].textContent = totals[key];
    say(explain(run.records[step], run, step));
  }

  // Tell a screen reader where we are, at most every 1.5 s, and always the last place.
  let toSay = "";
  function say(text) {
    toSay = text;
    if (sayTimer || spoken.textContent === text) return;
    sayTimer = setTimeout(
      () => {
        sayTimer = 0;
        saidAt = performance.now();
        spoken.textContent = toSay;
      },
      Math.max(200, saidAt + 1500 - performance.now()),
    );
  }

  // The line under the transport follows one position; a token pointed at gets the tooltip too.
  let describing = null;
  function paintHover() {
    const run = hover && board.lanes[hover.lane],
      s = hover && (hover.s ?? page.stepOf(hover.lane));
    if (describing && describing !== hover?.chip) {
      describing.removeAttribute("aria-describedby");
      describing = null;
    }
    if (!run || hover.p >= run.T || s < 0) {
      read.textContent = "Point at a token or a map to follow one position.";
      read.classList.add("d2-quiet");
      if (!tip.control) tip.hide();
      return;
    }
    const data = tooltipData(run, hover.p, s);
    read.textContent = `${board.lanes.length > 1 ? `lane ${hover.lane + 1}, ` : ""}step ${s + 1}, ${readout(data)}`;
    read.classList.remove("d2-quiet");
    if (hover.chip) {
      tip.show(hover.chip, [...tipContent(run, data), ...inFirstLane(hover)]);
      describing = hover.chip;
      describing.setAttribute("aria-describedby", tip.el.id);
    } else if (!tip.control) tip.hide();
  }

  // What lane 1 has at the same place, for a token of another lane.
  function inFirstLane({ lane, p }) {
    const q = lane ? placeIn(board.lanes[lane], board.lanes[0], p) : null;
    if (q === null) return [];
    const { masked, text, eos, step } = tooltipData(board.lanes[0], q, page.stepOf(0));
    const said = masked
      ? "lane 1: still masked"
      : `lane 1: ${eos ? "end token" : `'${visible(text)}'`}${step === null ? "" : `, written in step ${step + 1}`}`;
    return [h("p", "d2-tip-first", { textContent: said })];
  }

  // ---- surroundings: the theme
  const night = globalThis.matchMedia("(prefers-color-scheme: dark)");
  function readTheme() {
    const hosted = root.closest("gradio-app, .gradio-container"); // Gradio decides by its class alone
    const now = Boolean(root.closest(".dark")) || (!hosted && night.matches);
    root.classList.toggle("d2-dark", now);
    if (dark !== now) {
      dark = now;
      page.schedule();
    }
  }
  const themes = new MutationObserver(readTheme);
  for (const el of [document.documentElement, document.body])
    themes.observe(el, { attributes: true, attributeFilter: ["class"] });
  on(night, "change", readTheme);

  // ---- the outside
  const state = () => {
    const { run } = page;
    return {
      run: run.key,
      received: run.received,
      painted,
      step: page.step,
      steps: run.records.length,
      gaps: run.gaps,
      live: transport.live,
      status: run.status,
      paused: run.paused,
      board: board.key,
      lanes: board.lanes.length,
      lane: board.lane,
      tab: tabs.key,
      clock: board.clock,
      selected,
      moment: transport.at,
    };
  };

  function receive(text) {
    if (text === lastText) return; // the same message again, see addRecord
    lastText = text;
    const before = board,
      had = board.lanes.length,
      on_ = board.lanes[board.lane];
    board = boardFrom(board, text);
    if (board !== before) {
      // another board: from its start, and back from a tab that opened by itself
      transport.reset();
      selected = null;
      if (openedFrom && chosenFor !== before.key) open(openedFrom);
      openedFrom = null;
    }
    if (board !== before || board.lanes[board.lane] !== on_) hover = null;
    if (
      board.lanes.length > 1 &&
      (board !== before || had < 2) &&
      chosenFor !== board.key &&
      tabs.key !== "compare"
    ) {
      const from = tabs.key;
      if (open("compare")) openedFrom = from;
    }
    page.schedule();
  }

  function destroy() {
    off.abort();
    themes.disconnect();
    transport.stop();
    tabs.destroy();
    cancelAnimationFrame(frame);
    clearTimeout(sayTimer);
    root.remove();
  }

  readTheme();
  page.schedule();
  const parts = PARTS_OF_PAGE.map((part) => part(page)); // what is more than a tab, the lessons say: each gets the context once
  return {
    receive,
    state,
    page,
    destroy() {
      for (const part of parts) part?.destroy?.();
      destroy();
    },
    goto: (step) => page.goto(step),
    show: (tab) => page.show(tab),
    setLane: (i) => page.setLane(i),
    setClock: (name) => page.setClock(name),
    select: (p) => page.select(p),
  };
}

export { mount };
