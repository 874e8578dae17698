/* Small helpers of the page. */
import { colourAt, css } from "./colours.js";
import { DATA_TAG } from "./contract.js";

function h(tag, cls, props, ...kids) {
  const el = document.createElement(tag);
  if (cls) el.className = cls;
  for (const [k, v] of Object.entries(props || {})) k in el ? (el[k] = v) : el.setAttribute(k, v);
  el.append(...kids);
  return el;
}

const ICONS = {
  play: "M7 4.5v15l12-7.5z",
  pause: "M6.5 5h4v14h-4zM13.5 5h4v14h-4z",
  stop: "M6 6h12v12H6z",
  back: "M15.5 5.5v13L8 12zM6 5.5h1.8v13H6z",
  next: "M8.5 5.5v13L16 12zM16.2 5.5H18v13h-1.8z",
};

function iconButton(icon, label) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  svg.append(path);
  const button = h("button", "d2-icon", { type: "button" }, svg);
  button.show = (name, text) => {
    path.setAttribute("d", ICONS[name]);
    button.setAttribute("aria-label", text);
    button.title = text;
  };
  button.show(icon, label);
  return button;
}

// The page's data for the stage, as JSON in a tag that nothing executes.
function pageData() {
  const tag = document.getElementById(DATA_TAG);
  return tag ? JSON.parse(tag.textContent) : {};
}

// A row of buttons of which one is pressed.
function choice(label, options, picked, onPick) {
  const group = h("div", "d2-choice", { role: "group", "aria-label": label });
  const mark = (value) => {
    for (const b of group.children) b.setAttribute("aria-pressed", String(b.value === value));
  };
  const pick = (value) => {
    mark(value);
    onPick(value);
  };
  for (const [value, textContent] of options) {
    const onclick = () => pick(value);
    group.append(h("button", "", { type: "button", value, textContent, onclick }));
  }
  mark(picked);
  return Object.assign(group, { mark });
}

function swatch(colour, label, count) {
  const dot = h("i", "d2-dot");
  dot.style.background = colour;
  const el = h("span", "d2-swatch", {}, dot, label);
  if (count !== undefined) el.append(h("b", "", { textContent: count }));
  return el;
}

function colourBar(name, dark, ticks, unit) {
  const bar = h("span", "d2-ramp"),
    stops = Array.from({ length: 13 }, (_, i) => css(colourAt(name, i / 12, dark)));
  bar.style.background = `linear-gradient(to right, ${stops.join(", ")})`;
  const scale = h("span", "d2-ticks", {}, ...ticks.map((t) => h("span", "", { textContent: t })));
  return h(
    "span",
    "d2-bar",
    {},
    h("span", "d2-barbox", {}, bar, scale),
    h("span", "d2-unit", { textContent: unit }),
  );
}

const pixelRatio = () => Math.min(2, globalThis.devicePixelRatio || 1);

// Gives a canvas as many pixels as the screen has for its box; true when that changed its size,
// which blanks it.
function fitCanvas(canvas, box = canvas) {
  const w = Math.round(box.clientWidth * pixelRatio()),
    ht = Math.round(box.clientHeight * pixelRatio());
  if (canvas.width === w && canvas.height === ht) return false;
  canvas.width = w;
  canvas.height = ht;
  return true;
}

// Calls what() when a mouse or pen leaves. A finger leaves by lifting: what it marked stays marked.
function onMouseLeave(el, what) {
  el.addEventListener("pointerleave", (e) => {
    if (e.pointerType !== "touch") what();
  });
}

export {
  fitCanvas,
  h,
  ICONS,
  iconButton,
  onMouseLeave,
  pageData,
  pixelRatio,
  choice,
  swatch,
  colourBar,
};
