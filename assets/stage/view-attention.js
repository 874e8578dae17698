/* The attention tab: who looks at whom, by an exact full pass on the canvas of the current step. */
import { AttentionLinks, labelOf } from "./attention-links.js";
import { CellMap } from "./cells.js";
import { colourAt, rgb } from "./colours.js";
import { LAST_CODE, QUESTIONS } from "./contract.js";
import { colourBar, h } from "./dom.js";
import { decodePlane, fixed } from "./numbers.js";
import { evenShades, pixel, shareOf, table } from "./pixels.js";
import { textBefore, writeAt } from "./run.js";
import { mapNote, placeOf, quoted, visible, wantsMap } from "./sentences.js";
import { asker, caption, fill, marker, pick, term } from "./widgets.js";

// What is at a position before a step, in the greys of the tokens: told apart by lightness alone.
const KINDS = {
  prompt: {
    label: "prompt",
    colour: { light: "#6d7886", dark: "#8d99a8" },
    why: "a position of the prompt",
  },
  decoded: {
    label: "written",
    colour: { light: "#1f2937", dark: "#e6e9ee" },
    why: "an answer position that was written before this step",
  },
  masked: {
    label: "masked",
    colour: { light: "#bcc4cf", dark: "#4a5362" },
    why: "an answer position that is still masked before this step",
  },
};
const ROLLOUT = "rollout";
const ROLLOUT_OPTION = [ROLLOUT, "rollout through all layers"];
const WAIT = 250; // ms that a step must be shown before its map is asked for
const LEAD =
  "Each position reads from the others by attention. The map is of an exact pass without a " +
  "cache: what attention is, not what the cache made of it.";
const RECEIVED_WHY =
  "The sum of a column of the map divided by the mean over all columns: how much a position is " +
  "looked at, 1 is the average position.";
const IDLE =
  "Point at a cell, or use the arrow keys here: the line is the query that looks, the column is " +
  "the key that is looked at.";
const OFFLINE =
  "This needs the running app: the map and the links between tokens are computed again for each " +
  "step.";
const LABEL = 13; // px that the label of a row or column takes

const kindAt = (run, p, s) =>
  p < run.P || writeAt(run, p, s - 1)?.given
    ? "prompt"
    : writeAt(run, p, s - 1)
      ? "decoded"
      : "masked";

function nameOf(run, s, from, to) {
  if (to - from > 1) return `positions ${from + 1} to ${to}`;
  // an edit may have changed the prompt
  const text = textBefore(run, from, s) ?? (from < run.P ? run.prompt[from] : null);
  const is = text == null ? "masked" : run.eos.has(text) ? "end" : quoted(visible(text));
  return `${placeOf(run, from)} (${is})`;
}

// "query answer position 3 (masked), key prompt position 2 (' has'): 0.041 of the query's weight"
function cellWords(run, got, q, k) {
  const e = got.edges,
    query = nameOf(run, got.at, e[q], e[q + 1]),
    key = nameOf(run, got.at, e[k], e[k + 1]),
    part = shareOf(got.bytes[q * got.n + k]);
  const share =
    got.largest === undefined
      ? `${fixed(100 * part, 1)} % of the largest cell`
      : `share ${fixed((part * got.largest) / (e[q + 1] - e[q]), 3)}`;
  return `query ${query}, key ${key}: ${share}`;
}

const layerNote = (s, dark) =>
  `Step ${s + 1}, computed again by a full pass without a cache. Row i, column j: the share of ` +
  "position i's attention that falls on position j in this layer, mean over the heads. " +
  `${dark ? "Brighter" : "Darker"} is more: the shade grows with the square root of the share, ` +
  "up to the largest on this map.";

function layerOptions(layers) {
  const place = (l) => (l === 0 ? " (first)" : l === layers - 1 ? " (last)" : "");
  const option = (_, l) => [String(l), `layer ${l + 1}${place(l)}`];
  return [ROLLOUT_OPTION, ...Array.from({ length: layers }, option)];
}

// Paints a canvas of n by 1 or 1 by n pixels, one colour each.
function paintLine(canvas, width, height, pixels) {
  Object.assign(canvas, { width, height });
  const image = new ImageData(width, height);
  new Uint32Array(image.data.buffer).set(pixels);
  canvas.getContext("2d").putImageData(image, 0, 0);
}

