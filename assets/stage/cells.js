/* A map of cells that can be pointed at and walked with the arrow keys; a line below it describes
 * the cell pointed at. */
import { fitCanvas, h, onMouseLeave, pixelRatio } from "./dom.js";
import { clamp } from "./numbers.js";
import { drawPooled } from "./pooling.js";
import { partNames } from "./sentences.js";

const IDLE = "Point at a cell, or use the arrow keys here.";

// Where a key leads from cell [c, r]; null: nowhere. With Shift, a tenth of the columns at once.
function cellFrom(e, [c, r], cols) {
  const far = e.shiftKey ? Math.max(1, Math.round(cols / 10)) : 1;
  const to = {
    ArrowLeft: [c - far, r],
    ArrowRight: [c + far, r],
    ArrowUp: [c, r - 1],
    ArrowDown: [c, r + 1],
    Home: [0, r],
    End: [cols - 1, r],
  };
  return to[e.key] ?? null;
}

/* A canvas of columns by rows. read(col, row) is the text for a cell; a click or Enter calls
 * choose(col, row); point(col, row) follows the cell pointed at (null, null: none);
 * columnOf(position) places the hover line. `el` is the map, `below` the line that describes a
 * cell. */
class CellMap {
  constructor({ label, read, choose, point, columnOf = (p) => p, idle = IDLE }) {
    Object.assign(this, { read, choose, point, columnOf, idle });
    this.cols = this.rows = 0;
    this.at = null; // [column, row] pointed at
    this.byKeys = false;
    this.overlay = null;
    this.build(label);
    this.listen();
    this.sizes = new ResizeObserver(() => this.show());
    this.sizes.observe(this.el);
  }

  build(label) {
    this.store = h("canvas"); // one pixel per cell
    this.canvas = h("canvas", "d2-plane-canvas", { "aria-hidden": "true" });
    this.cell = h("div", "d2-plane-cell", { hidden: true });
    this.hair = h("div", "d2-plane-hair", { hidden: true });
    this.line = h("div", "d2-plane-line", { hidden: true });
    const keys = `${label}. Arrow keys move, Enter chooses.`;
    this.el = h(
      "div",
      "d2-cells",
      { tabIndex: 0, role: "application", "aria-label": keys },
      this.canvas,
      this.line,
      this.hair,
      this.cell,
    );
    this.text = h("p", "d2-said-cell d2-quiet", { textContent: this.idle });
    this.spoken = h("p", "d2-sr", { "aria-live": "polite" });
    this.below = h("div", "", {}, this.text, this.spoken);
  }

  listen() {
    const on = (type, what) => this.el.addEventListener(type, what);
    on("pointermove", (e) => this.move(this.cellAt(e)));
    on("pointerdown", (e) => this.move(this.cellAt(e)));
    onMouseLeave(this.el, () => this.move(null));
    on("click", (e) => {
      if (this.cols && this.choose) this.choose(...this.cellAt(e));
    });
    on("blur", () => {
      if (this.byKeys) this.move(null);
    });
    on("keydown", (e) => this.key(e));
  }

  key(e) {
    const from = this.at ?? [Math.max(0, Math.floor(this.cols / 2)), 0],
      to = cellFrom(e, from, this.cols);
    if (to) this.move(this.at ? to : from, true);
    else if ((e.key === "Enter" || e.key === " ") && this.at && this.choose)
      this.choose(...this.at);
    else if (e.key === "Escape" && this.at) this.move(null);
    else return;
    e.preventDefault(); // the stage's own arrows move the clock
  }

  cellAt(e) {
    const box = this.canvas.getBoundingClientRect();
    return [
      Math.floor(((e.clientX - box.left) / box.width) * this.cols),
      Math.floor(((e.clientY - box.top) / box.height) * this.rows),
    ];
  }

  move(to, byKeys = false) {
    const { cols, rows, point } = this,
      changed = Boolean(this.at) || Boolean(to);
    this.at = to && cols && rows ? [clamp(to[0], 0, cols - 1), clamp(to[1], 0, rows - 1)] : null;
    this.byKeys = byKeys;
    if (changed && point) point(this.at && this.at[0], this.at && this.at[1]);
    this.describe();
  }

  describe() {
    if (this.at && (this.at[0] >= this.cols || this.at[1] >= this.rows)) this.at = null;
    const { at, text, spoken } = this,
      words = at ? this.read(at[0], at[1]) : this.idle;
    this.cell.hidden = !at;
    if (at) this.place(this.cell, at[0], at[1], 1, 1);
    if (text.textContent !== words) text.textContent = words;
    text.classList.toggle("d2-quiet", !at);
    if (at && this.byKeys && spoken.textContent !== words) spoken.textContent = words;
  }

  place(box, c, r, w, ht) {
    box.style.left = `${(100 * c) / this.cols}%`;
    box.style.top = `${(100 * r) / this.rows}%`;
    box.style.width = `max(2px, ${(100 * w) / this.cols}%)`;
    box.style.height = `max(2px, ${(100 * ht) / this.rows}%)`;
  }

  // paint(pixels) fills cols * rows 32-bit colours; over(ctx, width, height, ratio) draws on top.
  draw(cols, rows, paint, over) {
    Object.assign(this, { cols, rows, overlay: over });
    if (!cols || !rows) return;
    this.store.width = cols;
    this.store.height = rows;
    const image = new ImageData(cols, rows);
    paint(new Uint32Array(image.data.buffer));
    this.store.getContext("2d").putImageData(image, 0, 0);
    this.show();
    this.describe();
  }

  show() {
    const { canvas, el, cols, rows } = this;
    if (!cols || !el.clientWidth || !el.clientHeight) return;
    fitCanvas(canvas, el);
    const { width, height } = canvas,
      ctx = canvas.getContext("2d");
    ctx.clearRect(0, 0, width, height);
    drawPooled(canvas, this.store, { cols, rows }, width, height);
    if (this.overlay) this.overlay(ctx, width, height, pixelRatio());
  }

  // Marks the column of a position pointed at elsewhere, and the row of the current step.
  follow(p, row = null) {
    const { hair, line, cols, rows } = this,
      c = p === null ? null : this.columnOf(p);
    hair.hidden = c === null || c < 0 || c >= cols;
    if (!hair.hidden) this.place(hair, c, 0, 1, rows);
    line.hidden = row === null || row < 0 || row >= rows;
    if (!line.hidden) this.place(line, 0, row, cols, 1);
  }

  destroy() {
    this.sizes.disconnect();
  }
}

// A pattern of slanted lines: a kind of cell that does not rest on colour alone.
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

// "prompt | answer" over a map, in the proportions of its columns.
function promptBar() {
  const given = h("span", "", {}),
    made = h("span", "d2-ask-answer", {}),
    el = h("div", "d2-ask", { "aria-hidden": "true" }, given, made);
  el.show = (run) => {
    const { P, G } = run,
      [before, after] = partNames(run);
    [given.style.flexGrow, made.style.flexGrow] = [P, G];
    [given.textContent, made.textContent] = [`${before} · ${P}`, `${after} · ${G}`];
    given.hidden = !P;
  };
  return el;
}

export { CellMap, divide, hatching, promptBar };
