/* The page: mount(element) draws the run, receive(text) feeds it. */
(function (D2) {
"use strict";

const { decodePlane, clamp, fixed, plural, WRITTEN_NOW, MASKED_NOW, PAPER, rgb, css, colourAt, REASONS, policyWords, reasonOf, reasonCounts, hitRateSoFar, touchedIn, totalsAt, emptyModel, applyText, chipData, visible, quoted, formatTotals, placeOf, explain, explainWhy, captions, promptText, madeBy, barsCaption, confidenceUnit, lampText, wantsMap, mapNote, tooltipData, readout, table, tables, MAPS } = D2.pure;
const { h, iconButton, choice, swatch, colourBar, makeMap, resetStore, drawRow, showMap, showStrip } = D2;

let mounted = 0;   // makes ids unique when a page holds two stages

function mount(element, { onDetail, onState } = {}) {
  const uid = `d2-${++mounted}`, off = new AbortController();
  const on = (target, type, fn, more) => target.addEventListener(type, fn, { signal: off.signal, ...more });
  let model = emptyModel(), lastText = null;
  let step = -1, live = true, zoom = "all", mode = "order", dark = false, colours = null;
  let hover = null;                       // {p, s or null for the step on view, chip: element or null}
  let chips = [], marked = null;          // marked: the position outlined now
  let frame = 0, playing = 0, dirty = true, drawn = 0, painted = 0, drawnFor = "", shownZoom = "", legendFor = "", countedUpTo = 0, bitsSeen = 0;
  let saidAt = 0, sayTimer = 0, tipOf = null;      // tipOf: the control whose words the tooltip shows
  let mapOpen = false, mapShown = null, mapAskedFor = "", mapAsked = 0, mapTimer = 0;

  // A control whose meaning pops up by mouse, keyboard and touch alike.
  function explained(button, words) {   // words: an element that holds them
    const tell = () => { showTip(button, [h("p", "", { textContent: words.textContent })]); tipOf = button; };
    for (const type of ["pointerenter", "focus", "click"]) on(button, type, tell);
    on(button, "pointerleave", (e) => { if (e.pointerType !== "touch") hideTip(); });   // a finger leaves by lifting
    on(button, "blur", hideTip);
    return button;
  }

  // ---- skeleton
  const stats = {}, help = h("div", "d2-sr");
  const header = h("div", "d2-stats", {}, ...STATS.map(([key, label, definition]) => {
    const words = h("span", "", { id: `${uid}-${key}`, textContent: definition });
    help.append(words);
    stats[key] = h("span", "d2-value", { textContent: "–" });
    return explained(h("button", "d2-stat", { type: "button", "aria-describedby": words.id }, stats[key], h("span", "d2-label", { textContent: label })), words);
  }));
  const back = iconButton("back", "Step back"), play = iconButton("play", "Play"), next = iconButton("next", "Step forward");
  play.classList.add("d2-play");
  const range = h("input", "d2-range", { type: "range", min: 0, max: 0, value: 0, step: 1, "aria-label": "Denoising step" });
  const speed = h("select", "d2-speed", { "aria-label": "Replay speed" }, ...[5, 15, 30, 60].map((n) => h("option", "", { value: n, textContent: `${n} steps/s`, selected: n === 15 })));
  const liveButton = h("button", "d2-live", { type: "button", title: "Follow the newest step (End)" }, h("i", "d2-lamp"), h("span", "", { textContent: "live" }));
  const sentence = h("p", "d2-sentence"), why = h("p", "d2-why"), read = h("p", "d2-readout");
  const spoken = h("p", "d2-sr", { "aria-live": "polite" });
  const note = h("p", "d2-note", { role: "status", hidden: true });
  const bar = h("div", "d2-topbar", {}, h("div", "d2-transport", {}, back, play, next, range, speed, liveButton), read);

  const answer = h("div", "d2-chips", { role: "listbox", "aria-label": "Answer tokens, by position", "aria-orientation": "horizontal" });
  const prompt = h("div", "d2-chips d2-prompt", { role: "listbox", "aria-label": "Prompt tokens, by position", "aria-orientation": "horizontal" });
  const promptTitle = h("summary", "d2-summary"), chipLegend = h("div", "d2-legend");
  const asked = h("p", "d2-asked"), made = h("p", "d2-more");
  const left = h("div", "d2-left", {}, h("div", "d2-said", {}, sentence, why, note), h("div", "d2-which", {}, asked, made),
    h("details", "d2-fold", {}, promptTitle, prompt),
    h("div", "d2-head", {}, h("h4", "d2-title", { textContent: "Answer" }),
      choice("Colour of the tokens", [["order", "order"], ["confidence", "confidence"], ["reason", "recomputed now"]], mode, (v) => { mode = v; schedule(); })),
    answer, chipLegend);

  const maps = MAPS.map(makeMap), byKey = Object.fromEntries(maps.map((m) => [m.spec.key, m]));
  const axis = h("div", "d2-axis", { "aria-hidden": "true" }, h("span", "d2-axis-prompt"), h("span", "d2-axis-answer"));
  const detailButton = h("button", "d2-text", { type: "button", "aria-expanded": "false", hidden: true, textContent: "show this step's attention map" });
  const detailCanvas = h("canvas", "d2-detail-canvas"), detailNote = h("p", "d2-more", { role: "status" });
  const detailBox = h("div", "d2-detail-box", {}, detailCanvas, ...["d2-hair", "d2-hair-row"].map((c) => h("div", c)));
  const detailNow = h("button", "d2-text", { type: "button", textContent: "load the map of the step on view" });
  const detail = h("div", "d2-detail", { hidden: true }, detailNote, detailBox, detailNow);
  byKey.rollout.el.append(detailButton, detail);
  const whys = Object.fromEntries(model.reasons.map((r) => [r.key, h("span", "", { id: `${uid}-why-${r.key}` })]));
  help.append(...Object.values(whys));
  const reasonLegends = [reasonLegend(byKey.cache.legend), reasonLegend(h("div", "d2-reasons"))];   // the second is for the chips
  const againMarks = [0, 1].map(() => swatch(MASKED_NOW, "masked again in this step"));   // in the legends of the map and of the chips
  byKey.cache.strip.before(h("span", "d2-striplabel", { textContent: "hit rate", "aria-hidden": "true" }));
  const right = h("div", "d2-right", {},
    h("div", "d2-head", {}, h("h4", "d2-title", { textContent: "Every position, every step" }),
      choice("Part of the canvas", [["all", "whole canvas"], ["answer", "answer only"]], zoom, (v) => { zoom = v; hover = null; schedule(); })),
    h("p", "d2-more", { textContent: "One column is one position of the canvas, one line is one denoising step; time runs downwards. Point anywhere to follow a position, click to go to that step." }),
    axis, ...maps.map((m) => m.el));

  const tip = h("div", "d2-tip", { id: `${uid}-tip`, role: "tooltip", hidden: true });
  const masks = h("div", "d2-demo", { "aria-hidden": "true" }, ...["The", "", "", " cache", "", " is", "", "", " warm", ""].map((t) => h("span", `d2-chip ${t ? "d2-settled" : "d2-masked"}`, { textContent: t })));
  const empty = h("div", "d2-empty", {}, masks, h("p", "d2-invite", { textContent: "Press Run: an answer will appear out of masks." }),
    h("p", "d2-more", { textContent: "At every step a few masks become tokens. You will see which positions it computes again, and which it takes from its cache." }));
  const full = h("div", "d2-full", { hidden: true }, header, bar, h("div", "d2-body", {}, left, right));
  const inner = h("div", "d2-inner", {}, empty, full, spoken, help, tip);
  const root = h("div", "d2-stage", { tabIndex: 0, role: "group", "aria-label": "Denoising stage: arrow keys step, space plays" }, inner);
  element.append(root);

  // ---- clock
  const lastStep = () => model.recs.length - 1;

  function goto(to, follow) {
    stop();
    live = Boolean(follow);
    step = clamp(Math.round(to), 0, Math.max(0, lastStep()));
    schedule();
  }

  function stop() {
    cancelAnimationFrame(playing);
    playing = 0;
    play.show("play", "Play");
  }

  function start() {
    if (lastStep() < 1) return;
    if (step >= lastStep()) step = 0;
    live = false;
    play.show("pause", "Pause");
    let before = performance.now(), due = 0;
    const tick = (now) => {
      due += Math.max(0, now - before) * Number(speed.value) / 1000;
      before = now;
      const n = Math.floor(due);
      due -= n;
      if (n) { step = Math.min(step + n, lastStep()); schedule(); }
      if (step < lastStep()) playing = requestAnimationFrame(tick);
      else { stop(); live = model.status === "running"; schedule(); }   // caught up with the run: follow it
    };
    playing = requestAnimationFrame(tick);
    schedule();
  }

  const toggle = () => { if (playing) { stop(); schedule(); } else start(); };
  const goLive = () => goto(lastStep(), true);
  on(back, "click", () => goto(step - 1));
  on(next, "click", () => goto(step + 1));
  on(play, "click", toggle);
  on(liveButton, "click", goLive);
  on(range, "input", () => goto(Number(range.value)));

  // ---- keyboard: on focus inside, or on hover while nothing else on the page has the focus
  const KEYS = { ArrowLeft: () => goto(step - 1), ArrowRight: () => goto(step + 1), Home: () => goto(0), End: goLive, " ": toggle };

  on(document, "keydown", (e) => {
    const focused = root.contains(document.activeElement), free = !document.activeElement || document.activeElement === document.body;
    if (e.key === "Escape") { hover = null; hideTip(); schedule(); }
    if (e.defaultPrevented || e.altKey || e.ctrlKey || e.metaKey || !model.run || !KEYS[e.key]) return;
    if (!focused && !(free && root.matches(":hover"))) return;
    const tag = focused ? document.activeElement.tagName : "";
    if (tag === "SELECT" || (e.key === " " && (tag === "BUTTON" || tag === "SUMMARY"))) return;   // theirs
    e.preventDefault();
    KEYS[e.key]();
  });

  // Arrow keys walk the chips; up and down go to the nearest chip of the line above or below.
  function chipKeys(e) {
    const list = e.currentTarget, here = e.target.closest("[data-p]"), all = [...list.querySelectorAll("[data-p]")];
    const i = all.indexOf(here), x = here ? here.offsetLeft : 0;
    const nearest = (line) => line.reduce((best, el) => (!best || Math.abs(el.offsetLeft - x) < Math.abs(best.offsetLeft - x) ? el : best), null);
    let to;
    if (e.key === "ArrowLeft") to = all[i - 1];
    else if (e.key === "ArrowRight") to = all[i + 1];
    else if (e.key === "ArrowUp" || e.key === "ArrowDown") {
      const beyond = all.filter((el) => (e.key === "ArrowUp" ? el.offsetTop < here.offsetTop - 8 : el.offsetTop > here.offsetTop + 8));
      const line = e.key === "ArrowUp" ? beyond.at(-1) : beyond[0];
      to = line && nearest(beyond.filter((el) => Math.abs(el.offsetTop - line.offsetTop) < 8));
    } else return;
    e.preventDefault();
    if (to) { here.tabIndex = -1; to.tabIndex = 0; to.focus(); }
  }

  // ---- pointing
  function chipEvents(list) {
    const point = (e) => { const el = e.target.closest("[data-p]"); if (el) setHover({ p: Number(el.dataset.p), s: null, chip: el }); };
    on(list, "pointerover", point);
    on(list, "focusin", point);
    on(list, "pointerleave", (e) => { if (e.pointerType !== "touch") setHover(null); });
    on(list, "focusout", () => { if (hover && hover.chip) setHover(null); });   // not a mark that a map has just set
    on(list, "keydown", chipKeys);
  }
  [answer, prompt].forEach(chipEvents);

  const window_ = () => (zoom === "answer" ? [model.P, model.T] : [0, model.T]);

  function cellAt(plane, e) {
    const box = plane.getBoundingClientRect(), [x0, x1] = window_();
    const p = x0 + Math.floor((e.clientX - box.left) / box.width * (x1 - x0)), s = Math.floor((e.clientY - box.top) / box.height * model.expected);
    return { p: clamp(p, x0, x1 - 1), s: clamp(s, 0, Math.max(0, lastStep())), chip: null };
  }

  for (const { plane } of maps) {
    const point = (e) => { if (model.run) setHover(cellAt(plane, e)); };
    on(plane, "pointermove", point);
    on(plane, "pointerdown", point);
    on(plane, "pointerleave", (e) => { if (e.pointerType !== "touch") setHover(null); });   // a finger leaves by lifting: keep its mark
    on(plane, "click", (e) => { if (model.run) goto(cellAt(plane, e).s); });
  }
  on(document, "pointerdown", (e) => {
    if (hover && !root.contains(e.target)) setHover(null);
    if (tipOf && !tipOf.contains(e.target)) hideTip();
  });

  function setHover(to) {
    hover = to;
    schedule();
  }

  // ---- tooltip: one floating box, kept inside the stage
  function showTip(anchor, kids) {
    tipOf = null;
    tip.replaceChildren(...kids);
    tip.hidden = false;
    const a = anchor.getBoundingClientRect(), box = inner.getBoundingClientRect(), w = tip.offsetWidth, ht = tip.offsetHeight;
    const below = a.bottom + 8 + ht < globalThis.innerHeight || a.top - 8 - ht < 0;
    tip.style.left = `${clamp(a.left + a.width / 2 - w / 2 - box.left, 8, Math.max(8, box.width - w - 8))}px`;
    tip.style.top = `${(below ? a.bottom + 8 : a.top - 8 - ht) - box.top}px`;
  }
  function hideTip() { tip.hidden = true; tipOf = null; }

  function tipContent(d) {
    const title = h("p", "d2-tip-token", { textContent: d.masked ? (d.again === null ? "still masked" : "masked again") : d.eos ? "end token" : visible(d.text) });
    const kids = [title, h("p", "d2-tip-where", { textContent: d.place })];
    if (d.write) kids.push(h("p", "", { textContent: `written in step ${d.step + 1} with confidence ${fixed(d.conf, 2)}` }));
    if (d.again !== null) kids.push(h("p", "", { textContent: `${d.was === null ? "its token" : quoted(d.was)} was masked again in step ${d.again + 1}` }));
    if (d.masked && d.candidate !== null) kids.push(h("p", "", { textContent: `its best guess now has confidence ${fixed(d.candidate, 2)}` }));
    if (d.bars.length) kids.push(h("p", "d2-tip-caption", { textContent: barsCaption(model.start) }), h("div", "d2-top", {}, ...d.bars.flatMap(({ text, share }) => {
      const fill = h("i");
      fill.style.width = `${clamp(share, 0, 1) * 100}%`;
      return [h("span", "d2-top-token", { textContent: text }), h("span", "d2-top-bar", {}, fill), h("span", "d2-top-p", { textContent: share === null ? "written" : fixed(share, 2) })];
    })));
    const layered = model.start.by_layer && !policyWords(model.start).even ? ", in at least one layer" : "";
    kids.push(h("p", "", { textContent: `recomputed in ${d.recomputed} of ${plural(d.steps, "step")} so far${layered}` }));
    kids.push(h("p", "d2-tip-reasons", {}, ...model.reasons.filter((r) => d.byReason[r.key]).map((r) => swatch(r.colour, r.label, d.byReason[r.key]))));
    return kids;
  }

  // ---- chips
  function buildChips() {
    const make = (p) => h("span", "d2-chip", { tabIndex: p === 0 || p === model.P ? 0 : -1, role: "option", "aria-selected": "false", "data-p": p });
    chips = Array.from({ length: model.T }, (_, p) => make(p));
    prompt.replaceChildren(...chips.slice(0, model.P));
    answer.replaceChildren(...chips.slice(model.P));
    chips.forEach((el, p) => { el.was = ""; if (p < model.P) paintChip(el, p); });
    promptTitle.textContent = `Prompt (${plural(model.P, "token")})`;
    asked.textContent = asked.title = promptText(model);
    made.textContent = madeBy(model.start);
  }

  function chipFill(p, d) {
    const reason = mode === "reason" && model.recs[step] ? reasonOf(model.recs[step].y[p]) : null;
    if (mode === "reason") return reason ? REASONS.find((r) => r.key === reason).colour : "";
    if (!d.write) return "";
    const v = mode === "order" ? d.write.s / Math.max(1, model.expected - 1) : d.write.conf;
    return css(colourAt(mode, v, dark));
  }

  function paintChip(el, p) {
    const d = chipData(model, p, step), fill = chipFill(p, d), is = `${d.state}|${d.eos}|${fill}|${d.text}`;
    if (el.was === is) return;              // most chips stay as they are from step to step
    el.was = is;
    el.className = `d2-chip d2-${d.state}${d.masked ? " d2-masked" : ""}${d.eos ? " d2-eos" : ""}${fill ? " d2-filled" : ""}`;
    el.textContent = d.eos ? "end" : d.masked ? "" : visible(d.text);
    if (d.masked) el.setAttribute("aria-label", `${placeOf(model, p)}, masked`); else el.removeAttribute("aria-label");
    el.style.setProperty("--d2-fill", fill || "transparent");
    const br = el.nextSibling && el.nextSibling.tagName === "BR" ? el.nextSibling : null, wants = d.text.endsWith("\n");
    if (wants && !br) el.after(h("br"));
    if (!wants && br) br.remove();
  }

  // ---- painting: everything waits for the next frame, and a frame paints once
  function schedule() {
    if (!frame) frame = requestAnimationFrame(paint);
  }

  function paint() {
    frame = 0;
    if (live) step = lastStep();
    const empty_ = !model.run;
    empty.hidden = !empty_;
    full.hidden = empty_;
    if (!empty_) {
      paintMaps();
      paintStep();
      paintHover();
    }
    const rec = model.recs.at(-1);
    element.dispatchEvent(new CustomEvent("d2:paint", { detail: { step, seq: rec ? rec.seq : -1, time: performance.now() } }));
    if (onState) onState(state());
  }

  // New rows only; all rows again when the run, the theme or the scale of the order has changed.
  function paintMaps() {
    const key = `${model.run}|${dark}|${model.expected}`;
    if (drawnFor !== key) {
      drawnFor = key;
      drawn = painted = 0;
      colours = tables(dark, model.expected);
      maps.forEach((m) => resetStore(m, model.T, model.expected));
      paintLegends();
      dirty = true;
    }
    if (drawn === model.recs.length && !dirty && shownZoom === zoom) return;
    for (; drawn < model.recs.length; drawn++) {
      for (const m of maps) drawRow(m, model, drawn, colours);
      if (model.recs[drawn]) painted++;       // a lost record leaves a blank row
    }
    const [x0, x1] = window_();
    maps.forEach((m) => showMap(m, model, x0, x1));
    showStrip(byKey.cache, model, dark ? "#7f93ad" : "#8fa3bb");
    shownZoom = zoom;
    dirty = false;
    right.style.setProperty("--d2-cols", x1 - x0);
    right.style.setProperty("--d2-split", (model.P - x0) / (x1 - x0));
    right.style.setProperty("--d2-rows", model.expected);
    right.style.setProperty("--d2-got", model.recs.length);
    right.classList.toggle("d2-zoomed", zoom === "answer" || model.P === 0);
  }

  function paintLegends() {
    for (const r of model.reasons) {
      whys[r.key].textContent = r.why;
      for (const { swatches } of reasonLegends) swatches.find((x) => x.key === r.key).label.textContent = r.label;
    }
    byKey.density.legend.replaceChildren(colourBar("density", dark, ["0", "0.5", "1"], "share of the neighbourhood that is known"));
    byKey.rollout.legend.replaceChildren(colourBar("rollout", dark, ["1/16", "1/2", "4", "32"], "× the mean mass of a position (log scale)"));
    byKey.order.legend.replaceChildren(swatch(css(rgb(PAPER[dark ? "dark" : "light"].masked)), "masked"), swatch(WRITTEN_NOW, "written in this step"), againMarks[0],
      colourBar("order", dark, ["1", String(model.expected)], "step of writing"));
    for (const m of maps) {
      m.more.textContent = captions[m.spec.key](model.start);
      m.last.textContent = model.expected;
    }
    const none = !model.start.rollout;
    byKey.rollout.el.classList.toggle("d2-none", none);
    byKey.rollout.absent.hidden = !none;
    detailButton.hidden = none || !onDetail;
    showDetail();
    axis.children[0].textContent = `prompt · ${model.P}`;
    axis.children[1].textContent = `answer · ${model.G}`;
    byKey.density.plane.lastChild.textContent = byKey.order.plane.lastChild.textContent = model.P / model.T < 0.3 ? "given" : "the prompt is given, never masked";
    root.classList.toggle("d2-many", model.G > 256);
  }

  function paintStep() {
    const rec = model.recs[step], totals = formatTotals(totalsAt(model, step) || { hit_rate: hitRateSoFar(model, step) });
    chips.forEach(paintChip);
    stats.step.textContent = `${step + 1} / ${model.recs.length}`;
    for (const key of ["tps", "hit", "flops"]) stats[key].textContent = totals[key];
    range.max = Math.max(0, lastStep());
    range.value = Math.max(0, step);
    range.setAttribute("aria-valuetext", `step ${step + 1} of ${model.recs.length}`);
    back.disabled = step <= 0;
    next.disabled = step >= lastStep();
    liveButton.classList.toggle("d2-on", live && model.status === "running");
    liveButton.classList.toggle("d2-paused", model.paused);
    liveButton.lastChild.textContent = lampText(model);
    liveButton.setAttribute("aria-pressed", String(live));
    sentence.textContent = rec ? explain(rec, model) : model.recs.length ? `Step ${step + 1}: its record was lost.` : `All ${model.G} answer positions are masked; waiting for the first step.`;
    why.textContent = rec ? explainWhy(rec, model) : "";
    right.style.setProperty("--d2-step", step);
    paintCounts(rec);
    paintNote();
    say();
    paintDetail();
  }

  // The legend of the cache map: made once, so that the focus can rest on it while a run goes on.
  function reasonLegend(el) {
    const swatches = model.reasons.map(({ key, colour = "" }) => {
      const dot = h("i", "d2-dot"), label = h("span"), count = h("b");
      dot.style.background = colour;
      return { key, dot, label, count, el: explained(h("button", "d2-swatch", { type: "button", "aria-describedby": whys[key].id }, dot, label, count), whys[key]) };
    });
    el.replaceChildren(...swatches.map((x) => x.el));
    return { el, swatches };
  }

  // It counts the positions of the step on view, for the reasons seen so far only.
  function paintCounts(rec) {
    const key = `${drawnFor}|${step}|${mode}|${drawn}`;
    if (legendFor === key) return;
    legendFor = key;
    const counts = { ...(rec ? reasonCounts(rec) : {}), reused: rec ? model.T - touchedIn(rec) : 0 };
    for (; countedUpTo < model.recs.length; countedUpTo++) for (const byte of model.recs[countedUpTo]?.y || []) bitsSeen |= byte;
    const seen = new Set(["reused", ...reasonsIn(bitsSeen)]);
    for (const { swatches } of reasonLegends) for (const x of swatches) {
      if (x.key === "reused") x.dot.style.background = PAPER[dark ? "dark" : "light"].reused;
      x.el.hidden = !seen.has(x.key);
      x.count.textContent = counts[x.key] || 0;
    }
    const ring = swatch(WRITTEN_NOW, "written in this step"), tail = { reason: reasonLegends[1].el };
    if (mode === "order") tail.order = colourBar("order", dark, ["1", String(model.expected)], "step of writing");
    if (mode === "confidence") tail.confidence = colourBar("confidence", dark, ["0", "0.5", "1"], confidenceUnit(model.start));
    if (chipLegend.lastChild !== tail[mode]) chipLegend.replaceChildren(ring, againMarks[1], tail[mode]);   // not again: a swatch may hold the focus
    for (const mark of againMarks) mark.hidden = !model.again;
  }

  function paintNote() {
    const lines = [];
    if (model.start.stored) lines.push("A stored run; press Run for a live one.");
    if (model.status === "done" && model.note) lines.push(model.note);
    if (model.status === "stopped") lines.push(`Stopped after ${plural(model.recs.length, "step")}. ${model.note}`);
    if (model.status === "failed") lines.push(`The run failed${model.note ? `: ${model.note}` : ""}.`);
    if (model.gaps) lines.push(`${plural(model.gaps, "record")} lost on the way; their lines are blank.`);
    const text = lines.join(" ").trim();
    if (note.textContent !== text) note.textContent = text;
    note.hidden = !text;
    note.classList.toggle("d2-alert", model.status === "failed" || model.gaps > 0);
  }

  // Tell a screen reader where we are, at most every 1.5 s, and always the last place.
  function say() {
    const wait = saidAt + 1500 - performance.now();
    if (sayTimer || spoken.textContent === sentence.textContent) return;
    sayTimer = setTimeout(() => { sayTimer = 0; saidAt = performance.now(); spoken.textContent = sentence.textContent; }, Math.max(200, wait));
  }

  function paintHover() {
    const p = hover && hover.p < model.T ? hover.p : null, s = hover && hover.s !== null ? hover.s : step;
    if (marked !== p) {
      chips[marked]?.classList.remove("d2-marked");
      chips[marked]?.removeAttribute("aria-describedby");
      marked = p;
    }
    const [x0] = window_(), seen = p !== null && p >= x0;
    right.classList.toggle("d2-pointed", seen);
    if (p === null || s < 0) {
      read.textContent = "Point at a token or a map to follow one position.";
      read.classList.add("d2-quiet");
      if (!tipOf) hideTip();
      return;
    }
    chips[p].classList.add("d2-marked");
    right.style.setProperty("--d2-col", p - x0);
    right.style.setProperty("--d2-at", p);
    const data = tooltipData(model, p, s);
    read.textContent = `step ${s + 1}, ${readout(data)}`;
    read.classList.remove("d2-quiet");
    if (hover.chip) {
      showTip(hover.chip, tipContent(data));
      chips[p].setAttribute("aria-describedby", tip.id);
    } else if (!tipOf) hideTip();
  }

  // ---- the T x T map of one step, fetched on request; it stays open from run to run
  const mapKey = () => `${model.run}|${step}`;

  function showDetail() {
    detail.hidden = !mapOpen || detailButton.hidden;
    detailButton.setAttribute("aria-expanded", String(!detail.hidden));
    detailButton.textContent = detail.hidden ? "show this step's attention map" : "hide the attention map";
  }

  on(detailButton, "click", () => {
    mapOpen = !mapOpen;
    showDetail();
    if (mapOpen && !(mapShown && mapShown.key === mapKey())) loadDetail();
  });
  on(detailNow, "click", loadDetail);

  function paintDetail() {
    if (detail.hidden) return;
    const key = mapKey(), old = !mapShown || mapShown.key !== key, due = old && mapAskedFor !== key;
    detailBox.classList.toggle("d2-stale", old);
    if (mapShown && (mapShown.dark !== dark || mapShown.noted !== model.run)) drawDetail();
    clearTimeout(mapTimer);
    if (due && wantsMap(model, live)) mapTimer = setTimeout(loadDetail, 250);
    detailNow.classList.toggle("d2-away", !due || wantsMap(model, live) || step < 0);
  }

  async function loadDetail() {
    if (step < 0) return;
    const asked = ++mapAsked, at = step, run = model.run, { T, P } = model;
    mapAskedFor = mapKey();
    if (!mapShown) detailNote.textContent = `Loading the map of step ${at + 1} …`;
    let got = null, problem = "there is none for this step";
    try { got = await onDetail(at); } catch (error) { problem = String(error && error.message || error); }
    if (asked !== mapAsked || run !== model.run) return;     // the reader has moved on
    mapShown = got && { ...got, key: `${run}|${at}`, run, at, T, P };
    if (got) drawDetail();
    else {
      detailCanvas.width = detailCanvas.height;              // blank
      detailNote.textContent = `No map: ${problem}.`;
    }
    schedule();
  }

  function drawDetail() {
    const { n, map, prompt: pooled, run, at, T, P } = mapShown;
    const bytes = decodePlane(map), lut = table((u) => colourAt("rollout", u / 255, dark)), image = new ImageData(n, n);
    const pixels = new Uint32Array(image.data.buffer);
    for (let i = 0; i < pixels.length; i++) pixels[i] = lut[bytes[i]];
    detailCanvas.width = detailCanvas.height = n;
    detailCanvas.getContext("2d").putImageData(image, 0, 0);
    detailBox.style.setProperty("--d2-part", (n !== T && pooled === P ? P / T : pooled / n));   // a pooled map keeps the share
    detailBox.style.setProperty("--d2-all", T);
    detailNote.textContent = mapNote(at, dark, run !== model.run);
    mapShown.dark = dark;
    mapShown.noted = model.run;
  }

  // ---- surroundings: size and theme
  const sizes = new ResizeObserver(() => {
    const ratio = Math.min(2, globalThis.devicePixelRatio || 1);
    for (const m of maps) for (const c of [m.canvas, m.strip]) {
      const w = Math.round(c.clientWidth * ratio), ht = Math.round(c.clientHeight * ratio);
      if (c.width !== w || c.height !== ht) { c.width = w; c.height = ht; dirty = true; }
    }
    schedule();
  });
  sizes.observe(right);

  const night = globalThis.matchMedia("(prefers-color-scheme: dark)");
  function readTheme() {
    const hosted = root.closest("gradio-app, .gradio-container");       // Gradio decides by its class alone
    const now = Boolean(root.closest(".dark")) || (!hosted && night.matches);
    root.classList.toggle("d2-dark", now);
    if (dark !== now) { dark = now; schedule(); }
  }
  const themes = new MutationObserver(readTheme);
  for (const el of [document.documentElement, document.body]) themes.observe(el, { attributes: true, attributeFilter: ["class"] });
  on(night, "change", readTheme);

  // ---- the outside
  const state = () => ({ run: model.run, received: model.received, painted, step, steps: model.recs.length, gaps: model.gaps, live, status: model.status, paused: model.paused });

  function receive(text) {
    if (text === lastText) return;          // the same message again, see addRecord
    lastText = text;
    const before = model;
    model = applyText(model, text);
    if (model !== before) reset();
    schedule();
  }

  function reset() {
    stop();
    live = true;
    hover = null;
    step = -1;
    drawn = painted = 0;
    drawnFor = "";
    countedUpTo = bitsSeen = 0;
    marked = null;
    buildChips();
  }

  function destroy() {
    off.abort();
    sizes.disconnect();
    themes.disconnect();
    stop();
    cancelAnimationFrame(frame);
    clearTimeout(sayTimer);
    clearTimeout(mapTimer);
    root.remove();
  }

  readTheme();
  schedule();
  return { receive, destroy, state, goto: (to) => goto(to) };
}

Object.assign(D2, { mount });
})(globalThis.D2Stage ??= {});
