/* What the views share: a map of cells that can be pointed at and walked by keys, lines over the
 * steps, words that explain themselves. */
import { colourAt, PAPER } from "./colours.js";
import { h } from "./dom.js";
import { worded } from "./glossary.js";
import { clamp } from "./numbers.js";
import { table } from "./pixels.js";
import { atStep, linePath } from "./token-life.js";

const paragraph = (cls, text) => h("p", cls, {}, ...worded(text));

function svg(tag, props, ...kids) {
  const el = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [k, v] of Object.entries(props || {})) el.setAttribute(k, v);
  el.append(...kids);
  return el;
}

// A word on which its definition pops up, by mouse, keyboard and touch.
const term = (page, text, why) =>
  page.explained(h("button", "d2-defined", { type: "button", textContent: text }), why);

// Makes legends: a dot and a label that explains itself. look: a colour, or a class of the dot for
// what is no plain colour. Each is made once, however often its legend changes.
function marker(page) {
  const made = new Map();
  return (look, label, why) => {
    const key = `${look}|${label}|${why}`;
    if (!made.has(key)) {
      const dot = h("i", `d2-dot${look.startsWith("d2-") ? ` ${look}` : ""}`);
      if (!look.startsWith("d2-")) dot.style.background = look;
      made.set(
        key,
        page.explained(
          h("button", "d2-swatch", { type: "button" }, dot, h("span", "", { textContent: label })),
          why,
        ),
      );
    }
    return made.get(key);
  };
}

// Fills a legend anew only when its key has changed: the focus may rest in it.
function fill(legend, key, make) {
  if (legend.was === key) return;
  legend.was = key;
  legend.replaceChildren(...make());
}

function pick(label, options, value, onPick) {
  const list = h("select", "d2-select", { "aria-label": label });
  list.fill = (options, value) => {
    list.replaceChildren(
      ...options.map(([v, text]) => h("option", "", { value: v, textContent: text })),
    );
    list.value = value;
  };
  list.fill(options, value);
  list.addEventListener("change", () => onPick(list.value));
  return list;
}

