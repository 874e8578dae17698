/* The token tab: the life of one position, step by step. */
import { agesOf, agesWords, layered } from "./ages.js";
import { candidateNodes } from "./candidates.js";
import { CellMap } from "./cells.js";
import { MASKED_NOW, rgb, WRITTEN_NOW } from "./colours.js";
import { choice, h, iconButton } from "./dom.js";
import { KeyPath } from "./key-path.js";
import { LineChart } from "./lines.js";
import { clamp, fixed } from "./numbers.js";
import { pixel } from "./pixels.js";
import { reasonOf, REASONS } from "./reasons.js";
import { placeOf } from "./sentences.js";
import { lifeOf, lifeSentence, whyWords } from "./token-life.js";
import { DRIFTS, hasTruth, logShade } from "./truths.js";
import { WhatIf } from "./what-if.js";
import { fill, marker, paper, term } from "./widgets.js";

const LINES = [
  {
    key: "conf",
    title: "confidence",
    why:
      "How sure the model is of its best guess here, as the decoder measures it. A gap: no guess " +
      "was made in that step.",
    ticks: ["1", "0"],
    format: (v) => fixed(v, 2),
  },
  {
    key: "density",
    title: "certainty density",
    why:
      "The share of this position's neighbourhood that was already known before the step, nearer " +
      "neighbours counting more.",
    ticks: ["1", "0"],
    format: (v) => fixed(v, 2),
  },
  {
    key: "product",
    title: "confidence × density",
    why: "The product of the two: high where a sure guess is next to known text.",
    ticks: ["1", "0"],
    format: (v) => fixed(v, 2),
  },
  {
    key: "rank",
    title: "rank among the masked",
    why:
      "Its place among the masked positions of the current block that got a guess in that step: " +
      "1 is the best. By confidence times density where the decoder uses the certainty prior, " +
      "else by confidence alone.",
    flip: true,
    ticks: ["1", ""],
  },
  {
    key: "drift",
    title: "K drift",
    why:
      "How far the key (K) that attention read here is from the exact one: 1 minus their cosine, " +
      "mean over the layers; log scale. Only where the run was made with Truth.",
    ticks: ["2", "6e−5"],
    format: (v) => (v < 0.01 ? v.toExponential(1) : fixed(v, 3)),
  },
];
const STRIP_WHY =
  "One cell per step: grey where the cached K and V were reused, else the colour of the reason " +
  "for recomputing. Upright lines: orange where it was written, magenta where it was masked again.";
const CANDIDATES_WHY =
  "The model's likeliest tokens at this position with their probabilities: in the current step " +
  "while it is masked, and in the step that wrote it afterwards.";
const UNCHOSEN =
  "Click a token or a map to choose a position; until then, this is one of those written.";
const SIDES = [
  ["prompt", "prompt"],
  ["answer", "answer"],
];
const MOST_AGES = 6; // groups of layers in the sentence about ages

// Ages in the current step; neighbouring layers that agree are put together.
function agesSentence(run, s, p) {
  if (s < 0 || !run.records[s]) return "";
  if (!layered(run))
    return `Ages in step ${s + 1}: ${agesWords(agesOf(run, s, 0, p), ["K", "V"])}, in every layer.`;
  const groups = [];
  for (let l = 0; l < run.layers; l++) {
    const text = agesWords(agesOf(run, s, l, p));
    if (groups.at(-1)?.text === text) groups.at(-1).to = l;
    else groups.push({ from: l, to: l, text });
  }
  const name = ({ from, to }) =>
    from === to ? `layer ${from + 1}` : `layers ${from + 1} to ${to + 1}`;
  const shown = groups.slice(0, MOST_AGES).map((g) => `${name(g)}: ${g.text}`),
    more = groups.length > MOST_AGES ? "; and so on" : "";
  return `Ages in step ${s + 1}: ${shown.join("; ")}${more}.`;
}

// One cell of the strip, in words.
function stripWords(run, s, p) {
  const record = run.records[s];
  if (!record) return `step ${s + 1}: its record was lost`;
  const is = record.y[p] ? `recomputed (${whyWords(run, record.y[p])})` : "reused",
    written = record.w.some((w) => w[0] === p) ? ", written" : "",
    masked = record.m.includes(p) ? ", masked again" : "";
  return `step ${s + 1}: ${is}${written}${masked}`;
}

// {p, sure}: a position from the middle of what the run has written; sure: it has written some.
function writtenPosition(run) {
  const written = run.changes.flatMap((list, p) =>
    p >= run.P && list.some((x) => !x.given && x.text !== null && !run.eos.has(x.text)) ? [p] : [],
  );
  return { p: written[Math.floor(written.length / 2)] ?? run.P, sure: written.length > 0 };
}

