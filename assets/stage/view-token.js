/* The token tab: the life of one position, step by step. */
import { agesOf, agesWords, layered } from "./ages.js";
import { colourAt, css, MASKED_NOW, rgb, WRITTEN_NOW } from "./colours.js";
import { QUESTIONS } from "./contract.js";
import { choice, colourBar, h, iconButton } from "./dom.js";
import { clamp, fixed } from "./numbers.js";
import { pixel } from "./pixels.js";
import { reasonOf, REASONS } from "./reasons.js";
import { writeAt } from "./run.js";
import { barsCaption, candidateBars, placeOf } from "./sentences.js";
import { fitPoints, lifeOf, lifeSentence, whyWords } from "./token-life.js";
import { DRIFTS, hasTruth, logShade } from "./truths.js";
import { makeWhatIf } from "./view-whatif.js";
import {
  asker,
  fill,
  makeLines,
  makePlane,
  marker,
  paper,
  paragraph,
  svg,
  term,
} from "./widgets.js";

const LINES = [
  {
    key: "conf",
    title: "confidence",
    why: "How sure the model is of its best guess here, as the decoder measures it. A gap: no guess was made in that step.",
    ticks: ["1", "0"],
    format: (v) => fixed(v, 2),
  },
  {
    key: "density",
    title: "certainty density",
    why: "The share of this position's neighbourhood that was already known before the step, nearer neighbours counting more.",
    ticks: ["1", "0"],
    format: (v) => fixed(v, 2),
  },
  {
    key: "product",
    title: "confidence × density",
    why: "The two multiplied: high where a sure guess stands next to known text.",
    ticks: ["1", "0"],
    format: (v) => fixed(v, 2),
  },
  { key: "rank", title: "rank", why: "", flip: true, ticks: ["1", ""], format: null },
  {
    key: "drift",
    title: "K drift",
    why: "How far the key (K) that attention read here is from the exact one: 1 minus their cosine, mean over the layers; log scale. Only where the run was made with Truth.",
    ticks: ["2", "6e−5"],
    format: (v) => (v < 0.01 ? v.toExponential(1) : fixed(v, 3)),
  },
];

// Ages in the step on view; neighbouring layers that agree are told together.
function agesTold(run, s, p) {
  if (s < 0 || !run.records[s]) return "";
  if (!layered(run))
    return `Ages in step ${s + 1}: ${agesWords(agesOf(run, s, 0, p), ["K", "V"])}, in every layer.`;
  const groups = [];
  for (let l = 0; l < run.layers; l++) {
    const text = agesWords(agesOf(run, s, l, p));
    if (groups.at(-1)?.text === text) groups.at(-1).to = l;
    else groups.push({ from: l, to: l, text });
  }
  const name = ({ from, to }) =>
    from === to ? `layer ${from + 1}` : `layers ${from + 1} to ${to + 1}`;
  return `Ages in step ${s + 1}: ${groups
    .slice(0, 6)
    .map((g) => `${name(g)}: ${g.text}`)
    .join("; ")}${groups.length > 6 ? "; and so on" : ""}.`;
}

