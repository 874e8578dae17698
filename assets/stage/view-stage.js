/* The tab Stage: the run of the lane in hand as chips, sentences and four maps on one position axis. */
import { chipEvents, chipList, makeChips, paintChip } from "./chips.js";
import { css, MASKED_NOW, PAPER, rgb, WRITTEN_NOW } from "./colours.js";
import { POINTS } from "./contract.js";
import { choice, colourBar, fitCanvas, h, swatch } from "./dom.js";
import { worded } from "./glossary.js";
import { drawRow, makeMap, resetStore, showMap, showStrip } from "./maps.js";
import { clamp, plural } from "./numbers.js";
import { MAPS, tables } from "./pixels.js";
import { reasonCounts, reasonsIn } from "./reasons.js";
import { makeRolloutMap } from "./rollout-map.js";
import { touchedIn } from "./run.js";
import {
  captions,
  confidenceUnit,
  explain,
  explainWhy,
  madeBy,
  noteOf,
  promptText,
} from "./sentences.js";

function mount(host, page) {
  const uid = page.uid;
  let run = page.run,
    built = null,
    zoom = "all",
    mode = "order",
    colours = null;
  let chips = [],
    marked = null; // marked: the position outlined now
  let dirty = true,
    drawn = 0,
    drawnFor = "",
    shownZoom = "",
    legendFor = "",
    countedUpTo = 0,
    bitsSeen = 0;

  // ---- skeleton
  const sentence = h("p", "d2-sentence"),
    why = h("p", "d2-why"),
    note = h("p", "d2-note", { role: "status", hidden: true });
  const answer = chipList("", "Answer tokens, by position"),
    prompt = chipList(" d2-prompt", "Prompt tokens, by position");
  const promptTitle = h("summary", "d2-summary"),
    chipLegend = h("div", "d2-legend");
  const asked = h("p", "d2-asked"),
    made = h("p", "d2-more");
  const left = h(
    "div",
    "d2-left",
    {},
    h("div", "d2-said", { "data-point": POINTS.sentence }, sentence, why, note),
    h("div", "d2-which", {}, asked, made),
    h("details", "d2-fold", { "data-point": POINTS.prompt }, promptTitle, prompt),
    h(
      "div",
      "d2-head",
      {},
      h("h4", "d2-title", { textContent: "Answer" }),
      choice(
        "Colour of the tokens",
        [
          ["order", "order"],
          ["confidence", "confidence"],
          ["reason", "recomputed now"],
        ],
        mode,
        (v) => {
          mode = v;
          page.schedule();
        },
      ),
    ),
    answer,
    chipLegend,
  );
  answer.dataset.point = POINTS.answer;
  for (const list of [answer, prompt]) chipEvents(list, page, () => page.lane);

  const maps = MAPS.map(makeMap),
    byKey = Object.fromEntries(maps.map((m) => [m.spec.key, m]));
  const axis = h(
    "div",
    "d2-axis",
    { "aria-hidden": "true" },
    h("span", "d2-axis-prompt"),
    h("span", "d2-axis-answer"),
  );
  const detail = makeRolloutMap(page);
  byKey.rollout.el.append(detail.button, detail.el);
  const help = h("div", "d2-sr", { hidden: true });
  const whys = Object.fromEntries(
    run.reasons.map((r) => [r.key, h("span", "", { id: `${uid}-why-${r.key}` })]),
  );
  help.append(...Object.values(whys));
  const reasonLegends = [reasonLegend(byKey.cache.legend), reasonLegend(h("div", "d2-reasons"))]; // the second is for the chips
  const againMarks = [0, 1].map(() => swatch(MASKED_NOW, "masked again in this step")); // in the legends of the map and of the chips
  byKey.cache.strip.before(
    h("span", "d2-striplabel", { textContent: "hit rate", "aria-hidden": "true" }),
  );
  const right = h(
    "div",
    "d2-right",
    {},
    h(
      "div",
      "d2-head",
      {},
      h("h4", "d2-title", { textContent: "Every position, every step" }),
      choice(
        "Part of the canvas",
        [
          ["all", "whole canvas"],
          ["answer", "answer only"],
        ],
        zoom,
        (v) => {
          zoom = v;
          page.setHover(null);
        },
      ),
    ),
    h("p", "d2-more", {
      textContent:
        "One column is one position of the canvas, one line is one denoising step; time runs downwards. Point anywhere to follow a position, click to go to that step.",
    }),
    axis,
    ...maps.map((m) => m.el),
  );
  host.append(h("div", "d2-body", {}, left, right), help);

  // ---- pointing
  const window_ = () => (zoom === "answer" ? [run.P, run.T] : [0, run.T]);

  function cellAt(plane, e) {
    const box = plane.getBoundingClientRect(),
      [x0, x1] = window_();
    const p = x0 + Math.floor(((e.clientX - box.left) / box.width) * (x1 - x0)),
      s = Math.floor(((e.clientY - box.top) / box.height) * run.expected);
    return {
      p: clamp(p, x0, x1 - 1),
      s: clamp(s, 0, Math.max(0, run.records.length - 1)),
      lane: page.lane,
      chip: null,
    };
  }

  for (const { plane } of maps) {
    const point = (e) => {
      if (run.key) page.setHover(cellAt(plane, e));
    };
    plane.addEventListener("pointermove", point);
    plane.addEventListener("pointerdown", point);
    plane.addEventListener("pointerleave", (e) => {
      if (e.pointerType !== "touch") page.setHover(null);
    }); // a finger leaves by lifting: keep its mark
    plane.addEventListener("click", (e) => {
      if (run.key) page.goto(cellAt(plane, e).s);
    });
  }

  // ---- painting
  function build() {
    built = run;
    chips = makeChips(run);
    prompt.replaceChildren(...chips.slice(0, run.P));
    answer.replaceChildren(...chips.slice(run.P));
    promptTitle.textContent = `Prompt (${plural(run.P, "token")})`;
    asked.textContent = asked.title = promptText(run);
    made.textContent = madeBy(run.start);
    drawn = countedUpTo = bitsSeen = 0;
    drawnFor = "";
    marked = null;
  }

  function paint() {
    run = page.run;
    if (!run.key) return;
    if (built !== run) build();
    paintMaps();
    paintStep();
    paintHover();
  }

  // New rows only; all rows again when the run, the theme or the scale of the order has changed.
  function paintMaps() {
    const { dark } = page,
      key = `${run.key}|${dark}|${run.expected}`;
    if (drawnFor !== key) {
      drawnFor = key;
      drawn = 0;
      colours = tables(dark, run.expected);
      maps.forEach((m) => resetStore(m, run.T, run.expected));
      paintLegends();
      dirty = true;
    }
    if (drawn === run.records.length && !dirty && shownZoom === zoom) return;
    for (; drawn < run.records.length; drawn++)
      for (const m of maps) drawRow(m, run, drawn, colours); // a lost record leaves a blank row
    const [x0, x1] = window_();
    maps.forEach((m) => showMap(m, run, x0, x1));
    showStrip(byKey.cache, run, dark ? "#7f93ad" : "#8fa3bb");
    shownZoom = zoom;
    dirty = false;
    right.style.setProperty("--d2-cols", x1 - x0);
    right.style.setProperty("--d2-split", (run.P - x0) / (x1 - x0));
    right.style.setProperty("--d2-rows", run.expected);
    right.style.setProperty("--d2-got", run.records.length);
    right.classList.toggle("d2-zoomed", zoom === "answer" || run.P === 0);
  }

  function paintLegends() {
    const { dark } = page;
    for (const r of run.reasons) {
      whys[r.key].textContent = r.why;
      for (const { swatches } of reasonLegends)
        swatches.find((x) => x.key === r.key).label.textContent = r.label;
    }
    byKey.density.legend.replaceChildren(
      colourBar("density", dark, ["0", "0.5", "1"], "share of the neighbourhood that is known"),
    );
    byKey.rollout.legend.replaceChildren(
      colourBar(
        "rollout",
        dark,
        ["1/16", "1/2", "4", "32"],
        "× the mean mass of a position (log scale)",
      ),
    );
    byKey.order.legend.replaceChildren(
      swatch(css(rgb(PAPER[dark ? "dark" : "light"].masked)), "masked"),
      swatch(WRITTEN_NOW, "written in this step"),
      againMarks[0],
      colourBar("order", dark, ["1", String(run.expected)], "step of writing"),
    );
    for (const m of maps) {
      m.more.replaceChildren(...worded(captions[m.spec.key](run.start)));
      m.last.textContent = run.expected;
    }
    const none = !run.start.rollout;
    byKey.rollout.el.classList.toggle("d2-none", none);
    byKey.rollout.absent.hidden = !none;
    axis.children[0].textContent = `prompt · ${run.P}`;
    axis.children[1].textContent = `answer · ${run.G}`;
    byKey.density.plane.lastChild.textContent = byKey.order.plane.lastChild.textContent =
      run.P / run.T < 0.3 ? "given" : "the prompt is given, never masked";
    host.classList.toggle("d2-many", run.G > 256);
  }

  function paintStep() {
    const { step, dark } = page,
      record = run.records[step];
    chips.forEach((el, p) => paintChip(el, run, p, step, mode, dark, page.selected === p));
    sentence.textContent = explain(record, run, step);
    const reason = record ? explainWhy(record, run) : "";
    if (why.was !== reason) {
      why.was = reason;
      why.replaceChildren(...worded(reason));
    }
    right.style.setProperty("--d2-step", step);
    paintCounts(record);
    paintNote();
    detail.paint();
  }

  // The legend of the cache map: made once, so that the focus can rest on it while a run goes on.
  function reasonLegend(el) {
    const swatches = run.reasons.map(({ key, colour = "" }) => {
      const dot = h("i", "d2-dot"),
        label = h("span"),
        count = h("b");
      dot.style.background = colour;
      return {
        key,
        dot,
        label,
        count,
        el: page.explained(
          h("button", "d2-swatch", { type: "button" }, dot, label, count),
          whys[key],
        ),
      };
    });
    el.replaceChildren(...swatches.map((x) => x.el));
    return { el, swatches };
  }

  // It counts the positions of the step on view, for the reasons seen so far only.
  function paintCounts(record) {
    const key = `${drawnFor}|${page.step}|${mode}|${drawn}`;
    if (legendFor === key) return;
    legendFor = key;
    const { dark } = page,
      counts = {
        ...(record ? reasonCounts(record) : {}),
        reused: record ? run.T - touchedIn(record) : 0,
      };
    for (; countedUpTo < run.records.length; countedUpTo++)
      for (const byte of run.records[countedUpTo]?.y || []) bitsSeen |= byte;
    const seen = new Set(["reused", ...reasonsIn(bitsSeen)]);
    for (const { swatches } of reasonLegends)
      for (const x of swatches) {
        if (x.key === "reused") x.dot.style.background = PAPER[dark ? "dark" : "light"].reused;
        x.el.hidden = !seen.has(x.key);
        x.count.textContent = counts[x.key] || 0;
      }
    const ring = swatch(WRITTEN_NOW, "written in this step"),
      tail = { reason: reasonLegends[1].el };
    if (mode === "order")
      tail.order = colourBar("order", dark, ["1", String(run.expected)], "step of writing");
    if (mode === "confidence")
      tail.confidence = colourBar("confidence", dark, ["0", "0.5", "1"], confidenceUnit(run.start));
    if (chipLegend.lastChild !== tail[mode])
      chipLegend.replaceChildren(ring, againMarks[1], tail[mode]); // not again: a swatch may hold the focus
    for (const mark of againMarks) mark.hidden = !run.again;
  }

  function paintNote() {
    const text = noteOf(run, page.step);
    if (note.textContent !== text) note.textContent = text;
    note.hidden = !text;
    note.classList.toggle("d2-alert", run.status === "failed" || run.gaps > 0);
  }

  function paintHover() {
    const { hover } = page,
      p = hover && hover.p < run.T ? hover.p : null,
      [x0] = window_();
    if (marked !== p) {
      chips[marked]?.classList.remove("d2-marked");
      marked = p;
    }
    right.classList.toggle("d2-pointed", p !== null && p >= x0);
    if (p === null) return;
    chips[p].classList.add("d2-marked");
    right.style.setProperty("--d2-col", p - x0);
    right.style.setProperty("--d2-at", p);
  }

  const sizes = new ResizeObserver(() => {
    if (maps.map((m) => [m.canvas, m.strip].map(fitCanvas).some(Boolean)).some(Boolean))
      dirty = true;
    page.schedule();
  });
  sizes.observe(right);

  return {
    paint,
    destroy() {
      sizes.disconnect();
      detail.destroy();
    },
  };
}

const tab = { key: "stage", title: "Stage", mount };

export { tab };
