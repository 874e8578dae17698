/* The tokens of one run as chips: a list to walk with the arrow keys, and to point at. */
import { colourAt, css } from "./colours.js";
import { h } from "./dom.js";
import { reasonOf, REASONS } from "./reasons.js";
import { chipData } from "./run.js";
import { placeOf, visible } from "./sentences.js";

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

// The colour under a token: its order, its confidence, or why it is recomputed in this step.
function chipFill(run, p, step, d, mode, dark) {
  const reason = mode === "reason" && run.records[step] ? reasonOf(run.records[step].y[p]) : null;
  if (mode === "reason") return reason ? REASONS.find((r) => r.key === reason).colour : "";
  if (!d.write || p < run.P) return "";
  if (mode === "confidence" && d.write.conf === null) return ""; // written by hand
  return css(
    colourAt(
      mode,
      mode === "order" ? d.write.s / Math.max(1, run.expected - 1) : d.write.conf,
      dark,
    ),
  );
}

function paintChip(el, run, p, step, mode, dark, picked) {
  const d = chipData(run, p, step),
    fill = chipFill(run, p, step, d, mode, dark),
    is = `${d.state}|${d.eos}|${fill}|${picked}|${d.text}`;
  if (el.was === is) return; // most chips stay as they are from step to step
  el.was = is;
  const marks = { masked: d.masked, eos: d.eos, filled: fill, picked },
    names = [d.state, ...Object.keys(marks).filter((name) => marks[name])];
  el.className = `d2-chip ${names.map((name) => `d2-${name}`).join(" ")}`;
  el.textContent = d.eos ? "end" : d.masked ? "" : visible(d.text);
  if (d.masked) el.setAttribute("aria-label", `${placeOf(run, p)}, masked`);
  else el.removeAttribute("aria-label");
  el.setAttribute("aria-selected", String(picked));
  el.style.setProperty("--d2-fill", fill || "transparent");
  const br = el.nextSibling && el.nextSibling.tagName === "BR" ? el.nextSibling : null,
    wants = d.text.endsWith("\n");
  if (wants && !br) el.after(h("br"));
  if (!wants && br) br.remove();
}

// Arrow keys walk the chips; up and down go to the nearest chip of the line above or below.
function chipKeys(e, all) {
  const here = e.target.closest("[data-p]"),
    i = all.indexOf(here),
    x = here ? here.offsetLeft : 0;
  const nearest = (line) =>
    line.reduce(
      (best, el) =>
        !best || Math.abs(el.offsetLeft - x) < Math.abs(best.offsetLeft - x) ? el : best,
      null,
    );
  let to;
  if (e.key === "ArrowLeft") to = all[i - 1];
  else if (e.key === "ArrowRight") to = all[i + 1];
  else if (e.key === "ArrowUp" || e.key === "ArrowDown") {
    const beyond = all.filter((el) =>
      e.key === "ArrowUp" ? el.offsetTop < here.offsetTop - 8 : el.offsetTop > here.offsetTop + 8,
    );
    const line = e.key === "ArrowUp" ? beyond.at(-1) : beyond[0];
    to = line && nearest(beyond.filter((el) => Math.abs(el.offsetTop - line.offsetTop) < 8));
  } else return;
  e.preventDefault();
  if (to) {
    here.tabIndex = -1;
    to.tabIndex = 0;
    to.focus();
  }
}

// Pointing at tokens, in a list of [data-p] elements of lane(); Enter or a click pins one.
function chipEvents(list, page, lane) {
  const at = (e) => e.target.closest("[data-p]");
  const point = (e) => {
    const el = at(e);
    if (el) page.setHover({ p: Number(el.dataset.p), s: null, lane: lane(), chip: el });
  };
  const pick = (e) => {
    const el = at(e);
    if (el) page.select(page.selected === Number(el.dataset.p) ? null : Number(el.dataset.p));
  };
  list.addEventListener("pointerover", point);
  list.addEventListener("focusin", point);
  list.addEventListener("pointerleave", (e) => {
    if (e.pointerType !== "touch") page.setHover(null);
  });
  list.addEventListener("focusout", () => {
    if (page.hover?.chip) page.setHover(null);
  }); // not a mark that a map has just set
  list.addEventListener("click", pick);
  list.addEventListener("keydown", (e) => {
    if (e.key === "Enter" || e.key === " ") {
      e.preventDefault();
      pick(e);
    } else chipKeys(e, [...list.querySelectorAll("[data-p]")]);
  });
}

export { chipList, makeChips, paintChip, chipEvents };
