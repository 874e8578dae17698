/* The truth tab: an exact pass alongside every step shows how far the cache is off, and what the
 * policy should have recomputed. */
import { CellMap, divide, promptBar } from "./cells.js";
import { colourAt, RAMPS, rgb } from "./colours.js";
import { RUN_WORDS } from "./contract.js";
import { choice, colourBar, h } from "./dom.js";
import { LineChart } from "./lines.js";
import { clamp, fixed } from "./numbers.js";
import { OracleStrip } from "./oracle.js";
import { pixel, table } from "./pixels.js";
import { hasTruth, logShade, truthReadout, TRUTHS, truthSums } from "./truths.js";
import { caption, fill, marker, paper, paragraph, term } from "./widgets.js";

const NUMBERS = [
  {
    key: "recall",
    label: "mean recall",
    why:
      "Recall of a step: of the k positions whose kept K,V had drifted most before it (drift of " +
      "K plus that of V), the share that the policy recomputed; k is how many it recomputed, in " +
      "any layer. Shown: the mean over the steps that recomputed some positions but not all. A " +
      "policy must also recompute where it wants to predict, so 1 is seldom the aim.",
    text: (sums) => fixed(sums.recall ?? NaN, 2),
  },
  {
    key: "flips",
    label: "flips in all",
    why:
      "A flip: the likeliest token at a position differs between the step as it ran and an exact " +
      "pass on the same canvas. Counted over all steps and positions with a prediction.",
    text: (sums) => String(sums.flips),
  },
  {
    key: "flipSteps",
    label: "steps with flips",
    why:
      "Steps in which at least one prediction's likeliest token differed from the exact one, of " +
      "all steps with an exact pass.",
    text: (sums) => `${sums.flipSteps} / ${sums.steps}`,
  },
];
const MEANINGS = Object.fromEntries(NUMBERS.map(({ key, why }) => [key, why]));
const INVITATION =
  "A probe can run an exact pass without a cache for every step, on the same canvas. You then " +
  "see at which positions the kept K,V have drifted, which predictions change because of it, and " +
  "which positions an all-knowing cache would have recomputed. It costs about twice the time.";
const PALEST = 0.06; // the shade of the smallest difference: not white, which means none

const tick = (x) =>
  x < 0.01 ? x.toExponential(0).replace("e-", "e−") : String(Number(x.toPrecision(2)));

const scaleOf = ({ low, high }) => [low, Math.sqrt(low * high), high].map(tick);

// Fills a row of pixels per step with the differences of one kind.
function fillDifferences(out, run, kind, dark) {
  const { T, P } = run,
    none = rgb(paper(dark).reused);
  const shade = (u) => PALEST + (1 - PALEST) * logShade(kind.of(u), kind.low, kind.high),
    colours = table((u) => (u ? colourAt("drift", shade(u), dark) : none));
  run.records.forEach((record, s) => {
    const plane = record?.truth?.[kind.key];
    if (!plane) return;
    const from = s * T + (kind.answer ? P : 0);
    if (kind.answer) out.fill(pixel(none), s * T, from);
    for (let i = 0; i < plane.length; i++) out[from + i] = colours[plane[i]];
  });
}

// A cross that shows on any colour: a thin one on a broad one.
function drawCross(ctx, x, y, size, ratio, dark) {
  const r = size / 2;
  for (const [ink, width] of [
    [dark ? "#10141b" : "#ffffff", 3],
    [dark ? "#ffffff" : "#000000", 1.2],
  ]) {
    ctx.strokeStyle = ink;
    ctx.lineWidth = width * ratio;
    ctx.beginPath();
    ctx.moveTo(x - r, y - r);
    ctx.lineTo(x + r, y + r);
    ctx.moveTo(x - r, y + r);
    ctx.lineTo(x + r, y - r);
    ctx.stroke();
  }
}

function drawFlips(ctx, run, w, ht, ratio, dark) {
  const { T, expected } = run,
    size = clamp(Math.min(w / T, ht / expected) * 0.8, 5 * ratio, 11 * ratio);
  for (const record of run.records)
    for (const p of record?.truth?.flips || []) {
      const y = (ht * (record.s + 0.5)) / expected;
      drawCross(ctx, (w * (p + 0.5)) / T, y, size, ratio, dark);
    }
}

class TruthView {
  constructor(host, page) {
    this.page = page;
    this.mark = marker(page);
    this.kind = TRUTHS[0];
    this.drawnFor = "";
    this.invitation = this.buildInvitation();
    this.known = this.buildKnown();
    host.append(h("section", "d2-look", { "aria-label": "Truth" }, this.invitation, this.known));
  }

  buildInvitation() {
    this.how = h("p", "d2-more");
    this.button = h("button", "d2-button", {
      type: "button",
      textContent: "Run again with Truth",
      onclick: () => this.page.send(`${RUN_WORDS.truth}=1`),
    });
    return h(
      "div",
      "d2-invitation d2-truth-invite",
      {},
      h("p", "d2-invite", { textContent: "How far is the cache from the truth?" }),
      paragraph("d2-more", INVITATION),
      this.how,
      this.button,
    );
  }

