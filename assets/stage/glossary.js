/* The glossary: terms inside any sentence of the page, explained where they appear. */
import { h } from "./dom.js";
import { frame } from "./frame.js";

// ---- pure

// term -> text becomes one pattern, longest terms first, and the terms by their small letters.
function readGlossary(terms) {
  const known = new Map(
    Object.entries(terms || {}).map(([name, text]) => [name.toLowerCase(), text]),
  );
  const escaped = [...known.keys()]
    .sort((a, b) => b.length - a.length)
    .map((t) => t.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
  const pattern = escaped.length
    ? new RegExp(`(?<![\\p{L}\\p{N}_])(${escaped.join("|")})(s?)(?![\\p{L}\\p{N}_])`, "giu")
    : null;
  return { known, pattern };
}

// A term as the glossary has it, also for its plural; null where it has none.
function termIn({ known }, name) {
  const small = String(name).toLowerCase();
  return [small, small.replace(/s$/, ""), `${small}s`].find((n) => known.has(n)) ?? null;
}

// A sentence in parts: text, or { text, term } where a term occurs for the first time. Terms that
// share a text are one term with several names.
function termParts(glossary, sentence) {
  if (!glossary.pattern) return [sentence];
  const parts = [],
    seen = new Set();
  let from = 0;
  for (const found of sentence.matchAll(glossary.pattern)) {
    const term = found[1].toLowerCase(),
      meaning = glossary.known.get(term);
    if (seen.has(meaning)) continue;
    seen.add(meaning);
    if (found.index > from) parts.push(sentence.slice(from, found.index));
    parts.push({ text: found[0], term });
    from = found.index + found[0].length;
  }
  if (from < sentence.length) parts.push(sentence.slice(from));
  return parts;
}

// ---- the page: one light box for all terms, above everything, lessons included

let glossary = readGlossary({}),
  box = null,
  at = null,
  timer = 0;

function setGlossary(terms) {
  glossary = readGlossary(terms);
}

function place() {
  const a = at.getBoundingClientRect(),
    w = box.offsetWidth,
    ht = box.offsetHeight;
  const left = Math.min(Math.max(8, a.left + a.width / 2 - w / 2), Math.max(8, innerWidth - w - 8));
  const { top, bottom } = frame.seen,
    below = a.bottom + 6 + ht < bottom || a.top - 6 - ht < top;
  box.style.left = `${left}px`;
  box.style.top = `${below ? a.bottom + 6 : a.top - 6 - ht}px`;
}

function show(el, term) {
  clearTimeout(timer);
  if (!box) {
    box = h("div", "d2-term-box", {
      id: "d2-term-box",
      role: "tooltip",
      popover: "manual",
      hidden: true,
    });
    box.addEventListener("pointerenter", () => clearTimeout(timer));
    box.addEventListener("pointerleave", leave);
    document.addEventListener(
      "keydown",
      (e) => {
        if (e.key === "Escape" && at) {
          e.stopPropagation();
          hide();
        }
      },
      true,
    );
    document.addEventListener(
      "pointerdown",
      (e) => {
        if (at && !at.contains(e.target) && !box.contains(e.target)) hide();
      },
      true,
    );
    document.addEventListener(
      "scroll",
      () => {
        if (at) place();
      },
      true,
    );
  }
  const home = el.closest(".d2-stage") || document.body; // its colours
  if (box.parentNode !== home) home.append(box);
  at?.removeAttribute("aria-describedby");
  at = el;
  el.setAttribute("aria-describedby", box.id);
  box.replaceChildren(
    h("b", "", { textContent: term }),
    h("span", "", { textContent: ` ${glossary.known.get(term)}` }),
  );
  box.hidden = false;
  if (box.showPopover && !box.matches(":popover-open")) box.showPopover();
  place();
}

function hide() {
  clearTimeout(timer);
  if (box?.hidePopover && box.matches(":popover-open")) box.hidePopover();
  if (box) box.hidden = true;
  at?.removeAttribute("aria-describedby");
  at = null;
}

function leave() {
  clearTimeout(timer);
  timer = setTimeout(hide, 180);
} // time to reach the box

// A term that is explained on hover, focus and touch; plain words if it is unknown.
function explainTerm(name, words) {
  const term = termIn(glossary, name);
  if (term === null) return document.createTextNode(words ?? name);
  const el = h("span", "d2-term", { tabIndex: 0, role: "button", textContent: words ?? name });
  let byTouch = false;
  el.addEventListener("pointerdown", (e) => {
    byTouch = e.pointerType === "touch";
  });
  el.addEventListener("pointerenter", (e) => {
    if (e.pointerType !== "touch") show(el, term);
  });
  el.addEventListener("pointerleave", (e) => {
    if (e.pointerType !== "touch") leave();
  });
  el.addEventListener("focus", () => {
    if (!byTouch) show(el, term);
  });
  el.addEventListener("blur", hide);
  el.addEventListener("click", (e) => {
    e.stopPropagation();
    if (at === el && byTouch) hide();
    else show(el, term);
  });
  el.addEventListener("keydown", (e) => {
    if (e.key !== "Enter" && e.key !== " ") return;
    e.preventDefault();
    e.stopPropagation();
    if (at === el) hide();
    else show(el, term);
  });
  return el;
}

// A sentence as nodes, the first occurrence of each term explained.
const worded = (sentence) =>
  termParts(glossary, String(sentence)).map((part) =>
    typeof part === "string" ? document.createTextNode(part) : explainTerm(part.term, part.text),
  );

export { readGlossary, termIn, termParts, setGlossary, explainTerm, worded };