// Bars over the columns of the map; a dashed line at 1, the average position.
function drawReceived(canvas, { columns, edges, n }, tints, dark) {
  const w = (canvas.width = 2 * (canvas.clientWidth || 300)),
    ht = (canvas.height = 2 * (canvas.clientHeight || 56)),
    ctx = canvas.getContext("2d"),
    top = Math.max(1, ...columns),
    wide = Math.max(1, w / n - (w / n > 4 ? 1 : 0));
  ctx.clearRect(0, 0, w, ht);
  for (let i = 0; i < n; i++) {
    // of positions that share a cell, the tallest
    const share = Math.max(...columns.slice(edges[i], edges[i + 1])) / top;
    ctx.fillStyle = tints[i];
    ctx.fillRect((w * i) / n, ht * (1 - share), wide, ht * share);
  }
  ctx.fillStyle = dark ? "#e6e9ee" : "#1f2937";
  for (let x = 0; x < w; x += 8) ctx.fillRect(x, Math.round(ht * (1 - 1 / top)) - 1, 4, 2);
}

// Labels along an axis of a map: as many as fit, evenly spaced; all where they are few.
function fillAxis(el, run, { n, edges, at }, size) {
  const every = Math.max(1, Math.ceil((LABEL * n) / Math.max(1, size))),
    shown = Array.from({ length: Math.ceil(n / every) }, (_, i) => i * every);
  el.replaceChildren(
    ...shown.map((i) => {
      const label = h("span", "", { textContent: labelOf(run, edges[i], at) });
      label.style.setProperty("--d2-along", `${(100 * (i + 0.5)) / n}%`);
      return label;
    }),
  );
}

// The three positions that receive most, in a sentence.
function receivedWords(run, { columns, at }) {
  const order = [...columns.keys()].sort((a, b) => columns[b] - columns[a]).slice(0, 3),
    names = order.map((p) => `${nameOf(run, at, p, p + 1)}: ${fixed(columns[p], 1)}×`);
  return `Most is received by ${names.join(", ")} the average.`;
}

class AttentionView {
  constructor(host, page) {
    this.page = page;
    this.ask = asker(page);
    this.mark = marker(page);
    this.layer = ROLLOUT;
    this.got = null; // the map that was loaded last, and of what it is
    this.askedFor = "";
    this.problem = "";
    this.timer = 0;
    this.drawnFor = "";
    this.layersFor = "";
    this.build(host);
  }

  build(host) {
    const { page } = this;
    this.which = pick("Which map", [ROLLOUT_OPTION], this.layer, (v) => {
      this.layer = v;
      page.schedule();
    });
    this.note = caption("", { role: "status" });
    this.now = h("button", "d2-button", {
      type: "button",
      textContent: "Load the map of this step",
      onclick: () => this.load(),
    });
    this.body = this.buildBody();
    const title = h("h3", "d2-title", { textContent: "Who looks at whom" });
    host.append(
      h(
        "section",
        "d2-look",
        { "aria-label": "Attention" },
        h("div", "d2-head", {}, title, h("div", "d2-tools", {}, this.which)),
        caption(LEAD),
        this.now,
        this.note,
        this.body,
      ),
    );
  }

  buildBody() {
    this.legend = h("div", "d2-legend");
    this.most = h("p", "d2-more");
    this.bars = h("canvas", "d2-columns");
    this.across = h("canvas", "d2-kinds", { "aria-hidden": "true" });
    this.down = h("canvas", "d2-kinds d2-kinds-down", { "aria-hidden": "true" });
    this.map = this.makeMap();
    this.links = new AttentionLinks(this.page);
    [this.rows, this.columns] = ["rows", "columns"].map((side) =>
      h("div", `d2-labels d2-labels-${side}`, { "aria-hidden": "true" }),
    );
    const { bars, across, down, map, rows, columns } = this,
      received = term(this.page, "attention received", RECEIVED_WHY),
      gap = () => h("span"),
      square = h("div", "d2-square", {}, gap(), gap(), bars, gap(), gap(), across);
    square.append(rows, down, map.el, gap(), gap(), columns);
    return h(
      "div",
      "d2-square-box",
      { hidden: true },
      h("div", "", {}, received, square),
      h("div", "", {}, map.below, this.links.el, this.most, this.legend),
    );
  }

  makeMap() {
    const { page } = this;
    return new CellMap({
      label: "Queries by keys",
      idle: IDLE,
      read: (k, q) => (this.got ? cellWords(page.run, this.got, q, k) : ""),
      choose: (k, q) => this.got && page.select(this.got.edges[q]),
      point: (k) => {
        const p = k === null || !this.got ? null : this.got.edges[k];
        page.setHover(p === null ? null : { p, s: null, lane: page.lane });
      },
      columnOf: (p) => this.columnOf(p),
    });
  }

  columnOf(p) {
    const edges = this.got?.edges ?? [];
    return edges.findIndex((e, i) => p >= e && p < edges[i + 1]);
  }