// The part of the canvas that position p is in, and is counted from, as in `placeOf`: {side, from,
// size}. A text with gaps is one part.
function sideOf(run, p) {
  if (run.gapped) return { side: "text", from: 0, size: run.T };
  return p < run.P
    ? { side: "prompt", from: 0, size: run.P }
    : { side: "answer", from: run.P, size: run.G };
}

/* Which position is shown: part of the canvas, number, one back, one on. */
class PositionPicker {
  constructor(page) {
    this.page = page;
    this.guess = null; // the position shown while none is chosen, and of which run
    this.sidesFor = "";
    this.fieldFor = null;
    this.build();
  }

  build() {
    this.sides = h("div", "d2-chosen");
    this.field = h("input", "d2-field d2-short", {
      type: "number",
      min: 1,
      "aria-label": "Position, counted from 1",
    });
    this.back = iconButton("back", "Previous position");
    this.next = iconButton("next", "Next position");
    this.field.addEventListener("change", () => this.selectTyped());
    this.back.addEventListener("click", () => this.select(this.position() - 1));
    this.next.addEventListener("click", () => this.select(this.position() + 1));
    this.el = h("div", "d2-tools", {}, this.sides, this.back, this.field, this.next);
  }

  // The pinned position; before one is pinned, one that the run has written.
  position() {
    const { run, selected } = this.page;
    if (selected !== null) return clamp(selected, 0, run.T - 1);
    if (this.guess?.of !== run.key || !this.guess.sure)
      this.guess = { of: run.key, ...writtenPosition(run) };
    return this.guess.p;
  }

  select(p) {
    this.page.select(clamp(p, 0, this.page.run.T - 1));
  }

  selectTyped() {
    const { from } = sideOf(this.page.run, this.position());
    this.select(Math.round(Number(this.field.value) || 1) - 1 + from);
  }

  paint(run, p) {
    const { field } = this,
      { side, from, size } = sideOf(run, p);
    this.paintSides(run, side);
    // what is being typed stays, until another position is chosen
    if (document.activeElement !== field || this.fieldFor !== p) field.value = p - from + 1;
    this.fieldFor = p;
    field.max = size;
    this.back.disabled = p === 0;
    this.next.disabled = p === run.T - 1;
  }

  paintSides(run, side) {
    const several = run.P > 0 && !run.gapped,
      key = `${run.key}|${side}|${several}`;
    if (this.sidesFor === key) return;
    this.sidesFor = key;
    const pick = (v) => this.page.select(v === "prompt" ? 0 : this.page.run.P);
    this.sides.replaceChildren(
      ...(several ? [choice("Part of the canvas", SIDES, side, pick)] : []),
    );
  }
}

class TokenView {
  constructor(host, page) {
    this.page = page;
    this.mark = marker(page);
    this.life = null;
    this.lifeFor = "";
    this.drawnFor = "";
    this.candidatesFor = "";
    this.picker = new PositionPicker(page);
    this.path = new KeyPath(page);
    this.whatIf = new WhatIf(page);
    this.build(host);
  }

  build(host) {
    this.token = h("b", "d2-life-token");
    this.hint = h("p", "d2-more");
    this.sentence = h("p", "d2-sentence");
    this.ages = h("p", "d2-more");
    this.legend = h("div", "d2-legend");
    this.strip = this.makeStrip();
    this.charts = LINES.map((line) => this.makeChart(line));
    const { token, hint, sentence, ages, strip, legend, page } = this,
      title = h("h3", "d2-title", {}, "The life of ", token),
      charts = this.charts.map((c) => c.el);
    host.append(
      h(
        "section",
        "d2-look",
        { "aria-label": "Token" },
        h("div", "d2-head", {}, title, this.picker.el),
        hint,
        sentence,
        ages,
        h("div", "d2-line-head d2-gap", {}, term(page, "recomputed", STRIP_WHY)),
        strip.el,
        strip.below,
        legend,
        h("div", "d2-lines", {}, ...charts, this.makeCandidates()),
        ...this.path.parts,
        this.whatIf.el,
      ),
    );
  }

  makeStrip() {
    const strip = new CellMap({
      label: "When it was recomputed",
      idle: "Point at a step, or use the arrow keys here.",
      choose: (s) => this.page.goto(s),
      read: (s) => stripWords(this.page.run, s, this.picker.position()),
    });
    strip.el.classList.add("d2-one");
    return strip;
  }

