/* The truth tab: an exact pass beside every step says how far the cache is off, and what it should have picked. */
import { colourAt, RAMPS, rgb } from "./colours.js";
import { RUN_WORDS } from "./contract.js";
import { choice, colourBar, h } from "./dom.js";
import { clamp, fixed } from "./numbers.js";
import { pixel, table } from "./pixels.js";
import { placeOf } from "./sentences.js";
import {
  hasTruth,
  logShade,
  MARKS,
  oracleMarks,
  oracleSentence,
  truthReadout,
  TRUTHS,
  truthSums,
} from "./truths.js";
import {
  divide,
  fill,
  makeLines,
  makePlane,
  marker,
  paper,
  paragraph,
  promptBar,
  term,
} from "./widgets.js";

const COLOURS = { hit: "#009e73", missed: "#d55e00", needless: "#56b4e9" }; // told apart by shape as well
const ticksOf = (x) =>
  x < 0.01 ? x.toExponential(0).replace("e-", "e−") : String(Number(x.toPrecision(2)));

const NUMBERS = [
  [
    "recall",
    "mean recall",
    "Recall of a step: of the k positions whose kept K,V had drifted most before it (drift of K plus that of V), the share that the policy recomputed; k is how many it recomputed, in any layer. Shown: the mean over the steps that recomputed some positions but not all. A policy must also recompute where it wants to predict, so 1 is seldom the aim.",
    (x) => fixed(x.recall ?? NaN, 2),
  ],
  [
    "flips",
    "flips in all",
    "A flip: the likeliest token at a position differs between the step as it ran and an exact pass on the same canvas. Counted over all steps and positions with a prediction.",
    (x) => String(x.flips),
  ],
  [
    "flipSteps",
    "steps with flips",
    "Steps in which at least one prediction's likeliest token differed from the exact one, of all steps looked at.",
    (x) => `${x.flipSteps} / ${x.steps}`,
  ],
];

