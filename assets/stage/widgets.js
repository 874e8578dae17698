/* Small things that the views share: terms that explain themselves, legends, lists to pick from. */
import { PAPER } from "./colours.js";
import { h } from "./dom.js";
import { worded } from "./glossary.js";
import { clamp, fixed } from "./numbers.js";

const paragraph = (cls, text) => h("p", cls, {}, ...worded(text));

// The first sentence of a text, and the rest of it.
function firstSentence(text) {
  const [, first, rest] = text.match(/^(.*?[.?!])\s+(?=[\p{Lu}\p{N}(])(.*)$/su) ?? [null, text, ""];
  return [first, rest];
}

// A caption of one sentence; the others open behind a button, and stay open when the text changes.
function caption(text = "", props = {}) {
  const first = h("span"),
    rest = h("span", "", { hidden: true }),
    button = h("button", "d2-rest", { type: "button" }),
    el = h("p", "d2-more d2-caption", props, first, " ", rest, " ", button);
  const open = (wanted) => {
    rest.hidden = !wanted;
    button.textContent = wanted ? "less" : "more";
    button.setAttribute("aria-expanded", String(wanted));
  };
  el.set = (now) => {
    if (el.text === now) return;
    el.text = now;
    [first, rest].forEach((part, i) => part.replaceChildren(...worded(firstSentence(now)[i])));
    button.hidden = !firstSentence(now)[1];
  };
  button.addEventListener("click", () => open(rest.hidden));
  open(false);
  el.set(text);
  return el;
}

function svg(tag, props, ...kids) {
  const el = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [k, v] of Object.entries(props || {})) el.setAttribute(k, v);
  el.append(...kids);
  return el;
}

// A term whose definition pops up by mouse, keyboard and touch.
const term = (page, text, why) =>
  page.explained(h("button", "d2-defined", { type: "button", textContent: text }), why);

// look: a colour, or a class of the dot for anything but a plain colour.
function legendEntry(page, look, label, why) {
  const classed = look.startsWith("d2-"),
    dot = h("i", classed ? `d2-dot ${look}` : "d2-dot"),
    text = h("span", "", { textContent: label });
  if (!classed) dot.style.background = look;
  return page.explained(h("button", "d2-swatch", { type: "button" }, dot, text), why);
}

// Makes the entries of legends: a dot and a label that explains itself. Each is made once, however
// often its legend changes.
function marker(page) {
  const made = new Map();
  return (look, label, why) => {
    const key = `${look}|${label}|${why}`;
    if (!made.has(key)) made.set(key, legendEntry(page, look, label, why));
    return made.get(key);
  };
}

// Fills a legend again only when its key has changed: the focus may be in it.
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

// The model's likeliest tokens as rows of a grid: text, bar, probability.
function candidateRows(bars) {
  return bars.flatMap(({ text, share }) => {
    const bar = h("i");
    bar.style.width = `${100 * clamp(share ?? 0, 0, 1)}%`;
    return [
      h("span", "d2-top-token", { textContent: text }),
      h("span", "d2-top-bar", {}, bar),
      h("span", "d2-top-p", { textContent: share === null ? "written" : fixed(share, 2) }),
    ];
  });
}

// A view asks the server one question at a time: the answer to an older question is dropped.
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

// Sets a text only when it has changed, so that a live region does not read it out again.
function setText(el, text) {
  if (el.textContent !== text) el.textContent = text;
}

const paper = (dark) => PAPER[dark ? "dark" : "light"];

export {
  paragraph,
  firstSentence,
  caption,
  svg,
  term,
  marker,
  fill,
  pick,
  candidateRows,
  asker,
  setText,
  paper,
};