  makeChart(line) {
    const rank = (v, s) => `${v} of ${this.life?.of[s] ?? "?"}`;
    return new LineChart(this.page, line.key === "rank" ? { ...line, format: rank } : line);
  }

  makeCandidates() {
    this.bars = h("div");
    const head = h("div", "d2-line-head", {}, term(this.page, "candidates", CANDIDATES_WHY));
    this.candidates = h("section", "d2-line", {}, head, this.bars);
    return this.candidates;
  }

  paint() {
    const { run, step } = this.page;
    if (!run?.key) return;
    const p = this.picker.position();
    this.picker.paint(run, p);
    this.token.textContent = placeOf(run, p);
    this.hint.textContent = this.page.selected === null ? UNCHOSEN : "";
    this.hint.hidden = !this.hint.textContent;
    this.paintLife(run, p);
    this.sentence.textContent = lifeSentence(run, p, step);
    this.ages.textContent = agesSentence(run, step, p);
    this.charts.forEach((chart) => chart.follow(step));
    this.strip.follow(step < 0 ? null : step);
    this.paintCandidates(run, p, step);
    this.path.paint(p, this.life);
    this.whatIf.paint(p);
  }

  // Lines, strip and legend: only when there is more to show, or in other colours.
  paintLife(run, p) {
    const truth = hasTruth(run) && run.records.at(-1)?.truth ? 1 : 0,
      fed = `${run.key}|${p}|${run.records.length}|${truth}`,
      key = `${fed}|${this.page.dark}`;
    if (this.lifeFor !== fed) this.life = lifeOf(run, p);
    this.lifeFor = fed;
    if (this.drawnFor === key) return;
    this.drawnFor = key;
    this.paintCharts(run, p);
    this.paintStrip(run.records.length);
    this.paintLegend(run);
  }

  paintCharts(run, p) {
    const { life } = this;
    const marks = [
      ...life.written.map((s) => ({ s, cls: "d2-mark-written" })),
      ...life.masked.map((s) => ({ s, cls: "d2-mark-masked" })),
    ];
    this.charts.forEach((chart, i) => {
      const { key } = LINES[i],
        empty = life[key].every((v) => v === null);
      chart.el.hidden = empty && (key === "drift" || p < run.P);
      chart.draw(life[key], run.records.length, marks, this.scaleOf(key));
    });
  }

  scaleOf(key) {
    if (key === "drift") return { map: (v) => logShade(v, DRIFTS.low, DRIFTS.high) };
    if (key !== "rank") return {};
    const most = Math.max(2, ...this.life.of.map((x) => x ?? 0));
    return { low: 1, high: most, ticks: ["1", String(most)] };
  }

  paintStrip(steps) {
    const { life } = this,
      tint = Object.fromEntries(REASONS.map((r) => [r.key, pixel(rgb(r.colour))])),
      reused = pixel(rgb(paper(this.page.dark).reused));
    const colour = (byte) => (byte === null ? 0 : byte ? tint[reasonOf(byte)] : reused);
    const cells = (out) => life.why.forEach((byte, s) => (out[s] = colour(byte)));
    const marks = (ctx, w, ht, ratio) => {
      const wide = Math.max(2 * ratio, Math.min(4 * ratio, w / steps));
      for (const [list, ink] of [
        [life.written, WRITTEN_NOW],
        [life.masked, MASKED_NOW],
      ]) {
        ctx.fillStyle = ink;
        for (const s of list) ctx.fillRect((w * s) / steps, 0, wide, ht);
      }
    };
    this.strip.draw(steps, 1, cells, marks);
  }

  paintLegend(run) {
    const seen = new Set(this.life.why.filter(Boolean).map(reasonOf));
    const list = [
      ...run.reasons.filter((r) => seen.has(r.key)).map((r) => [r.colour, r.label, r.why]),
      [paper(this.page.dark).reused, "reused", run.reasons[0].why],
      [WRITTEN_NOW, "written", "the step that wrote its token"],
    ];
    fill(this.legend, list.join("|"), () => list.map((x) => this.mark(...x)));
  }

  paintCandidates(run, p, step) {
    const key = `${run.key}|${p}|${step}|${run.records.length}`;
    if (this.candidatesFor === key) return;
    this.candidatesFor = key;
    const nodes = candidateNodes(run, step, p);
    this.candidates.hidden = !nodes.length;
    this.bars.replaceChildren(...nodes);
  }

  destroy() {
    this.strip.destroy();
  }
}

const tab = { key: "token", title: "Token", mount: (host, page) => new TokenView(host, page) };

export { sideOf, tab };
