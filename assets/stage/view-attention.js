/* The attention tab: who looks at whom, from an exact full pass on the canvas of the step on view. */
import { colourAt, rgb, WRITTEN_NOW } from "./colours.js";
import { LAST_CODE, QUESTIONS } from "./contract.js";
import { colourBar, h } from "./dom.js";
import { decodePlane, fixed } from "./numbers.js";
import { evenShades, pixel, shareOf, table } from "./pixels.js";
import { textBefore, writeAt } from "./run.js";
import { mapNote, placeOf, quoted, visible, wantsMap } from "./sentences.js";
import { asker, fill, makePlane, marker, paragraph, pick, term } from "./widgets.js";

// What stands at a position before a step. Told apart by colour and, in the strip, by lightness.
const KINDS = {
  prompt: {
    label: "prompt",
    colour: { light: "#7d8896", dark: "#8d99a8" },
    why: "a position of the prompt",
  },
  decoded: {
    label: "decoded",
    colour: { light: WRITTEN_NOW, dark: "#f08a3c" },
    why: "an answer position that was written before this step",
  },
  masked: {
    label: "masked",
    colour: { light: "#0b4f8a", dark: "#9cc9ee" },
    why: "an answer position that is still masked before this step",
  },
};
const kindAt = (run, p, s) =>
  p < run.P ? "prompt" : writeAt(run, p, s - 1) ? "decoded" : "masked";

function nameOf(run, s, from, to) {
  if (to - from > 1) return `positions ${from + 1} to ${to}`;
  const text = textBefore(run, from, s) ?? (from < run.P ? run.prompt[from] : null); // an edit may have changed the prompt
  return `${placeOf(run, from)} (${text == null ? "masked" : run.eos.has(text) ? "end" : quoted(visible(text))})`;
}

// "query answer position 3 (masked), key prompt position 2 (' has'): 0.041 of the query's weight"
function cellWords(run, got, q, k) {
  const e = got.edges,
    query = nameOf(run, got.at, e[q], e[q + 1]),
    key = nameOf(run, got.at, e[k], e[k + 1]),
    u = got.bytes[q * got.n + k];
  const share =
    got.largest === undefined
      ? `${fixed(100 * shareOf(u), 1)} % of the largest cell`
      : `share ${fixed((shareOf(u) * got.largest) / (e[q + 1] - e[q]), 3)}`;
  return `query ${query}, key ${key}: ${share}`;
}

