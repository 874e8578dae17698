/* A picture of what is shown, made by the browser from the page itself.
 *
 * The stage is cloned, every canvas becomes an image, the styles go with it, and the whole is drawn
 * as an SVG: nothing is loaded, no library. */
import { h } from "./dom.js";
import { clamp } from "./numbers.js";
import { madeBy, promptText } from "./sentences.js";

// ---- pure

const MOST_PIXELS = 16000; // of one side of a canvas, in any browser

// What a picture is called underneath: the prompt, who made it, and the step.
function pictureCaption(board, steps) {
  const runs = board.lanes,
    at = (run, step) =>
      step < 0 ? "before the first step" : `step ${step + 1} of ${run.records.length}`,
    shown = (run, i) => `${madeBy(run.start)} · ${at(run, steps[i])}`;
  const prompt = promptText(runs[0]);
  return [
    prompt.length > 300 ? `${prompt.slice(0, 299)}…` : prompt,
    ...runs.map((run, i) => (runs.length > 1 ? `${i + 1}: ` : "") + shown(run, i)),
  ];
}

// Text that XML can hold: without control codes and halves of characters.
const inXml = (text) =>
  text.replace(/(?![\t\n\r\u007f-\u009f])\p{Cc}|[\ufffe\uffff]|\p{Surrogate}/gu, "\ufffd");

// Names of the variables that a style takes from its surroundings.
const borrowed = (style) =>
  [...new Set([...style.matchAll(/var\(\s*(--[\w-]+)/g)].map((m) => m[1]))].filter(
    (name) => !name.startsWith("--d2-"),
  );

const fileName = (run, step, ending) =>
  `d2cache-${String(run.start?.policy ?? "run").replace(/[^\w-]/g, "")}-step-${step + 1}.${ending}`;

// ---- the page

// The stage's own rules, as the browser has read them.
function stageRules() {
  const out = [];
  for (const sheet of document.styleSheets) {
    let rules;
    try {
      rules = sheet.cssRules;
    } catch {
      continue;
    } // of another origin: not the stage's
    for (const rule of rules) if (/\bd2-/.test(rule.cssText)) out.push(rule.cssText);
  }
  return out.join("\n");
}

const MARGIN = 20; // px, left and right of a picture

const PICTURE_CSS = `
  .d2-stage.d2-picture { padding: 16px ${MARGIN}px; border-radius: 0; box-sizing: border-box;
    font-family: system-ui, sans-serif; }
  .d2-stage.d2-picture.d2-picture.d2-picture .d2-left { position: static; max-height: none;
    overflow: visible; }
  .d2-stage.d2-picture.d2-picture.d2-picture img { display: block; }
  .d2-stage.d2-picture.d2-picture.d2-picture .d2-tokens { height: auto; min-height: 112px;
    contain: none; overflow: visible; }
  .d2-stage.d2-picture.d2-picture.d2-picture .d2-tokenblock { content-visibility: visible; }
  .d2-picture .d2-picture-caption { margin-top: 14px; padding-top: 8px; font-size: 13px;
    border-top: 1px solid var(--d2-line); overflow-wrap: anywhere; }
  .d2-picture * { scrollbar-width: none !important; animation: none !important;
    transition: none !important; }`;

// What has no place in a picture: controls, words for screen readers, what is not shown.
const OUT = [
  "[hidden]",
  "script",
  ".d2-lessons",
  ".d2-topbar",
  ".d2-tabbar",
  ".d2-tabrow",
  ".d2-tip",
  ".d2-sr",
  ".d2-export",
  ".d2-unfold",
  ".d2-teach",
].join(",");

function withImages(root) {
  const clone = root.cloneNode(true),
    canvases = [...root.querySelectorAll("canvas")];
  [...clone.querySelectorAll("canvas")].forEach((empty, i) => {
    const from = canvases[i],
      image = h("img", empty.className, { alt: "" });
    if (from.width && from.height && from.clientWidth) image.src = from.toDataURL();
    const size = `width:${from.clientWidth}px;height:${from.clientHeight}px`;
    image.setAttribute("style", `${empty.getAttribute("style") ?? ""};${size}`);
    empty.replaceWith(image);
  });
  // what the reader has chosen is in properties, not in the markup
  const fields = [...root.querySelectorAll("input, select, textarea")];
  [...clone.querySelectorAll("input, select, textarea")].forEach((field, i) =>
    field.replaceWith(
      h("span", "d2-more", {
        textContent:
          fields[i].type === "checkbox" ? (fields[i].checked ? "☑" : "☐") : fields[i].value,
      }),
    ),
  );
  for (const el of clone.querySelectorAll(OUT)) el.remove();
  return clone;
}

// The stage as an SVG text of its own, with its size in CSS pixels.
function asSvg(page, lines) {
  const { root } = page,
    rules = stageRules(),
    seen = getComputedStyle(root),
    own = parseFloat(seen.paddingLeft) + parseFloat(seen.paddingRight),
    width = Math.ceil(root.clientWidth - own) + 2 * MARGIN; // so that its lines break as they do
  const clone = withImages(root);
  clone.classList.add("d2-picture");
  for (const name of borrowed(rules))
    if (seen.getPropertyValue(name)) clone.style.setProperty(name, seen.getPropertyValue(name));
  clone.style.width = `${width}px`;
  clone
    .querySelector(".d2-inner")
    .append(
      h("div", "d2-picture-caption", {}, ...lines.map((text) => h("p", "", { textContent: text }))),
    );
  clone.prepend(h("style", "", { textContent: PICTURE_CSS }));
  // measured where it has the same width, out of sight
  const shelf = h("div", "", { inert: true, "aria-hidden": "true" }, clone);
  shelf.style.cssText = `position:fixed;left:-30000px;top:0;width:${width}px;visibility:hidden`;
  document.body.append(shelf);
  const height = Math.ceil(clone.getBoundingClientRect().height);
  clone.remove();
  shelf.remove();
  clone.prepend(h("style", "", { textContent: rules }));
  const space = "http://www.w3.org/2000/svg",
    svg = document.createElementNS(space, "svg"),
    box = document.createElementNS(space, "foreignObject");
  for (const [el, names] of [
    [svg, { width, height }],
    [box, { width: "100%", height: "100%" }],
  ])
    for (const [name, value] of Object.entries(names)) el.setAttribute(name, value);
  box.append(clone);
  svg.append(box);
  return { text: inXml(new XMLSerializer().serializeToString(svg)), width, height };
}

// A PNG of the open tab with its caption, twice as fine as the page where that fits on a canvas.
async function picture(page) {
  page.drawAll?.();
  const { text, width, height } = asSvg(
    page,
    pictureCaption(
      page.board,
      page.board.lanes.map((_, i) => page.stepOf(i)),
    ),
  );
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
  await image.decode();
  const ratio = clamp(MOST_PIXELS / Math.max(width, height), 0.1, 2),
    canvas = h("canvas");
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const ctx = canvas.getContext("2d");
  ctx.drawImage(image, 0, 0, canvas.width, canvas.height);
  let blob = null;
  try {
    blob = await new Promise((done) => canvas.toBlob(done, "image/png"));
  } catch {
    /* a browser that trusts no drawn page */
  }
  if (!blob)
    throw new Error(
      "this browser makes no picture of a page; take a screenshot with its own tools",
    );
  return {
    blob,
    name: fileName(page.run, page.step, "png"),
    width: canvas.width,
    height: canvas.height,
  };
}

// Hands the reader a file.
function download(blob, name) {
  const url = URL.createObjectURL(blob),
    link = h("a", "", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

export { pictureCaption, inXml, borrowed, fileName, picture, download };
