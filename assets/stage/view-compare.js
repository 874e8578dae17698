/* The tab Compare: every lane in a strip of its own, on one clock and one position axis. */
import { raceAt, stepsAt } from "./board.js";
import { css, MASKED_NOW, rgb, WRITTEN_NOW } from "./colours.js";
import { POINTS } from "./contract.js";
import { choice, h, swatch } from "./dom.js";
import { LaneStrip } from "./lane-strip.js";
import { densityBar, orderBar, rolloutBar } from "./maps.js";
import { MAPS, tables } from "./pixels.js";
import { raceWords } from "./race.js";
import { reasonsIn, reasonsOf } from "./reasons.js";
import { resultsTable } from "./results.js";
import { captions } from "./sentences.js";
import { caption, fill, paper, paragraph } from "./widgets.js";

const CLOCK_WORDS = [
  ["step", "steps"],
  ["ms", "milliseconds"],
  ["flops", "FLOPs"],
];
const CLOCK_HELP =
  "What the lanes have in common at one place of the slider. Steps: the same denoising step. " +
  "Milliseconds: the same measured time since each run began, as if they had started together. " +
  "FLOPs: the same amount of arithmetic.";
const INVITATION =
  "Add a second lane to compare: on the left, choose another policy or other knobs and run it as " +
  'another lane, or open "Side by side". All lanes run on the same prompt and seed, under one ' +
  "slider.";
// Captions where the lanes have several policies.
const CAPTIONS = {
  cache:
    "Grey: reused from the cache. A coloured position was computed again in this step; the " +
    "colour is the reason.",
  density:
    "How much of a position's neighbourhood is already known, nearer neighbours counting more.",
  rollout: "Where attention leads, followed through all layers of this step.",
  order: "When each token was written.",
};
const TOKEN_MS = 4; // for the tokens of all lanes in one frame; a far jump takes a few frames
const REST_MS = 150;

const bitsSeen = new WeakMap(); // run -> {upTo, bits}: what is past does not change

// All reasons that the steps received so far have had, as bits.
function bitsOf(run) {
  const seen = bitsSeen.get(run) ?? { upTo: 0, bits: 0 };
  bitsSeen.set(run, seen);
  for (; seen.upTo < run.records.length; seen.upTo++)
    for (const byte of run.records[seen.upTo]?.y || []) seen.bits |= byte;
  return seen.bits;
}

const onePolicy = (lanes) => lanes.every((run) => run.start.policy === lanes[0].start.policy);

// What a legend of each map holds. lanes: their runs; bits: the reasons they have had
const LEGENDS = {
  cache({ lanes, bits, dark }) {
    const there = new Set(["reused", ...reasonsIn(bits)]),
      reasons = onePolicy(lanes) ? lanes[0].reasons : reasonsOf({});
    return reasons
      .filter((r) => there.has(r.key))
      .map((r) => swatch(r.colour ?? paper(dark).reused, r.label));
  },
  density: ({ dark }) => [densityBar(dark)],
  rollout: ({ dark }) => [rolloutBar(dark)],
  order({ lanes, rows, dark }) {
    const again = lanes.some((run) => run.again);
    return [
      swatch(css(rgb(paper(dark).masked)), "masked"),
      swatch(WRITTEN_NOW, "written in this step"),
      ...(again ? [swatch(MASKED_NOW, "masked again in this step")] : []),
      orderBar(dark, rows),
    ];
  },
};

// Guided comparisons, as the app offers them: a click makes their lanes.
function storyList(page) {
  const presets = page.offline ? [] : (page.options.presets ?? []);
  if (!presets.length) return [];
  const item = ({ title, story, query }) => {
    const name = h("b", "", { textContent: title }),
      more = h("span", "d2-more", { textContent: story ?? "" }),
      onclick = () => page.send(query);
    return h("li", "", {}, h("button", "d2-story", { type: "button", onclick }, name, more));
  };
  const title = "Comparisons to start from";
  return [
    h(
      "section",
      "d2-stories",
      { "aria-label": title },
      h("h3", "d2-title", { textContent: title }),
      h("ul", "", {}, ...presets.map(item)),
    ),
  ];
}

class CompareView {
  constructor(host, page) {
    this.page = page;
    this.mapFor = page.map;
    this.lanes = [];
    this.colours = null;
    this.coloursFor = "";
    this.clockFor = "step";
    this.resting = false; // the clock rests: lanes off the screen are drawn too
    this.restTimer = 0;
    this.restsAt = "";
    this.build(host);
    this.watch();
  }

  build(host) {
    this.leader = h("p", "d2-sentence d2-leader", { role: "status" });
    this.caption = caption();
    this.legend = h("div", "d2-legend");
    const group = { tabIndex: 0, role: "group", "aria-label": "Results of the lanes" };
    this.results = h("div", "d2-results-of", { ...group, hidden: true }); // scrolls on a phone
    this.strips = h("div", "d2-strips");
    this.invitation = h(
      "div",
      "d2-invitation",
      {},
      h("p", "d2-invite", { textContent: "One lane so far." }),
      paragraph("d2-more", INVITATION),
      ...storyList(this.page),
    );
    const { leader, results, legend, strips, invitation } = this;
    host.append(this.makeHead(), leader, results, this.caption, legend, strips, invitation);
  }