function mount(host, page) {
  const mark = marker(page);
  let kind = TRUTHS[0],
    drawn = "";
  const invite = h("div", "d2-invitation d2-truth-invite", {});
  const values = {},
    numbers = h(
      "div",
      "d2-numbers",
      {},
      ...NUMBERS.map(([key, label, why]) => {
        values[key] = h("b", "d2-value", { textContent: "–" });
        return h("div", "", {}, values[key], term(page, label, why));
      }),
    );
  const kinds = choice(
    "What the map shows",
    TRUTHS.map((x) => [x.key, x.label]),
    kind.key,
    (v) => {
      kind = TRUTHS.find((x) => x.key === v);
      page.schedule();
    },
  );
  const legend = h("div", "d2-legend"),
    meaning = h("p", "d2-more"),
    ask = promptBar();
  const map = makePlane(page, {
    label: "Steps by positions",
    read: (p, s) => truthReadout(page.run, kind, s, p),
    choose: (p, s) => {
      page.select(p);
      page.goto(s);
    },
    point: (p, s) => page.setHover(p === null ? null : { p, s, lane: page.lane }),
  });
  const last = h("span"),
    steps = h(
      "div",
      "d2-steps",
      { "aria-hidden": "true" },
      h("span", "", { textContent: "1" }),
      h("em", "", { textContent: "step" }),
      last,
    );
  const oracle = makePlane(page, {
    label: "The oracle above, the policy below",
    read: readOracle,
    choose: (p) => page.select(p),
    point: (p) => page.setHover(p === null ? null : { p, s: null, lane: page.lane }),
  });
  oracle.el.classList.add("d2-two");
  const said = h("p", "d2-sentence"),
    marksLegend = h(
      "div",
      "d2-legend",
      {},
      ...MARKS.filter((m) => COLOURS[m.key]).map((m) => mark(`d2-dot-${m.key}`, m.label, m.why)),
    );
  const recall = makeLines(page, {
    title: "recall per step",
    why: NUMBERS[0][2],
    ticks: ["1", "0"],
    format: (v) => fixed(v, 2),
  });
  const flips = makeLines(page, {
    title: "flips per step",
    why: NUMBERS[1][2],
    ticks: ["1", "0"],
    format: (v) => String(v),
  });
  const known = h(
    "div",
    "",
    { hidden: true },
    numbers,
    h(
      "div",
      "d2-head",
      {},
      h("h4", "d2-title", { textContent: "How far the cache is off" }),
      h("div", "d2-tools", {}, kinds),
    ),
    meaning,
    h("div", "d2-look-frame d2-look-over", {}, h("span"), ask),
    h("div", "d2-look-frame", {}, steps, map.el),
    map.said,
    legend,
    h("h4", "d2-title d2-gap", { textContent: "The oracle: what should have been recomputed" }),
    paragraph(
      "d2-more",
      "The oracle knows how far each kept K,V had drifted and would recompute those that drifted most: as many as the policy did. Upper line: the oracle's choice. Lower line: the policy's.",
    ),
    said,
    h(
      "div",
      "d2-look-frame",
      {},
      oracle.el,
      h(
        "div",
        "d2-two-names",
        { "aria-hidden": "true" },
        h("span", "", { textContent: "oracle" }),
        h("span", "", { textContent: "policy" }),
      ),
    ),
    oracle.said,
    marksLegend,
    h("div", "d2-lines", {}, recall.el, flips.el),
  );
  host.append(h("section", "d2-look", { "aria-label": "Truth" }, invite, known));

  invite.append(
    h("p", "d2-invite", { textContent: "How far is the cache from the truth?" }),
    paragraph(
      "d2-more",
      "A probe can run an exact pass without a cache beside every step, on the same canvas. You then see at which positions the kept K,V have drifted, which predictions change because of it, and which positions an all-knowing cache would have recomputed. It costs about twice the time.",
    ),
  );
  const how = h("p", "d2-more"),
    button = h("button", "d2-button", {
      type: "button",
      textContent: "Run again with Truth",
      onclick: () => page.send(`${RUN_WORDS.truth}=1`),
    });
  invite.append(how, button);

  function readOracle(p) {
    const marks = oracleMarks(page.run, page.step),
      at = placeOf(page.run, p);
    if (!marks) return `${at}: nothing to choose in this step`;
    const m = MARKS.find((x) => x.key === marks[p]);
    return `${at}: ${m.label}: ${m.why}`;
  }

  function paintMap(run, dark) {
    const { T, P, records, expected } = run,
      none = pixel(rgb(paper(dark).reused));
    const lut = table((u) =>
      u
        ? colourAt("drift", 0.06 + 0.94 * logShade(kind.of(u), kind.low, kind.high), dark)
        : rgb(paper(dark).reused),
    );
    map.draw(
      T,
      expected,
      (out) => {
        records.forEach((record, s) => {
          const plane = record?.truth?.[kind.key];
          if (!plane) return;
          if (kind.answer) {
            out.fill(none, s * T, s * T + P);
            for (let g = 0; g < plane.length; g++) out[s * T + P + g] = lut[plane[g]];
          } else for (let p = 0; p < T; p++) out[s * T + p] = lut[plane[p]];
        });
      },
      (ctx, w, ht, ratio) => {
        divide(ctx, w, ht, P / T, ratio, dark);
        const size = clamp(Math.min(w / T, ht / expected) * 0.8, 5 * ratio, 11 * ratio);
        for (const record of records)
          for (const p of record?.truth?.flips || []) {
            const x = (w * (p + 0.5)) / T,
              y = (ht * (record.s + 0.5)) / expected;
            for (const [ink, width] of [
              [dark ? "#10141b" : "#ffffff", 3],
              [dark ? "#ffffff" : "#000000", 1.2],
            ]) {
              // a cross that shows on any colour
              ctx.strokeStyle = ink;
              ctx.lineWidth = width * ratio;
              ctx.beginPath();
              ctx.moveTo(x - size / 2, y - size / 2);
              ctx.lineTo(x + size / 2, y + size / 2);
              ctx.moveTo(x - size / 2, y + size / 2);
              ctx.lineTo(x + size / 2, y - size / 2);
              ctx.stroke();
            }
          }
      },
    );
  }

  // hit: filled above and below; missed: a ring above; needless: a bar below.
  function paintOracle(run, step, dark) {
    const marks = oracleMarks(run, step),
      { T, P } = run,
      bare = pixel(rgb(paper(dark).reused)),
      full = pixel(rgb(paper(dark).masked));
    oracle.draw(
      T,
      2,
      (out) => out.fill(marks ? bare : full),
      (ctx, w, ht, ratio) => {
        divide(ctx, w, ht, P / T, ratio, dark);
        (marks || []).forEach((m, p) => {
          const x = (w * p) / T,
            cw = Math.max(w / T - (w / T > 4 * ratio ? ratio : 0), ratio),
            half = ht / 2;
          ctx.fillStyle = ctx.strokeStyle = COLOURS[m] || "";
          if (m === "hit") {
            ctx.fillRect(x, half * 0.12, cw, half * 0.76);
            ctx.fillRect(x, half * 1.12, cw, half * 0.76);
          }
          if (m === "missed") {
            ctx.lineWidth = Math.min(2 * ratio, cw / 2);
            ctx.strokeRect(
              x + ctx.lineWidth / 2,
              half * 0.12 + ctx.lineWidth / 2,
              Math.max(cw - ctx.lineWidth, 0.5),
              half * 0.76 - ctx.lineWidth,
            );
          }
          if (m === "needless") ctx.fillRect(x, half * 1.4, cw, half * 0.2);
        });
      },
    );
    said.textContent = step < 0 ? "" : oracleSentence(run, step);
  }

  function paint() {
    const { run, step, dark } = page;
    if (!run?.key) return;
    const there = hasTruth(run);
    known.hidden = !there;
    invite.hidden = there;
    if (!there) {
      how.textContent = run.start.truth
        ? "Truth is on for this run: its first step is on the way."
        : page.offline
          ? "This run was made without it. In the running app, tick Truth under Canvas."
          : "Tick Truth under Canvas and press Run, or:";
      button.hidden = page.offline || Boolean(run.start.truth);
      return;
    }
    const key = [
      run.key,
      run.records.length,
      run.records.at(-1)?.truth ? 1 : 0,
      run.expected,
      dark,
      kind.key,
    ].join("|");
    if (drawn !== key) {
      drawn = key;
      const sums = truthSums(run),
        n = run.records.length,
        hits = Array.from(run.records, (record) => record?.truth?.recall ?? null),
        counts = Array.from(run.records, (record) => record?.truth?.flips.length ?? null),
        most = Math.max(1, ...counts.map((x) => x ?? 0));
      for (const [name, , , show] of NUMBERS) values[name].textContent = show(sums);
      ask.show(run.P, run.G);
      last.textContent = run.expected;
      meaning.textContent = `${kind.why} A cross marks a flip.`;
      paintMap(run, dark);
      recall.draw(hits, n);
      flips.draw(counts, n, [], { low: 0, high: most, ticks: [String(most), "0"] });
    }
    const scale = [kind.low, Math.sqrt(kind.low * kind.high), kind.high].map(ticksOf);
    fill(legend, `${kind.key}|${dark}`, () => [
      mark(paper(dark).reused, "none", "no difference beyond rounding, or nothing predicted here"),
      colourBar("drift", dark, scale, `${kind.unit} (log scale)`),
      mark("d2-dot-flip", "flip", NUMBERS[1][2]),
    ]);
    paintOracle(run, step, dark);
    recall.follow(step);
    flips.follow(step);
    const p = page.hover?.p ?? page.selected;
    map.follow(p, step);
    oracle.follow(p);
  }

  return {
    paint,
    destroy: () => {
      map.destroy();
      oracle.destroy();
    },
  };
}

RAMPS.drift = {
  ink: true,
  stops: ["#fff3d6", "#fdd49e", "#fca45d", "#ef6548", "#c9302c", "#8c1d40", "#4a1046"],
};
const tab = { key: "truth", title: "Truth", mount };

export { tab };
