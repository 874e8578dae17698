/* A grid of cells in place of a line of tokens: Sudoku and its like. Arrow keys walk it; pointing at
 * a cell and choosing it are as with a token. */
import { chipEvents, chipFill } from "./chips.js";
import { h } from "./dom.js";
import {
  cellName,
  cellPlace,
  cellsOf,
  cellCount,
  drawnCell,
  hasBoxes,
  isCell,
  wrongCells,
} from "./grid.js";
import { GridHeat } from "./grid-heat.js";
import { fixed } from "./numbers.js";
import { tokenName } from "./sentences.js";
import { setText } from "./widgets.js";

// "row 3, column 5: 7, written in step 12, confidence 0.93"
function cellWords(run, cell, wrong) {
  const { i, given, write, text, guess } = cell,
    place = cellPlace(run.grid, i),
    named = (it) => cellName(run.grid, tokenName(run, it)),
    sure = (conf) => (conf === null || conf === undefined ? "" : `, confidence ${fixed(conf, 2)}`);
  const says = [];
  if (given !== null) says.push(`${named(given)}, given`);
  if (write && (given === null || text !== given)) says.push(named(text));
  if (write) says.push(`written in step ${write.s + 1}${sure(write.conf)}`);
  if (!write && given === null) says.push("blank");
  if (guess) says.push(`the model's guess is ${named(guess.text.trim())}${sure(guess.conf)}`);
  if (wrong) says.push(`wrong: ${wrong}`);
  return `${place}: ${says.join(", ")}`;
}

// The cell that an arrow key leads to from cell i; null at the edge, undefined for another key.
function nextCell({ rows, columns }, i, key) {
  const row = Math.floor(i / columns),
    column = i % columns,
    moves = {
      ArrowLeft: [0, -1],
      ArrowRight: [0, 1],
      ArrowUp: [-1, 0],
      ArrowDown: [1, 0],
    };
  if (!Object.hasOwn(moves, key)) return undefined;
  const [down, right] = moves[key],
    to = [row + down, column + right];
  if (to[0] < 0 || to[0] >= rows || to[1] < 0 || to[1] >= columns) return null;
  return to[0] * columns + to[1];
}

class GridView {
  // laneOf: the number of the lane that it shows. heat: whether a chosen cell shows what it reads
  constructor(page, laneOf, { heat = true } = {}) {
    this.page = page;
    this.run = null;
    this.cells = [];
    this.marked = null;
    this.board = h("div", "d2-grid", { role: "grid" });
    this.says = h("p", "d2-more d2-grid-says", { hidden: true, "aria-live": "polite" });
    this.el = h("div", "d2-grid-box", { hidden: true }, this.board, this.says);
    this.heat = heat ? new GridHeat(page) : null;
    chipEvents(this.board, page, laneOf, (e) => this.walk(e));
  }

  // Another run in this place; a run whose answer is no grid hides it.
  restart(run) {
    this.run = run;
    this.cells = [];
    this.marked = null;
    this.el.hidden = !run.grid;
    if (!run.grid) return;
    const { rows, columns } = run.grid;
    this.cells = Array.from({ length: cellCount(run.grid) }, (_, i) => this.makeCell(run.grid, i));
    const lines = Array.from({ length: rows }, (_, r) => {
      const cells = this.cells.slice(r * columns, (r + 1) * columns);
      return h("div", "d2-grid-row", { role: "row" }, ...cells);
    });
    this.board.replaceChildren(...lines);
    this.board.ariaLabel = `Board of the answer, ${rows} rows and ${columns} columns`;
    this.board.style.setProperty("--d2-columns", String(columns));
    this.board.classList.toggle("d2-grid-small", columns < 7);
  }

  makeCell(grid, i) {
    const { columns, box } = grid,
      row = Math.floor(i / columns),
      column = i % columns,
      edges = [
        hasBoxes(grid) && row && row % box[0] === 0 ? " d2-cell-top" : "",
        hasBoxes(grid) && column && column % box[1] === 0 ? " d2-cell-left" : "",
        column === 0 ? " d2-cell-first" : "",
        row === 0 ? " d2-cell-upper" : "",
      ].join("");
    const el = h("div", "", {
      role: "gridcell",
      tabIndex: i ? -1 : 0,
      "aria-selected": "false",
      "data-p": grid.at + i,
    });
    return Object.assign(el, { was: "", edges });
  }

  // look: as of `paintChip`; differs(p): whether another lane has another token there
  paint(look) {
    const { run } = this;
    if (!run?.grid) return;
    const cells = cellsOf(run, look.step),
      wrong = wrongCells(run.grid, cells),
      heat = this.heat?.paint(run, look.step, look.dark) ?? null;
    cells.forEach((cell) => this.paintCell(cell, wrong.get(cell.i), heat, look));
    setText(this.says, heat?.says ?? "");
    this.says.hidden = !heat;
    this.board.classList.toggle("d2-grid-heated", Boolean(heat));
  }

  paintCell(cell, wrong, heat, look) {
    const { i, p, given, write, state, guess } = cell,
      el = this.cells[i],
      ghost = look.ghosts === false ? null : guess,
      plain = given !== null && !["computed", "reason"].includes(look.mode),
      fill = heat ? heat.colours[i] : plain ? "" : chipFill(p, write, look),
      picked = look.selected === p,
      differs = Boolean(look.differs?.(p)),
      words = cellWords(this.run, ghost ? cell : { ...cell, guess: null }, wrong),
      is = `${words}|${state}|${fill}|${picked}|${differs}`;
    if (el.was === is) return; // most cells stay as they are from step to step
    el.was = is;
    const text = cell.text || (ghost ? ghost.text.trim() : ""),
      marks = {
        given: given !== null,
        masked: !write && given === null,
        guessed: !cell.text && ghost,
        now: state === "now",
        again: state === "again",
        filled: fill,
        eos: this.run.eos.has(text),
        wrong,
        picked,
        differs,
      },
      names = Object.keys(marks).filter((name) => marks[name]);
    const drawn = drawnCell(this.run.grid, tokenName(this.run, text || " "));
    if (drawn.look) names.push(drawn.look);
    el.className = `d2-cell${el.edges}${names.map((name) => ` d2-cell-${name}`).join("")}`;
    el.textContent = drawn.text;
    el.ariaLabel = words;
    el.ariaSelected = String(picked);
    el.style.setProperty("--d2-fill", fill || "transparent");
    el.style.setProperty("--d2-sure", String(ghost?.conf ?? 0));
  }

  // p: the position pointed at in any view, or null
  mark(p) {
    const i = p !== null && isCell(this.run?.grid, p) ? p - this.run.grid.at : null;
    if (this.marked === i) return;
    this.cells[this.marked]?.classList.remove("d2-cell-marked");
    this.cells[i]?.classList.add("d2-cell-marked");
    this.marked = i;
  }

  walk(e) {
    const here = e.target.closest("[data-p]"),
      to = nextCell(this.run.grid, this.cells.indexOf(here), e.key);
    if (to === undefined) return;
    e.preventDefault(); // at an edge too: the arrow keys are not to step the run from a cell
    if (to === null) return;
    here.tabIndex = -1;
    this.cells[to].tabIndex = 0;
    this.cells[to].focus();
  }

  destroy() {
    this.heat?.destroy();
  }
}

export { GridView, cellWords, nextCell };
