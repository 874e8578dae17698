/* What the chosen cell of a grid reads, laid over the grid: a row of the attention rollout, by an
 * exact pass on the canvas of the current step. Where the server has none, nothing is shown. */
import { colourAt, css } from "./colours.js";
import { QUESTIONS } from "./contract.js";
import { cellPlace, isCell, readInLines, readShares } from "./grid.js";
import { decodePlane, percent } from "./numbers.js";
import { shareOf } from "./pixels.js";
import { wantsMap } from "./sentences.js";
import { asker } from "./widgets.js";

const WAIT = 250; // ms that a step must be shown before its map is asked for
const DEEPEST = 0.55; // of the ramp: text stays readable on it

const linesName = ({ box }) => (box[0] ? "row, column and box" : "row and column");

// "Row 3, column 5: 71 % of what it reads on the board is in its row, column and box ..."
function heatWords(grid, i, shares) {
  const { lines, even } = readInLines(grid, i, shares),
    place = cellPlace(grid, i).replace(/^./, (c) => c.toUpperCase());
  return (
    `${place}: ${percent(lines)} of what it reads on the board is in its ${linesName(grid)}; ` +
    `read evenly, it would be ${percent(even)}. The stronger the colour, the more it reads there.`
  );
}

class GridHeat {
  constructor(page) {
    this.page = page;
    this.ask = asker(page);
    this.askedFor = "";
    this.got = null; // {key, n, bytes}
    this.timer = 0;
  }

  // {colours: of each cell, says}, or null where there is nothing to show.
  paint(run, step, dark) {
    const { selected, offline } = this.page,
      key = `${run.key}|${step}`;
    clearTimeout(this.timer);
    if (selected === null || !isCell(run.grid, selected) || offline || step < 0) return null;
    if (this.got?.key !== key) {
      this.loadSoon(run, step, key);
      return null;
    }
    if (this.got.n !== run.T) return null; // cells are averaged in it
    const { n, bytes } = this.got,
      i = selected - run.grid.at,
      shares = readShares(run.grid, i, (q, k) => shareOf(bytes[q * n + k]));
    if (!shares) return null;
    const most = Math.max(...shares),
      shade = (share) => css(colourAt("rollout", (DEEPEST * share) / most, dark));
    return { colours: shares.map(shade), says: heatWords(run.grid, i, shares) };
  }

  // A pass costs the server: none is asked for while steps go by.
  loadSoon(run, step, key) {
    const { live, transport } = this.page;
    if (this.askedFor === key || transport.playing || !wantsMap(run, live)) return;
    this.timer = setTimeout(() => this.load(run, step, key), WAIT);
  }

  load(run, step, key) {
    this.askedFor = key;
    this.ask(QUESTIONS.attention, { run: run.key, step, layer: "rollout" }, (got) => {
      this.got = got ? { key, n: got.n, bytes: decodePlane(got.map) } : null;
      this.page.schedule();
    });
  }

  destroy() {
    clearTimeout(this.timer);
  }
}

export { GridHeat, heatWords };
