/* The text that a step of the Attention tab read, as a row of tokens: a click on one draws lines to
 * the tokens that it reads most, the thicker the more. */
import { chipList, walkChips } from "./chips.js";
import { h, onMouseLeave } from "./dom.js";
import { fixed } from "./numbers.js";
import { shareOf } from "./pixels.js";
import { textBefore } from "./run.js";
import { placeOf, quoted, startingPlace, visible } from "./sentences.js";
import { setText, svg } from "./widgets.js";

const MOST = 8; // lines of one token
const THIN = 1,
  THICK = 6; // px
const CHOOSE =
  "Click a token, here or in any tab: lines lead to the tokens that it reads most, the thicker " +
  "the more.";

// ---- pure

const cellOf = ({ edges, n }, p) => {
  for (let i = 0; i < n; i++) if (p >= edges[i] && p < edges[i + 1]) return i;
  return -1;
};

// What position p reads most, by the map that was loaded: [{p, to, share}] with the positions
// [p, to) of each cell; share: of the largest of them, above 0.
function strongestLinks(got, p, most = MOST) {
  const q = cellOf(got, p),
    { n, edges, bytes } = got;
  if (q < 0) return [];
  const row = Array.from({ length: n }, (_, k) => ({
      p: edges[k],
      to: edges[k + 1],
      part: shareOf(bytes[q * n + k]),
    })),
    best = row.filter((x) => x.part > 0).sort((a, b) => b.part - a.part || a.p - b.p);
  return best.slice(0, most).map(({ part, ...at }) => ({
    ...at,
    share: part / best[0].part,
    // of all that the position reads, where the map says how much its largest cell is
    weight: got.largest === undefined ? null : (part * got.largest) / (edges[q + 1] - edges[q]),
  }));
}

// The token at a position as a label: what the step found there.
function labelOf(run, p, s) {
  const text = textBefore(run, p, s) ?? (p < run.P ? run.prompt[p] : null);
  return text == null ? "▢" : run.eos.has(text) ? "end" : visible(text);
}

// "Answer position 5 reads most from ' has' (0.12), ' apples' (0.08), ..."
function linkWords(run, got, p, links) {
  const nameAt = (q) => {
    const label = labelOf(run, q, got.at);
    return label === "▢"
      ? `the mask at ${placeOf(run, q)}`
      : `${quoted(label)} (${placeOf(run, q)})`;
  };
  const name = ({ p: from, to, weight }) =>
    (to - from > 1 ? `positions ${from + 1} to ${to}` : nameAt(from)) +
    (weight === null ? "" : `: ${fixed(weight, 3)}`);
  const place = startingPlace(run, p);
  return links.length
    ? `${place} reads most from ${links.slice(0, 3).map(name).join("; ")}.`
    : `${place} reads nothing on this map.`;
}

// ---- the page

class AttentionLinks {
  constructor(page) {
    this.page = page;
    this.chips = [];
    this.filledFor = this.linkedFor = "";
    this.list = chipList(" d2-linked", "The text that the step read, by position");
    this.lines = svg("svg", { class: "d2-links", "aria-hidden": "true" });
    this.words = h("p", "d2-more", { "aria-live": "polite" });
    this.scroller = h(
      "div",
      "d2-links-scroll",
      {},
      h("div", "", {}, this.list, this.lines), // a long text scrolls with its lines
    );
    this.el = h("div", "d2-links-box", {}, this.words, this.scroller);
    this.listen();
    this.sizes = new ResizeObserver(() => {
      this.linkedFor = "";
      page.schedule();
    });
    this.sizes.observe(this.list);
  }

  listen() {
    const at = (e) => e.target.closest("[data-p]"),
      choose = (e) => at(e) && this.page.select(Number(at(e).dataset.p));
    this.list.addEventListener("click", choose);
    this.list.addEventListener("keydown", (e) => {
      if (e.key === "Enter" || e.key === " ") {
        e.preventDefault();
        choose(e);
      } else walkChips(e, this.chips);
    });
    this.list.addEventListener("pointerover", (e) => {
      const chip = at(e);
      if (chip)
        this.page.setHover({ p: Number(chip.dataset.p), s: this.at, lane: this.page.lane, chip });
    });
    onMouseLeave(this.list, () => this.page.setHover(null));
  }

  // got: the current map
  paint(run, got) {
    this.at = got.at;
    this.fill(run, got);
    const { selected } = this.page,
      key = `${this.filledFor}|${got.key}|${selected}|${this.list.clientWidth}`;
    if (key === this.linkedFor) return;
    this.linkedFor = key;
    const p = selected !== null && selected < run.T ? selected : null,
      links = p === null ? [] : strongestLinks(got, p);
    this.chips.forEach((chip, q) => {
      chip.classList.toggle("d2-picked", q === p);
      chip.setAttribute("aria-selected", String(q === p));
    });
    this.bringIntoView(p);
    setText(this.words, p === null ? CHOOSE : linkWords(run, got, p, links));
    this.draw(p, links);
  }

  // The chosen token to the middle of a text that scrolls.
  bringIntoView(p) {
    const { scroller, chips } = this;
    if (p === null || scroller.contains(document.activeElement)) return;
    scroller.scrollTop = chips[p].offsetTop - scroller.clientHeight / 2;
  }

  fill(run, got) {
    const key = `${run.key}|${got.at}`;
    if (this.filledFor === key) return;
    this.filledFor = key;
    const make = (_, p) => {
      const label = labelOf(run, p, got.at),
        masked = label === "▢",
        cls = `d2-chip ${masked ? "d2-masked" : p < run.P ? "d2-given" : "d2-settled"}`;
      return h("span", cls, {
        tabIndex: p ? -1 : 0,
        role: "option",
        "aria-selected": "false",
        "aria-label": `${placeOf(run, p)}, ${masked ? "masked" : label}`,
        "data-p": p,
        textContent: masked ? "" : label,
      });
    };
    this.chips = Array.from({ length: run.T }, make);
    this.list.replaceChildren(...this.chips);
  }

  draw(p, links) {
    const { list, lines, chips } = this,
      size = { width: list.clientWidth, height: list.clientHeight };
    lines.setAttribute("viewBox", `0 0 ${size.width} ${size.height}`);
    const paths = links.map(({ p: from, to, share }) => {
      const d = arc(chips[p], chips[Math.floor((from + to - 1) / 2)]),
        width = THIN + (THICK - THIN) * share;
      return svg("path", { d, "stroke-width": width.toFixed(1), class: "d2-link" });
    });
    lines.replaceChildren(...paths);
  }

  destroy() {
    this.sizes.disconnect();
  }
}

// A bent line from the top of one token to the top of another; a ring for the token itself.
function arc(from, to) {
  const [x0, y0] = [from.offsetLeft + from.offsetWidth / 2, from.offsetTop + 2],
    [x1, y1] = [to.offsetLeft + to.offsetWidth / 2, to.offsetTop + 2];
  if (from === to) return `M${x0 - 3} ${y0} a 5 5 0 1 1 6 0`;
  const lift = 10 + 0.12 * Math.hypot(x1 - x0, y1 - y0);
  return `M${x0} ${y0} Q${(x0 + x1) / 2} ${Math.min(y0, y1) - lift} ${x1} ${y1}`;
}

export { AttentionLinks, labelOf, linkWords, strongestLinks };