  buildKnown() {
    this.meaning = caption();
    this.legend = h("div", "d2-legend");
    this.bar = promptBar();
    this.map = this.makeMap();
    this.oracle = new OracleStrip(this.page);
    this.makeCharts();
    const title = h("h3", "d2-title", { textContent: "How far the cache is off" });
    return h(
      "div",
      "",
      { hidden: true },
      this.makeNumbers(),
      h("div", "d2-head", {}, title, h("div", "d2-tools", {}, this.makeKinds())),
      this.meaning,
      h("div", "d2-look-frame d2-look-over", {}, h("span"), this.bar),
      h("div", "d2-look-frame", {}, this.makeSteps(), this.map.el),
      this.map.below,
      this.legend,
      ...this.oracle.parts,
      h("div", "d2-lines", {}, this.recall.el, this.flips.el),
    );
  }

  makeNumbers() {
    this.values = {};
    const number = ({ key, label, why }) => {
      this.values[key] = h("b", "d2-value", { textContent: "–" });
      return h("div", "", {}, this.values[key], term(this.page, label, why));
    };
    return h("div", "d2-numbers", {}, ...NUMBERS.map(number));
  }

  makeKinds() {
    const options = TRUTHS.map((x) => [x.key, x.label]);
    return choice("What the map shows", options, this.kind.key, (key) => {
      this.kind = TRUTHS.find((x) => x.key === key);
      this.page.schedule();
    });
  }

  makeMap() {
    const { page } = this;
    return new CellMap({
      label: "Steps by positions",
      read: (p, s) => truthReadout(page.run, this.kind, s, p),
      choose: (p, s) => {
        page.select(p);
        page.goto(s);
      },
      point: (p, s) => page.setHover(p === null ? null : { p, s, lane: page.lane }),
    });
  }

  makeSteps() {
    this.last = h("span");
    const first = h("span", "", { textContent: "1" }),
      unit = h("em", "", { textContent: "step" });
    return h("div", "d2-steps", { "aria-hidden": "true" }, first, unit, this.last);
  }

  makeCharts() {
    const chart = (title, why, format) =>
      new LineChart(this.page, { title, why, ticks: ["1", "0"], format });
    this.recall = chart("recall per step", MEANINGS.recall, (v) => fixed(v, 2));
    this.flips = chart("flips per step", MEANINGS.flips, String);
  }

  paint() {
    const { run, step, dark, hover, selected } = this.page;
    if (!run?.key) return;
    const known = hasTruth(run);
    this.known.hidden = !known;
    this.invitation.hidden = known;
    if (!known) {
      this.paintInvitation(run);
      return;
    }
    this.paintRun(run, dark);
    this.paintLegend(dark);
    this.oracle.paint(run, step, dark);
    this.recall.follow(step);
    this.flips.follow(step);
    const p = hover?.p ?? selected;
    this.map.follow(p, step);
    this.oracle.follow(p);
  }

  paintInvitation(run) {
    const { offline } = this.page,
      coming = Boolean(run.start.truth);
    this.button.hidden = offline || coming;
    if (coming) this.how.textContent = "Truth is on for this run: its first step is on the way.";
    else
      this.how.textContent = offline
        ? "This run was made without it. In the running app: More settings, Canvas, Truth."
        : "Tick Truth under More settings, Canvas and press Run, or:";
  }

  // What does not depend on the current step: only when there is more of it, or in other colours.
  paintRun(run, dark) {
    const { kind } = this,
      truth = run.records.at(-1)?.truth ? 1 : 0,
      key = [run.key, run.records.length, truth, run.expected, dark, kind.key].join("|");
    if (this.drawnFor === key) return;
    this.drawnFor = key;
    const sums = truthSums(run);
    for (const { key, text } of NUMBERS) this.values[key].textContent = text(sums);
    this.bar.show(run);
    this.last.textContent = run.expected;
    this.meaning.set(`${kind.why} A cross marks a flip.`);
    this.paintMap(run, dark);
    this.paintCharts(run);
  }

  paintMap(run, dark) {
    const over = (ctx, w, ht, ratio) => {
      divide(ctx, w, ht, run.P / run.T, ratio, dark);
      drawFlips(ctx, run, w, ht, ratio, dark);
    };
    const cells = (out) => fillDifferences(out, run, this.kind, dark);
    this.map.draw(run.T, run.expected, cells, over);
  }

  paintCharts(run) {
    const steps = run.records.length,
      recalls = Array.from(run.records, (record) => record?.truth?.recall ?? null),
      flips = Array.from(run.records, (record) => record?.truth?.flips.length ?? null),
      most = Math.max(1, ...flips.map((x) => x ?? 0));
    this.recall.draw(recalls, steps);
    this.flips.draw(flips, steps, [], { high: most, ticks: [String(most), "0"] });
  }

  paintLegend(dark) {
    const { kind, mark } = this,
      none = "no difference beyond rounding, or nothing predicted here";
    fill(this.legend, `${kind.key}|${dark}`, () => [
      mark(paper(dark).reused, "none", none),
      colourBar("drift", dark, scaleOf(kind), `${kind.unit} (log scale)`),
      mark("d2-dot-flip", "flip", MEANINGS.flips),
    ]);
  }

  destroy() {
    this.map.destroy();
    this.oracle.destroy();
  }
}

RAMPS.drift = {
  ink: true,
  stops: ["#fff3d6", "#fdd49e", "#fca45d", "#ef6548", "#c9302c", "#8c1d40", "#4a1046"],
};
const tab = { key: "truth", title: "Truth", mount: (host, page) => new TruthView(host, page) };

export { tab };