  makeHead() {
    const { page } = this,
      options = MAPS.map((m) => [m.key, m.short]),
      label = h("button", "d2-label", { type: "button", textContent: "clock" });
    const maps = choice("Map of every lane", options, page.map, (key) => page.setMap(key));
    this.maps = maps;
    this.clocks = choice("Clock", CLOCK_WORDS, page.board.clock, (name) => page.setClock(name));
    this.clocks.dataset.point = POINTS.clock;
    return h(
      "div",
      "d2-head d2-compare-head",
      {},
      h("div", "d2-pair", {}, h("span", "d2-label-plain", { textContent: "map" }), maps),
      h("div", "d2-pair", {}, page.explained(label, CLOCK_HELP), this.clocks),
    );
  }

  // Which lanes are on the screen, and how large.
  watch() {
    this.seen = new IntersectionObserver((entries) => this.setVisible(entries), {
      rootMargin: "50px",
    });
    this.sizes = new ResizeObserver(() => {
      for (const lane of this.lanes) lane.resized();
      this.page.schedule();
    });
    this.sizes.observe(this.strips);
  }

  // The map that all lanes show.
  get spec() {
    return MAPS.find((m) => m.key === this.page.map);
  }

  setVisible(entries) {
    for (const entry of entries) {
      const lane = this.lanes.find(({ el }) => el === entry.target);
      if (lane) lane.visible = entry.isIntersecting;
    }
    this.page.schedule();
  }

  setLanes(n) {
    for (const lane of this.lanes.splice(n)) {
      this.seen.unobserve(lane.el);
      lane.el.remove();
    }
    while (this.lanes.length < n) {
      const lane = new LaneStrip(this.page, this.lanes.length);
      this.lanes.push(lane);
      this.strips.append(lane.el);
      this.seen.observe(lane.el);
    }
  }

  paint() {
    this.paintFrame(performance.now() + TOKEN_MS, false);
  }

  // Everything at once, also what is off the screen.
  drawAll() {
    this.paintFrame(Infinity, true);
  }

  paintFrame(until, whole) {
    const { board, moment } = this.page,
      { spec } = this,
      steps = stepsAt(board, moment),
      race = raceAt(board, moment),
      rows = Math.max(...board.lanes.map((run) => run.expected));
    this.setLanes(board.lanes.length);
    this.paintHead(board, race, moment);
    this.paintLegend(board, rows);
    this.rest(steps);
    const colours = this.coloursOf(rows),
      all = whole || this.resting,
      frame = { steps, race, rows, colours, spec, until, all };
    for (const lane of this.lanes) lane.paint(frame);
    this.seek();
  }

  paintHead(board, race, moment) {
    const many = board.lanes.length > 1;
    if (this.clockFor !== board.clock) this.clocks.mark(board.clock);
    this.clockFor = board.clock;
    if (this.mapFor !== this.page.map) this.maps.mark(this.page.map);
    this.mapFor = this.page.map;
    this.paintResults(board);
    this.invitation.hidden = many;
    this.leader.textContent = raceWords(board, race, moment);
    this.leader.hidden = !many;
  }

  paintResults(board) {
    const is = JSON.stringify([board.results, board.lanes.map((run) => run.key)]);
    if (this.results.was === is) return;
    this.results.was = is;
    const table = resultsTable(board);
    this.results.hidden = !table;
    this.results.replaceChildren(...(table ? [table] : []));
  }

  // Scrolls to the lane that the page is to bring into view, once.
  seek() {
    const { page } = this,
      lane = this.lanes[page.sought];
    if (!lane) return;
    page.sought = null;
    lane.el.scrollIntoView({ block: "nearest" });
  }

  coloursOf(rows) {
    const { dark } = this.page,
      key = `${dark}|${rows}`;
    if (this.coloursFor !== key) this.colours = tables(dark, rows);
    this.coloursFor = key;
    return this.colours;
  }

  paintLegend({ lanes, key: board }, rows) {
    const { dark } = this.page,
      { key } = this.spec,
      bits = key === "cache" ? lanes.reduce((all, run) => all | bitsOf(run), 0) : 0,
      is = `${key}|${dark}|${rows}|${bits}|${board}|${lanes.length}`;
    if (this.legend.was === is) return;
    fill(this.legend, is, () => LEGENDS[key]({ lanes, rows, bits, dark }));
    const text = onePolicy(lanes) ? captions[key](lanes[0].start) : CAPTIONS[key],
      more = "Time runs downwards; click a map to go to that step.";
    this.caption.set(`${text} ${more}`);
  }

  // When nothing has changed for a while, a frame is painted for lanes off the screen.
  rest(steps) {
    const { board, dark } = this.page,
      received = board.lanes.map((run) => run.records.length),
      key = [steps, this.spec.key, dark, ...received].join("|");
    if (key === this.restsAt) return;
    this.restsAt = key;
    this.resting = false;
    clearTimeout(this.restTimer);
    this.restTimer = setTimeout(() => {
      this.resting = true;
      this.page.schedule();
    }, REST_MS);
  }

  destroy() {
    clearTimeout(this.restTimer);
    this.seen.disconnect();
    this.sizes.disconnect();
  }
}

const tab = {
  key: "compare",
  title: "Compare",
  mount: (host, page) => new CompareView(host, page),
};

export { tab };