// A canvas of cols x rows cells. Pointing at a cell, or walking there with the arrow keys, says
// read(col, row) below the map; a click or Enter picks it. columnOf(position) places the hover line.
function makePlane(
  page,
  {
    label,
    read,
    choose,
    point,
    columnOf = (p) => p,
    idle = "Point at a cell, or use the arrow keys here.",
  },
) {
  const store = h("canvas"),
    canvas = h("canvas", "d2-plane-canvas", { "aria-hidden": "true" });
  const cell = h("div", "d2-plane-cell", { hidden: true }),
    hair = h("div", "d2-plane-hair", { hidden: true }),
    line = h("div", "d2-plane-line", { hidden: true });
  const el = h(
    "div",
    "d2-cells",
    { tabIndex: 0, role: "application", "aria-label": `${label}. Arrow keys move, Enter chooses.` },
    canvas,
    line,
    hair,
    cell,
  );
  const said = h("p", "d2-said-cell d2-quiet", { textContent: idle }),
    spoken = h("p", "d2-sr", { "aria-live": "polite" });
  let cols = 0,
    rows = 0,
    at = null,
    byKeys = false,
    overlay = null;

  function place(box, c, r, w, ht) {
    box.style.left = `${(100 * c) / cols}%`;
    box.style.top = `${(100 * r) / rows}%`;
    box.style.width = `max(2px, ${(100 * w) / cols}%)`;
    box.style.height = `max(2px, ${(100 * ht) / rows}%)`;
  }

  function move(to, keys) {
    const told = Boolean(at) || Boolean(to);
    at = to && cols && rows ? [clamp(to[0], 0, cols - 1), clamp(to[1], 0, rows - 1)] : null;
    byKeys = Boolean(keys);
    if (told && point) point(at && at[0], at && at[1]);
    say();
  }

  function say() {
    if (at && (at[0] >= cols || at[1] >= rows)) at = null;
    cell.hidden = !at;
    const text = at ? read(at[0], at[1]) : idle;
    if (at) place(cell, at[0], at[1], 1, 1);
    if (said.textContent !== text) said.textContent = text;
    said.classList.toggle("d2-quiet", !at);
    if (at && byKeys && spoken.textContent !== text) spoken.textContent = text;
  }

  function cellAt(e) {
    const box = canvas.getBoundingClientRect();
    return [
      Math.floor(((e.clientX - box.left) / box.width) * cols),
      Math.floor(((e.clientY - box.top) / box.height) * rows),
    ];
  }
  el.addEventListener("pointermove", (e) => move(cellAt(e)));
  el.addEventListener("pointerdown", (e) => move(cellAt(e)));
  el.addEventListener("pointerleave", (e) => {
    if (e.pointerType !== "touch") move(null);
  }); // a finger leaves by lifting
  el.addEventListener("click", (e) => {
    if (cols && choose) choose(...cellAt(e));
  });
  el.addEventListener("blur", () => {
    if (byKeys) move(null);
  });
  el.addEventListener("keydown", (e) => {
    const [c, r] = at ?? [Math.max(0, Math.floor(cols / 2)), 0];
    const far = Math.max(1, Math.round(cols / 10));
    const to = {
      ArrowLeft: [c - (e.shiftKey ? far : 1), r],
      ArrowRight: [c + (e.shiftKey ? far : 1), r],
      ArrowUp: [c, r - 1],
      ArrowDown: [c, r + 1],
      Home: [0, r],
      End: [cols - 1, r],
    }[e.key];
    if (to) move(at ? to : [c, r], true);
    else if ((e.key === "Enter" || e.key === " ") && at && choose) choose(...at);
    else if (e.key === "Escape" && at) move(null);
    else return;
    e.preventDefault(); // the stage's own arrows move the clock
  });

  // paint(pixels, cols) fills cols * rows 32-bit colours; over(ctx, width, height) draws on top.
  function draw(c, r, paint, over) {
    [cols, rows, overlay] = [c, r, over];
    if (!cols || !rows) return;
    store.width = cols;
    store.height = rows;
    const image = new ImageData(cols, rows);
    paint(new Uint32Array(image.data.buffer), cols);
    store.getContext("2d").putImageData(image, 0, 0);
    show();
    say();
  }

  function show() {
    const ratio = Math.min(2, globalThis.devicePixelRatio || 1),
      w = Math.round(el.clientWidth * ratio),
      ht = Math.round(el.clientHeight * ratio);
    if (!cols || !w || !ht) return;
    if (canvas.width !== w || canvas.height !== ht) {
      canvas.width = w;
      canvas.height = ht;
    }
    const ctx = canvas.getContext("2d");
    ctx.clearRect(0, 0, w, ht);
    ctx.imageSmoothingEnabled = cols > w || rows > ht; // shrinking must not drop columns
    ctx.drawImage(store, 0, 0, w, ht);
    if (overlay) overlay(ctx, w, ht, ratio);
  }

  // The column that is pointed at elsewhere, and the row of the step on view (null: none).
  function follow(p, row = null) {
    const c = p === null ? null : columnOf(p);
    hair.hidden = c === null || c < 0 || c >= cols;
    if (!hair.hidden) place(hair, c, 0, 1, rows);
    line.hidden = row === null || row < 0 || row >= rows;
    if (!line.hidden) place(line, 0, row, cols, 1);
  }

  const sizes = new ResizeObserver(show);
  sizes.observe(el);
  return {
    el,
    said: h("div", "", {}, said, spoken),
    draw,
    follow,
    say,
    destroy: () => sizes.disconnect(),
  };
}

// "prompt | answer" over a map, in the proportions of its columns.
function promptBar() {
  const given = h("span", "", {}),
    made = h("span", "d2-ask-answer", {}),
    el = h("div", "d2-ask", { "aria-hidden": "true" }, given, made);
  el.show = (P, G) => {
    [given.style.flexGrow, made.style.flexGrow] = [P, G];
    [given.textContent, made.textContent] = [`prompt · ${P}`, `answer · ${G}`];
    given.hidden = !P;
  };
  return el;
}