  // ---- loading

  key() {
    return `${this.page.run.key}|${this.page.step}|${this.layer}`;
  }

  load() {
    const { run, step } = this.page,
      { layer } = this,
      key = this.key();
    if (step < 0) return;
    this.askedFor = key;
    this.problem = "";
    this.page.schedule();
    const given = { run: run.key, step, layer: layer === ROLLOUT ? layer : Number(layer) };
    this.ask(QUESTIONS.attention, given, (answer, problem) => {
      this.problem = problem || "";
      if (answer) this.take(answer, { key, of: run.key, at: step, layer });
      this.page.schedule();
    });
  }

  take(answer, about) {
    const bytes = decodePlane(answer.map);
    this.got = { ...answer, ...about, bytes, shades: evenShades(bytes, answer.edges) };
  }

  // ---- painting

  paint() {
    const { run, dark, offline, hover, selected } = this.page;
    if (!run?.key) return;
    this.offerLayers(run);
    if (this.got && this.got.of !== run.key) this.got = null; // of another canvas
    const fresh = this.got?.key === this.key(),
      waits = this.loadSoon(run, fresh);
    this.now.hidden = !waits && !(this.problem && !fresh);
    this.body.hidden = !this.got;
    this.which.disabled = offline;
    this.body.classList.toggle("d2-old", !fresh);
    this.note.set(this.noteText(run, dark, fresh));
    if (!this.got) return;
    this.draw(run, dark);
    this.links.paint(run, this.got);
    this.map.follow(hover?.p ?? selected);
  }

  offerLayers(run) {
    const key = `${run.key}|${run.layers}`;
    if (this.layersFor === key) return;
    this.layersFor = key;
    if (this.layer !== ROLLOUT && Number(this.layer) >= run.layers) this.layer = ROLLOUT;
    this.which.fill(layerOptions(run.layers), this.layer);
  }

  // Asks for a map that is due; true when it waits for the reader to ask.
  loadSoon(run, fresh) {
    const { offline, step, live } = this.page,
      due = !offline && step >= 0 && !fresh && this.askedFor !== this.key(),
      waits = due && !wantsMap(run, live);
    clearTimeout(this.timer);
    if (due && !waits) this.timer = setTimeout(() => this.load(), WAIT);
    return waits;
  }

  noteText(run, dark, fresh) {
    const { got, problem } = this;
    if (this.page.offline) return OFFLINE;
    if (!run.records.length) return "No step yet.";
    if (problem && !fresh) return `No map: ${problem.replace(/\.$/, "")}.`;
    if (!fresh && this.askedFor === this.key())
      return `Loading the map of step ${this.page.step + 1} …`;
    if (!got) return "";
    return got.layer === ROLLOUT ? mapNote(got.at, dark, false, false) : layerNote(got.at, dark);
  }

  draw(run, dark) {
    const { got } = this,
      key = `${got.key}|${dark}|${this.bars.clientWidth}`;
    if (this.drawnFor === key) return;
    this.drawnFor = key;
    const { n, shades, edges, at } = got,
      colours = table((u) => colourAt("rollout", u / LAST_CODE, dark));
    this.map.draw(n, n, (out) => {
      for (let i = 0; i < out.length; i++) out[i] = colours[shades[i]];
    });
    const tintOf = (p) => KINDS[kindAt(run, p, at)].colour[dark ? "dark" : "light"],
      tints = Array.from({ length: n }, (_, i) => tintOf(edges[i])),
      pixels = tints.map((tint) => pixel(rgb(tint)));
    paintLine(this.across, n, 1, pixels);
    paintLine(this.down, 1, n, pixels);
    drawReceived(this.bars, got, tints, dark);
    fillAxis(this.rows, run, got, this.map.el.clientHeight);
    fillAxis(this.columns, run, got, this.map.el.clientWidth);
    this.most.textContent = receivedWords(run, got);
    this.paintLegend(dark);
  }

  paintLegend(dark) {
    const ticks = ["0", "1/16", "1/4", "9/16", "1"],
      unit = "share, relative to the largest on this map (square-root scale)";
    const kinds = Object.values(KINDS);
    fill(this.legend, String(dark), () => [
      ...kinds.map((kind) => this.mark(kind.colour[dark ? "dark" : "light"], kind.label, kind.why)),
      colourBar("rollout", dark, ticks, unit),
    ]);
  }

  destroy() {
    clearTimeout(this.timer);
    this.links.destroy();
    this.map.destroy();
  }
}

const tab = {
  key: "attention",
  title: "Attention",
  mount: (host, page) => new AttentionView(host, page),
};

export { kindAt as attentionKind, cellWords as attentionWords, tab };
