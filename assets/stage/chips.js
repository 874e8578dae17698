/* The tokens of one run as chips: a list to walk with the arrow keys, and to point at. */
import { colourAt, COMPUTED, css } from "./colours.js";
import { h, onMouseLeave } from "./dom.js";
import { outsideGrid } from "./grid.js";
import { fixed } from "./numbers.js";
import { reasonOf, REASONS } from "./reasons.js";
import { chipData, guessAt } from "./run.js";
import { placeOf, quoted, visible } from "./sentences.js";

const chipList = (cls, label) =>
  h("div", `d2-chips${cls}`, {
    role: "listbox",
    "aria-label": label,
    "aria-orientation": "horizontal",
  });

function makeChips(run) {
  const make = (p) =>
    h("span", "d2-chip", {
      tabIndex: p === 0 || p === run.P ? 0 : -1,
      role: "option",
      "aria-selected": "false",
      "data-p": p,
    });
  return Array.from({ length: run.T }, (_, p) => Object.assign(make(p), { was: "" }));
}

// Puts the chips of a run into its two lists, without those that a grid shows in their place; returns
// those that are in a list. A text with gaps is one text, in the second list.
function layChips(run, chips, prompt, answer) {
  const asked = chips.slice(0, run.P),
    rest = outsideGrid(run).map((p) => chips[p]);
  prompt.replaceChildren(...(run.gapped ? [] : asked));
  answer.replaceChildren(...(run.gapped ? asked : []), ...rest);
  prompt.hidden = run.gapped;
  answer.hidden = !rest.length;
  return [...asked, ...rest];
}

// The colour under a token: its order, its confidence, whether or why this step computes it.
function chipFill(p, write, { run, step, mode, dark }) {
  if (mode === "computed") return run.records[step]?.y[p] ? COMPUTED : "";
  if (mode === "reason") {
    const reason = run.records[step] ? reasonOf(run.records[step].y[p]) : null;
    return reason ? REASONS.find((r) => r.key === reason).colour : "";
  }
  if (!write || p < run.P) return "";
  if (mode === "confidence" && write.conf === null) return ""; // written by hand
  const share = mode === "order" ? write.s / Math.max(1, run.expected - 1) : write.conf;
  return css(colourAt(mode, share, dark));
}

// look: {run, step, mode: what the colour means, dark, selected: the pinned position}
function paintChip(el, p, look) {
  const { run, step, selected } = look,
    d = chipData(run, p, step),
    fill = chipFill(p, d.write, look),
    guess = d.masked && look.ghosts !== false ? guessAt(run, p, step) : null,
    picked = p === selected,
    is = `${d.state}|${d.eos}|${fill}|${picked}|${guess ? `?${guess.text}|${guess.conf}` : d.text}`;
  if (el.was === is) return; // most chips stay as they are from step to step
  el.was = is;
  const marks = {
      masked: d.masked,
      guessed: guess,
      ending: guess && run.eos.has(guess.text),
      eos: d.eos,
      filled: fill,
      picked,
    },
    names = [d.state, ...Object.keys(marks).filter((name) => marks[name])];
  el.className = `d2-chip ${names.map((name) => `d2-${name}`).join(" ")}`;
  el.textContent = d.eos ? "end" : d.masked ? guessText(run, guess) : visible(d.text);
  if (d.masked) el.setAttribute("aria-label", maskedLabel(run, p, guess));
  else el.removeAttribute("aria-label");
  el.style.setProperty("--d2-sure", String(guess?.conf ?? 0));
  el.setAttribute("aria-selected", String(picked));
  el.style.setProperty("--d2-fill", fill || "transparent");
  breakAfter(el, d.text.endsWith("\n"));
}

// A mask shows what the model would write there now.
function guessText(run, guess) {
  if (!guess) return "";
  return run.eos.has(guess.text) ? "end" : visible(guess.text);
}

function maskedLabel(run, p, guess) {
  const place = `${placeOf(run, p)}, masked`;
  if (!guess) return place;
  const sure = guess.conf === null ? "" : `, confidence ${fixed(guess.conf, 2)}`;
  return `${place}; the model's guess is ${quoted(guess.text)}${sure}`;
}

function breakAfter(el, wanted) {
  const br = el.nextSibling?.tagName === "BR" ? el.nextSibling : null;
  if (wanted && !br) el.after(h("br"));
  if (!wanted && br) br.remove();
}

// The chip that lies nearest to x in the next line above or below `here`; undefined: no such line.
function inNextLine(all, here, up) {
  const x = here.offsetLeft,
    beyond = all.filter((el) =>
      up ? el.offsetTop < here.offsetTop - 8 : el.offsetTop > here.offsetTop + 8,
    ),
    one = up ? beyond.at(-1) : beyond[0],
    line = beyond.filter((el) => Math.abs(el.offsetTop - one.offsetTop) < 8),
    far = (el) => Math.abs(el.offsetLeft - x);
  return line.reduce((best, el) => (!best || far(el) < far(best) ? el : best), undefined);
}

// Arrow keys walk the chips; up and down go to the nearest chip of the line above or below.
function walkChips(e, all) {
  const here = e.target.closest("[data-p]"),
    i = all.indexOf(here);
  let to;
  if (e.key === "ArrowLeft") to = all[i - 1];
  else if (e.key === "ArrowRight") to = all[i + 1];
  else if (e.key === "ArrowUp" || e.key === "ArrowDown")
    to = inNextLine(all, here, e.key === "ArrowUp");
  else return;
  e.preventDefault();
  if (!to) return;
  here.tabIndex = -1;
  to.tabIndex = 0;
  to.focus();
}

// Pointing at tokens, in a list of [data-p] elements of lane(); Enter or a click pins one. walk(e,
// all): what the arrow keys do.
function chipEvents(list, page, lane, walk = walkChips) {
  const at = (e) => e.target.closest("[data-p]");
  const point = (e) => {
    const chip = at(e);
    if (chip) page.setHover({ p: Number(chip.dataset.p), s: null, lane: lane(), chip });
  };
  const pick = (e) => {
    const p = at(e) && Number(at(e).dataset.p);
    if (p !== null) page.select(page.selected === p ? null : p);
  };
  list.addEventListener("pointerover", point);
  list.addEventListener("focusin", point);
  onMouseLeave(list, () => page.setHover(null));
  list.addEventListener("focusout", () => {
    if (page.hover?.chip) page.setHover(null); // not a mark that a map has just set
  });
  list.addEventListener("click", pick);
  list.addEventListener("keydown", (e) => {
    if (e.key === "Enter" || e.key === " ") {
      e.preventDefault();
      pick(e);
    } else if (!page.teaching) walk(e, [...list.querySelectorAll("[data-p]")]);
  });
}

export { chipList, makeChips, layChips, chipFill, paintChip, chipEvents, walkChips };
