/* The T x T map of one step in the tab Stage, fetched on request; it stays open from run to run. */
import { colourAt } from "./colours.js";
import { LAST_CODE, QUESTIONS } from "./contract.js";
import { h } from "./dom.js";
import { decodePlane } from "./numbers.js";
import { table } from "./pixels.js";
import { evenShades } from "./pixels.js";
import { mapNote, wantsMap } from "./sentences.js";

function makeRolloutMap(page) {
  const button = h("button", "d2-text", {
    type: "button",
    "aria-expanded": "false",
    hidden: true,
    textContent: "show this step's attention map",
    onclick: toggle,
  });
  const canvas = h("canvas", "d2-detail-canvas"),
    note = h("p", "d2-more", { role: "status" });
  const box = h(
    "div",
    "d2-detail-box",
    {},
    canvas,
    ...["d2-hair", "d2-hair-row"].map((c) => h("div", c)),
  );
  const now = h("button", "d2-text", {
    type: "button",
    textContent: "load the map of the step on view",
    onclick: load,
  });
  const el = h("div", "d2-detail", { hidden: true }, note, box, now);
  let open = false,
    shown = null,
    askedFor = "",
    asked = 0,
    timer = 0;

  const key = () => `${page.run.key}|${page.step}`;

  function toggle() {
    open = !open;
    show();
    if (open && shown?.key !== key()) load();
  }

  function show() {
    button.hidden = !page.run.start?.rollout || page.offline;
    el.hidden = !open || button.hidden;
    button.setAttribute("aria-expanded", String(!el.hidden));
    button.textContent = el.hidden ? "show this step's attention map" : "hide the attention map";
  }

  function paint() {
    show();
    if (el.hidden) return;
    const { run, live } = page,
      old = shown?.key !== key(),
      due = old && askedFor !== key();
    box.classList.toggle("d2-stale", old);
    if (shown && (shown.dark !== page.dark || shown.noted !== run.key)) draw();
    clearTimeout(timer);
    if (due && wantsMap(run, live)) timer = setTimeout(load, 250);
    now.classList.toggle("d2-away", !due || wantsMap(run, live) || page.step < 0);
  }

  async function load() {
    const { run, step: at } = page,
      { key: of, T, P } = run;
    if (at < 0) return;
    const mine = ++asked;
    askedFor = key();
    if (!shown) note.textContent = `Loading the map of step ${at + 1} …`;
    let got = null,
      problem = "there is none for this step";
    try {
      got = await page.ask(QUESTIONS.attention, { run: of, step: at, layer: "rollout" });
    } catch (error) {
      problem = String((error && error.message) || error);
    }
    if (mine !== asked || of !== page.run.key) return; // the reader has moved on
    shown = got && { ...got, key: `${of}|${at}`, of, at, T, P };
    if (got) draw();
    else {
      canvas.width = canvas.height; // blank
      note.textContent = `No map: ${problem}.`;
    }
    page.schedule();
  }

  function draw() {
    const { n, edges, map, prompt: pooled, of, at, T, P } = shown,
      { dark } = page;
    const bytes = evenShades(decodePlane(map), edges),
      lut = table((u) => colourAt("rollout", u / LAST_CODE, dark)),
      image = new ImageData(n, n);
    const pixels = new Uint32Array(image.data.buffer);
    for (let i = 0; i < pixels.length; i++) pixels[i] = lut[bytes[i]];
    canvas.width = canvas.height = n;
    canvas.getContext("2d").putImageData(image, 0, 0);
    // a pooled map keeps the prompt's share
    box.style.setProperty("--d2-part", n !== T && pooled === P ? P / T : pooled / n);
    box.style.setProperty("--d2-all", T);
    note.textContent = mapNote(at, dark, of !== page.run.key);
    shown.dark = dark;
    shown.noted = page.run.key;
  }

  return { button, el, paint, destroy: () => clearTimeout(timer) };
}

export { makeRolloutMap };