function mount(host, page) {
  let layer = "rollout",
    got = null,
    askedFor = "",
    problem = "",
    timer = 0,
    drawn = "",
    filled = "";
  const ask = asker(page),
    mark = marker(page);
  const which = pick("Which map", [["rollout", "rollout through all layers"]], layer, (v) => {
    layer = v;
    page.schedule();
  });
  const note = h("p", "d2-more", { role: "status" }),
    now = h("button", "d2-button", {
      type: "button",
      textContent: "Load the map of this step",
      onclick: load,
    });
  const legend = h("div", "d2-legend"),
    bars = h("canvas", "d2-columns"),
    across = h("canvas", "d2-kinds", { "aria-hidden": "true" }),
    down = h("canvas", "d2-kinds", { "aria-hidden": "true" });
  const received = term(
    page,
    "attention received",
    "The sum of a column of the map divided by the mean over all columns: how much a position is looked at, 1 is the average position.",
  );
  const most = h("p", "d2-more");
  const plane = makePlane(page, {
    label: "Queries by keys",
    idle: "Point at a cell, or use the arrow keys here: the line is the query that looks, the column is the key that is looked at.",
    read: (k, q) => (got ? cellWords(page.run, got, q, k) : ""),
    choose: (k, q) => got && page.select(got.edges[q]),
    point: (k) =>
      page.setHover(k === null || !got ? null : { p: got.edges[k], s: null, lane: page.lane }),
    columnOf: (p) => (got ? got.edges.findIndex((e, i) => p >= e && p < got.edges[i + 1]) : -1),
  });
  down.classList.add("d2-kinds-down");
  const square = h("div", "d2-square", {}, h("span"), bars, h("span"), across, down, plane.el);
  const body = h(
    "div",
    "d2-square-box",
    { hidden: true },
    h("div", "", {}, received, square),
    h("div", "", {}, plane.said, most, legend),
  );
  host.append(
    h(
      "section",
      "d2-look",
      { "aria-label": "Attention" },
      h(
        "div",
        "d2-head",
        {},
        h("h4", "d2-title", { textContent: "Who looks at whom" }),
        h("div", "d2-tools", {}, which),
      ),
      paragraph(
        "d2-more",
        "Each position reads from the others by attention. The map is of an exact pass without a cache: what attention is, not what the cache made of it.",
      ),
      now,
      note,
      body,
    ),
  );

  const keyOf = () => `${page.run.key}|${page.step}|${layer}`;

  async function load() {
    const { run, step } = page,
      key = keyOf();
    if (step < 0) return;
    askedFor = key;
    problem = "";
    page.schedule();
    ask(
      QUESTIONS.attention,
      { run: run.key, step, layer: layer === "rollout" ? layer : Number(layer) },
      (answer, failed) => {
        problem = failed || "";
        const bytes = answer && decodePlane(answer.map),
          edges = answer?.edges;
        if (answer)
          got = {
            ...answer,
            key,
            of: run.key,
            at: step,
            layer,
            bytes,
            shades: evenShades(bytes, edges),
          };
        page.schedule();
      },
    );
  }

  function cells(canvas, n, at, colour) {
    canvas.width = at === "x" ? n : 1;
    canvas.height = at === "x" ? 1 : n;
    const image = new ImageData(canvas.width, canvas.height),
      out = new Uint32Array(image.data.buffer);
    for (let i = 0; i < n; i++) out[i] = colour(i);
    canvas.getContext("2d").putImageData(image, 0, 0);
  }

  function draw(run, dark) {
    const lut = table((u) => colourAt("rollout", u / LAST_CODE, dark)),
      { n, shades, edges, at } = got;
    plane.draw(n, n, (out) => {
      for (let i = 0; i < out.length; i++) out[i] = lut[shades[i]];
    });
    const tint = (i) => KINDS[kindAt(run, edges[i], at)].colour[dark ? "dark" : "light"];
    for (const [canvas, axis] of [
      [across, "x"],
      [down, "y"],
    ])
      cells(canvas, n, axis, (i) => pixel(rgb(tint(i))));
    const w = (bars.width = 2 * (bars.clientWidth || 300)),
      ht = (bars.height = 2 * (bars.clientHeight || 56)),
      ctx = bars.getContext("2d"),
      top = Math.max(1, ...got.columns);
    ctx.clearRect(0, 0, w, ht);
    for (let i = 0; i < n; i++) {
      // of positions that share a cell, the tallest
      const value = Math.max(...got.columns.slice(edges[i], edges[i + 1]));
      ctx.fillStyle = tint(i);
      ctx.fillRect(
        (w * i) / n,
        ht * (1 - value / top),
        Math.max(1, w / n - (w / n > 4 ? 1 : 0)),
        (ht * value) / top,
      );
    }
    ctx.fillStyle = dark ? "#e6e9ee" : "#1f2937"; // the average position
    for (let x = 0; x < w; x += 8) ctx.fillRect(x, Math.round(ht * (1 - 1 / top)) - 1, 4, 2);
    const order = [...got.columns.keys()]
      .sort((a, b) => got.columns[b] - got.columns[a])
      .slice(0, 3);
    most.textContent = `Most is received by ${order.map((p) => `${nameOf(run, at, p, p + 1)}: ${fixed(got.columns[p], 1)}×`).join(", ")} the average.`;
    fill(legend, String(dark), () => [
      ...Object.values(KINDS).map((kind) =>
        mark(kind.colour[dark ? "dark" : "light"], kind.label, kind.why),
      ),
      colourBar(
        "rollout",
        dark,
        ["0", "1/16", "1/4", "9/16", "1"],
        "share, as a part of the largest on this map (square-root scale)",
      ),
    ]);
  }

  const layerNote = (s, dark) =>
    `Step ${s + 1}, computed again by a full pass without a cache. Row i, column j: the share of position i's attention that falls on position j in this layer, mean over the heads. ${dark ? "Brighter" : "Darker"} is more: the shade grows with the square root of the share, up to the largest on this map.`;

  function say(run, dark, fresh) {
    if (page.offline)
      return "This map needs the running app: it is computed again for each step. All else on this page works without.";
    if (!run.records.length) return "No step yet.";
    if (problem && !fresh) return `No map: ${problem.replace(/\.$/, "")}.`;
    if (!fresh && askedFor === keyOf()) return `Loading the map of step ${page.step + 1} …`;
    if (!got) return "";
    return got.layer === "rollout"
      ? mapNote(got.at, dark, got.of !== run.key, false)
      : layerNote(got.at, dark);
  }

  function paint() {
    const { run, step, dark } = page;
    if (!run?.key) return;
    const names = `${run.key}|${run.layers}`;
    if (filled !== names) {
      filled = names;
      if (layer !== "rollout" && Number(layer) >= run.layers) layer = "rollout";
      which.fill(
        [
          ["rollout", "rollout through all layers"],
          ...Array.from({ length: run.layers }, (_, l) => [
            String(l),
            `layer ${l + 1}${l === 0 ? " (first)" : l === run.layers - 1 ? " (last)" : ""}`,
          ]),
        ],
        layer,
      );
    }
    if (got && got.of !== run.key) got = null; // another run's canvas: its positions mean other tokens
    const fresh = got?.key === keyOf(),
      due = !page.offline && step >= 0 && !fresh && askedFor !== keyOf(),
      waits = due && !wantsMap(run, page.live);
    clearTimeout(timer);
    if (due && !waits) timer = setTimeout(load, 250);
    now.hidden = !waits && !(problem && !fresh);
    body.hidden = !got;
    which.disabled = page.offline;
    body.classList.toggle("d2-old", !fresh);
    const text = say(run, dark, fresh);
    if (note.textContent !== text) note.textContent = text;
    if (got) {
      const key = `${got.key}|${dark}|${bars.clientWidth}`;
      if (drawn !== key) {
        drawn = key;
        draw(run, dark);
      }
      plane.follow(page.hover?.p ?? page.selected);
    }
  }

  return {
    paint,
    destroy: () => {
      clearTimeout(timer);
      plane.destroy();
    },
  };
}

const tab = { key: "attention", title: "Attention", mount };

export { kindAt as attentionKind, cellWords as attentionWords, tab };