function mount(host, page) {
  let drawn = "",
    life = null,
    lifeFor = "",
    path = null,
    pathBusy = false,
    pathTrouble = "",
    pathDrawn = "",
    candidatesFor = "";
  const ask = asker(page),
    mark = marker(page),
    whatIf = makeWhatIf(page);
  const back = iconButton("back", "Position before"),
    next = iconButton("next", "Position after"),
    field = h("input", "d2-field d2-short", {
      type: "number",
      min: 1,
      "aria-label": "Position, counted from 1",
    });
  const sides = h("div", "d2-chosen"),
    token = h("b", "d2-life-token"),
    sentence = h("p", "d2-sentence"),
    ages = h("p", "d2-more"),
    hint = h("p", "d2-more");
  let side = "";
  const fromField = () =>
    page.select(
      clamp(
        Math.round(Number(field.value) || 1) - 1 + (side === "answer" ? page.run.P : 0),
        0,
        page.run.T - 1,
      ),
    );
  field.addEventListener("change", fromField);
  back.addEventListener("click", () => page.select(Math.max(0, at() - 1)));
  next.addEventListener("click", () => page.select(Math.min(page.run.T - 1, at() + 1)));

  const strip = makePlane(page, {
    label: "When it was recomputed",
    idle: "Point at a step, or use the arrow keys here.",
    choose: (s) => page.goto(s),
    read: (s) => {
      const record = page.run.records[s],
        p = at();
      return !record
        ? `step ${s + 1}: its record was lost`
        : `step ${s + 1}: ${record.y[p] ? `recomputed (${whyWords(page.run, record.y[p])})` : "reused"}${record.w.some((w) => w[0] === p) ? ", written" : ""}${record.m.includes(p) ? ", masked again" : ""}`;
    },
  });
  strip.el.classList.add("d2-one");
  const stripTerm = term(
    page,
    "recomputed",
    "One cell a step: grey where what is cached was reused, else the colour of the reason it was recomputed for. Upright lines: orange where it was written, magenta where it was masked again.",
  );
  const legend = h("div", "d2-legend"),
    charts = LINES.map((line) =>
      makeLines(
        page,
        line.key === "rank"
          ? {
              ...line,
              title: "rank among the masked",
              why: "Its place among the masked positions of the open block that got a guess in that step: 1 is the best. By confidence times density where the decoder uses the certainty prior, else by confidence alone.",
              format: (v, s) => `${v} of ${life?.of[s] ?? "?"}`,
            }
          : line,
      ),
    );
  const top = h("div", "d2-top"),
    caption = h("p", "d2-tip-caption"),
    candidates = h(
      "section",
      "d2-line",
      {},
      h(
        "div",
        "d2-line-head",
        {},
        term(
          page,
          "candidates",
          "The model's likeliest tokens in the step that wrote this position, with their probabilities.",
        ),
      ),
      caption,
      top,
    );
  const trace = h("button", "d2-button", {
      type: "button",
      textContent: "Trace its keys",
      onclick: load,
    }),
    told = h("p", "d2-more", { role: "status" }),
    paths = h("div", "d2-paths", { hidden: true });
  const pathLegend = h("div", "d2-legend", { hidden: true });
  const plots = ["k", "v"].map((key) => {
    const box = svg("svg", { viewBox: "-0.06 -0.06 1.12 1.12", role: "img" }),
      title = h("p", "d2-line-head");
    return { key, box, title, el: h("div", "d2-path", {}, title, box) };
  });
  paths.append(...plots.map((x) => x.el));
  const moved = ["k", "v"].map((key) =>
    makeLines(page, {
      title: `how far ${key.toUpperCase()} moved`,
      why: `The distance between the exact ${key === "k" ? "key (K)" : "value (V)"} here and that of the step before, in the model's own units, averaged over the layers. High for a few steps: a rapid change; low throughout: stable.`,
      ticks: ["", "0"],
      format: (v) => Number(v).toPrecision(2),
    }),
  );
  const movedBox = h("div", "d2-lines", { hidden: true }, ...moved.map((x) => x.el));

  host.append(
    h(
      "section",
      "d2-look",
      { "aria-label": "Token" },
      h(
        "div",
        "d2-head",
        {},
        h("h4", "d2-title", {}, "The life of ", token),
        h("div", "d2-tools", {}, sides, back, field, next),
      ),
      hint,
      sentence,
      ages,
      h("div", "d2-line-head d2-gap", {}, stripTerm),
      strip.el,
      strip.said,
      legend,
      h("div", "d2-lines", {}, ...charts.map((c) => c.el), candidates),
      h("h4", "d2-title d2-gap", { textContent: "The path of its keys and values" }),
      paragraph(
        "d2-more",
        "The exact K and V of this position, averaged over the layers, move from step to step. PCA draws them on a plane: near points are alike. A cache may keep them while they stand still.",
      ),
      trace,
      told,
      paths,
      pathLegend,
      movedBox,
      whatIf.el,
    ),
  );

  // The pinned position; before one is pinned, one from the middle of what the run has written.
  let first = null;
  function at() {
    const { run } = page;
    if (page.selected !== null) return clamp(page.selected, 0, run.T - 1);
    if (first?.of !== run.key || !first.sure) {
      const told = run.changes.flatMap((list, p) =>
        p >= run.P && list.some((x) => x.text !== null && !run.eos.has(x.text)) ? [p] : [],
      );
      first = {
        of: run.key,
        sure: told.length > 0,
        p: told[Math.floor(told.length / 2)] ?? run.P,
      };
    }
    return first.p;
  }
  const pathKey = () => `${page.run.key}|${at()}`;

  function load() {
    const { run } = page,
      p = at(),
      key = pathKey();
    pathBusy = true;
    pathTrouble = "";
    page.schedule();
    ask(QUESTIONS.life, { run: run.key, position: p }, (got, problem) => {
      pathBusy = false;
      pathTrouble = problem || "";
      path = got && { ...got, key };
      pathDrawn = "";
      page.schedule();
    });
  }

  function drawPath(dark) {
    for (const plot of plots) {
      const { key, box, title } = plot,
        points = fitPoints(path[key]),
        n = points.length,
        tint = (s) => css(colourAt("order", s / Math.max(1, n - 1), dark));
      const written = new Set(life.written),
        kids = [];
      for (let s = 1; s < n; s++)
        kids.push(
          svg("line", {
            x1: points[s - 1][0],
            y1: points[s - 1][1],
            x2: points[s][0],
            y2: points[s][1],
            stroke: tint(s),
            class: "d2-path-line",
          }),
        );
      points.forEach(([x, y], s) => {
        kids.push(svg("circle", { cx: x, cy: y, r: 0.012, fill: tint(s) }));
        if (written.has(s))
          kids.push(svg("circle", { cx: x, cy: y, r: 0.03, class: "d2-path-written" }));
      });
      plot.points = points;
      plot.now = svg("circle", { r: 0.022, class: "d2-path-now" });
      box.replaceChildren(...kids, plot.now);
      const share = path.explained?.[key] || [];
      title.textContent = `${key.toUpperCase()}: ${share.length ? `the plane shows ${Math.round(100 * share.reduce((a, b) => a + b, 0))} % of its movement` : "its path"}`;
      box.setAttribute("aria-label", `${title.textContent}, over ${n} steps`);
    }
    fill(pathLegend, `${dark}|${path.k.length}`, () => [
      colourBar("order", dark, ["1", String(path.k.length)], "step"),
      mark(
        "d2-dot-ring",
        "before its writing",
        "the canvas on which this position was written, in the step that wrote it",
      ),
      mark("d2-dot-now", "step on view", "where it stands on the canvas before the step on view"),
    ]);
  }

  function followPath(step) {
    for (const { points, now } of plots) {
      const [x, y] = points[clamp(step, 0, points.length - 1)] ?? [0.5, 0.5];
      now.setAttribute("cx", x);
      now.setAttribute("cy", y);
    }
    moved.forEach((chart) => chart.follow(step));
  }

  function drawMoved() {
    moved.forEach((chart, i) => {
      const list = path.moved[i ? "v" : "k"],
        high = Math.max(1e-9, ...list.filter(Number.isFinite));
      chart.draw(
        list,
        path.k.length,
        life.written.map((s) => ({ s, cls: "d2-mark-written" })),
        { low: 0, high, ticks: [high.toPrecision(2), "0"] },
      );
    });
  }

  let shownFor = null;
  function paintWho(run, p) {
    const part = p < run.P ? "prompt" : "answer",
      key = `${run.key}|${part}|${run.P > 0}`;
    if (side !== part || sides.was !== key) {
      side = part;
      sides.was = key;
      sides.replaceChildren(
        ...(run.P
          ? [
              choice(
                "Part of the canvas",
                [
                  ["prompt", "prompt"],
                  ["answer", "answer"],
                ],
                side,
                (v) => page.select(v === "prompt" ? 0 : page.run.P),
              ),
            ]
          : []),
      );
    }
    // what is being typed stays, until another position is chosen
    if (document.activeElement !== field || shownFor !== p)
      field.value = p - (part === "answer" ? run.P : 0) + 1;
    shownFor = p;
    field.max = part === "answer" ? run.G : run.P;
    back.disabled = p === 0;
    next.disabled = p === run.T - 1;
    token.textContent = placeOf(run, p);
    hint.textContent =
      page.selected === null
        ? "Click a token or a map to choose a position; this is one of those that were written."
        : "";
    hint.hidden = !hint.textContent;
  }

  function paintLife(run, p, dark, n) {
    const marks = [
      ...life.written.map((s) => ({ s, cls: "d2-mark-written" })),
      ...life.masked.map((s) => ({ s, cls: "d2-mark-masked" })),
    ];
    charts.forEach((chart, i) => {
      const line = LINES[i],
        list = life[line.key],
        there = list.some((v) => v !== null);
      chart.el.hidden = !there && (line.key === "drift" || p < run.P);
      if (line.key === "rank") {
        const most = Math.max(2, ...life.of.map((x) => x ?? 0));
        chart.draw(list, n, marks, { low: 1, high: most, ticks: ["1", String(most)] });
      } else if (line.key === "drift")
        chart.draw(list, n, marks, {
          ticks: ["2", "0"],
          map: (v) => logShade(v, DRIFTS.low, DRIFTS.high),
        });
      else chart.draw(list, n, marks);
    });
    const tint = Object.fromEntries(REASONS.map((r) => [r.key, pixel(rgb(r.colour))])),
      bare = pixel(rgb(paper(dark).reused));
    strip.draw(
      n,
      1,
      (out) =>
        life.why.forEach((byte, s) => {
          out[s] = byte === null ? 0 : byte ? tint[reasonOf(byte)] : bare;
        }),
      (ctx, w, ht, ratio) => {
        for (const [list, ink] of [
          [life.written, WRITTEN_NOW],
          [life.masked, MASKED_NOW],
        ])
          for (const s of list) {
            ctx.fillStyle = ink;
            ctx.fillRect((w * s) / n, 0, Math.max(2 * ratio, Math.min(4 * ratio, w / n)), ht);
          }
      },
    );
    const seen = new Set(life.why.filter(Boolean).map(reasonOf));
    const list = [
      ...run.reasons.filter((r) => seen.has(r.key)).map((r) => [r.colour, r.label, r.why]),
      [paper(dark).reused, "reused", run.reasons[0].why],
      [WRITTEN_NOW, "written", "the step that wrote its token"],
    ];
    fill(legend, list.join("|"), () => list.map((x) => mark(...x)));
  }

  function paintCandidates(run, p, step) {
    const write = writeAt(run, p, step) || (run.changes[p] || []).find((x) => x.text !== null),
      bars = candidateBars(run, write),
      key = `${run.key}|${p}|${write?.s}`;
    if (candidatesFor === key) return;
    candidatesFor = key;
    candidates.hidden = !bars.length;
    caption.textContent = write ? `in step ${write.s + 1}: ${barsCaption(run.start)}` : "";
    top.replaceChildren(
      ...bars.flatMap(({ text, share }) => {
        const fill = h("i");
        fill.style.width = `${100 * clamp(share ?? 0, 0, 1)}%`;
        return [
          h("span", "d2-top-token", { textContent: text }),
          h("span", "d2-top-bar", {}, fill),
          h("span", "d2-top-p", { textContent: share === null ? "written" : fixed(share, 2) }),
        ];
      }),
    );
  }

  function paint() {
    const { run, step, dark } = page;
    if (!run?.key) return;
    const p = at(),
      n = run.records.length;
    const fed = `${run.key}|${p}|${n}|${hasTruth(run) && run.records.at(-1)?.truth ? 1 : 0}`;
    if (lifeFor !== fed) {
      lifeFor = fed;
      life = lifeOf(run, p);
    }
    const key = `${fed}|${dark}`;
    paintWho(run, p);
    if (drawn !== key) {
      drawn = key;
      paintLife(run, p, dark, n);
    }
    sentence.textContent = lifeSentence(run, p, step);
    ages.textContent = agesTold(run, step, p);
    charts.forEach((chart) => chart.follow(step));
    strip.follow(step < 0 ? null : step);
    paintCandidates(run, p, step);
    const here = path?.key === pathKey();
    paths.hidden = pathLegend.hidden = !here;
    movedBox.hidden = !here || !path.moved;
    trace.hidden = page.offline || here;
    trace.disabled = pathBusy;
    told.textContent = page.offline
      ? "This needs the running app: it makes an exact pass for each step."
      : pathBusy
        ? "Working: an exact pass for each step …"
        : pathTrouble
          ? `No path: ${pathTrouble}`
          : "";
    told.hidden = !told.textContent;
    if (here) {
      const is = `${path.key}|${dark}|${path.k.length}`;
      if (pathDrawn !== is) {
        pathDrawn = is;
        drawPath(dark);
        if (path.moved) drawMoved();
      }
      followPath(step);
    }
    whatIf.paint(p);
  }

  return {
    paint,
    destroy() {
      strip.destroy();
      whatIf.destroy();
    },
  };
}

const tab = { key: "token", title: "Token", mount };

export { tab };