// Lines over the steps in a small box; the number of the step on view (or pointed at) beside the title.
function makeLines(
  page,
  { title, why, low = 0, high = 1, ticks, format, flip = false, tall = false },
) {
  const value = h("b", "d2-line-value"),
    box = svg("svg", {
      viewBox: "0 0 1000 100",
      preserveAspectRatio: "none",
      "aria-hidden": "true",
    });
  const top = h("span"),
    bottom = h("span"),
    plot = h("div", `d2-line-box${tall ? " d2-tall" : ""}`, {}, box);
  const el = h(
    "section",
    "d2-line",
    {},
    h("div", "d2-line-head", {}, term(page, title, why), value),
    h(
      "div",
      "d2-line-frame",
      {},
      h("div", "d2-line-ticks", { "aria-hidden": "true" }, top, bottom),
      plot,
    ),
  );
  let values = [],
    steps = 0,
    pointed = null,
    on = -1;
  const cursor = svg("line", { class: "d2-line-now", y1: 0, y2: 100 });

  const stepAt = (e) => {
    const b = plot.getBoundingClientRect();
    return clamp(
      Math.round(((e.clientX - b.left) / b.width) * (steps - 1)),
      0,
      Math.max(0, steps - 1),
    );
  };
  plot.addEventListener("pointermove", (e) => {
    pointed = stepAt(e);
    tell();
  });
  plot.addEventListener("pointerleave", () => {
    pointed = null;
    tell();
  });
  plot.addEventListener("click", (e) => {
    if (steps) page.goto(stepAt(e));
  });

  function tell() {
    const s = pointed ?? on,
      v = values[s] ?? null;
    value.textContent = v === null ? (s < 0 ? "" : "–") : format(v, s);
    if (pointed !== null) value.textContent += ` (step ${pointed + 1})`;
  }

  // marks: [{s, cls}] upright lines of a kind; scale {low, high, ticks, map: value -> 0..1} where it is not plain
  function draw(list, count, marks = [], scale = {}) {
    const lo = scale.low ?? low,
      hi = scale.high ?? high,
      upright = scale.map ?? ((v) => (v - lo) / (hi - lo || 1));
    [top.textContent, bottom.textContent] = scale.ticks ?? ticks;
    [values, steps] = [list, count];
    const path = linePath(
      list.map((v) => (v === null ? null : flip ? 1 - upright(v) : upright(v))),
      count,
      0,
      1,
    );
    box.replaceChildren(
      ...marks.map(({ s, cls }) =>
        svg("line", { class: cls, x1: atStep(s, count), x2: atStep(s, count), y1: 0, y2: 100 }),
      ),
      svg("path", { class: "d2-line-path", d: path }),
      cursor,
    );
  }

  function follow(s) {
    on = s;
    const x = atStep(Math.max(0, s), steps);
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
    cursor.style.display = s < 0 ? "none" : "";
    tell();
  }
  return { el, draw, follow };
}

// A ramp of a view as a table of 256 pixels: shade(code) in 0..1, or null for nothing.
const rampTable = (name, dark, shade, none) =>
  table((u) => {
    const v = shade(u);
    return v === null ? none : colourAt(name, v, dark);
  });

// A pattern of slanted lines, to tell a kind of cell apart without colour.
function hatching(ctx, ink, ratio) {
  const size = 6 * ratio,
    tile = h("canvas", "", { width: size, height: size }),
    c = tile.getContext("2d");
  c.strokeStyle = ink;
  c.lineWidth = ratio;
  c.beginPath();
  for (const d of [-size, 0, size]) {
    c.moveTo(d, size);
    c.lineTo(d + size, 0);
  }
  c.stroke();
  return ctx.createPattern(tile, "repeat");
}

// The upright line between prompt and answer on a map.
function divide(ctx, w, ht, share, ratio, dark) {
  if (share <= 0) return;
  ctx.strokeStyle = dark ? "#c3cad5" : "#3b4452";
  ctx.lineWidth = ratio;
  ctx.setLineDash([3 * ratio, 3 * ratio]);
  ctx.beginPath();
  ctx.moveTo(w * share, 0);
  ctx.lineTo(w * share, ht);
  ctx.stroke();
  ctx.setLineDash([]);
}

// One answer at a time of what a view asks the server for: an older question's answer is dropped.
function asker(page) {
  let asked = 0;
  return async (name, args, then) => {
    const mine = ++asked;
    let got = null,
      problem = null;
    try {
      got = await page.ask(name, args);
    } catch (error) {
      problem = String(error?.message || error);
    }
    if (mine === asked) then(got, problem);
  };
}

const paper = (dark) => PAPER[dark ? "dark" : "light"];

export {
  paragraph,
  svg,
  term,
  marker,
  fill,
  pick,
  makePlane,
  promptBar,
  makeLines,
  rampTable,
  hatching,
  divide,
  asker,
  paper,
};
