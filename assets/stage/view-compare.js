/* The tab Compare: every lane in a strip of its own, on one clock and one position axis; and the race. */
import { differencesAt, firstDivergence, momentText, placeIn, raceAt, stepsAt } from "./board.js";
import { chipEvents } from "./chips.js";
import { css, MASKED_NOW, PAPER, rgb, WRITTEN_NOW } from "./colours.js";
import { POINTS } from "./contract.js";
import { choice, colourBar, fitCanvas, h, swatch } from "./dom.js";
import { worded } from "./glossary.js";
import { drawRow, makePlane, resetStore, showMap } from "./maps.js";
import { clamp, plural } from "./numbers.js";
import { MAPS, tables } from "./pixels.js";
import { reasonsIn, reasonsOf } from "./reasons.js";
import { hitRateSoFar, totalsAt, writeAt } from "./run.js";
import { captions, formatTotals, noteOf, STATS, visible } from "./sentences.js";

const CLOCK_WORDS = [
  ["step", "steps"],
  ["ms", "milliseconds"],
  ["flops", "FLOPs"],
];
const CLOCK_HELP =
  "What the lanes have in common at one place of the slider. Steps: the same denoising step. Milliseconds: the same measured time since each run began, as if they had started together. FLOPs: the same amount of arithmetic.";
const FACTS = [
  ["step", "step"],
  ["tps", "tokens / s"],
  ["hit", "cache hits"],
  ["flops", "FLOPs vs no cache"],
];

const MANY = 96,
  BLOCK = 32; // positions
const TOKEN_MS = 4,
  TOKENS_AT_LEAST = 16; // drawing time of all answers in one frame; a far jump takes a few frames
const REST_MS = 150;
const HOLE = "\u2002\u200b"; // a mask is an en space with a pattern behind it; a line may break after it

const listed = (names) =>
  names.length < 2 ? names.join("") : `${names.slice(0, -1).join(", ")} and ${names.at(-1)}`;

// Who leads at this moment, in a sentence.
function raceWords(board, race, moment) {
  if (board.lanes.length < 2) return "";
  const when =
    board.clock === "step"
      ? `Step ${Math.max(0, Math.round(moment)) + 1}`
      : `${momentText(board.clock, moment)} ${board.clock === "ms" ? "after the start" : "spent"}`;
  const who = `lane${race.leads.length > 1 ? "s" : ""} ${listed(race.leads.map((i) => i + 1))}`;
  if (!race.leads.length) return `${when}: nothing is written yet.`;
  const at = race.lanes[race.leads[0]];
  const all = race.leads.length === board.lanes.length;
  if (race.over && all)
    return `${when}: all lanes finished at ${momentText(board.clock, at.finished)}.`;
  if (race.over)
    return `${when}: ${who} finished first, at ${momentText(board.clock, at.finished)}.`;
  return all
    ? `${when}: level, ${plural(at.written, "token")} each.`
    : `${when}: ${who} ${race.leads.length > 1 ? "lead" : "leads"} with ${plural(at.written, "token")}.`;
}

// How lane i stands to lane 1, in a sentence.
function differenceWords(board, i, steps) {
  if (!i) return "The other lanes are compared with this one.";
  const at = firstDivergence(board, i),
    { tokens, order } = differencesAt(board, i, steps);
  const running = board.lanes.some((lane) => lane.status === "running");
  const from =
    at === null
      ? `Writes the same as lane 1${running ? " so far" : ""}.`
      : `Leaves lane 1 at step ${at + 1}.`;
  if (at === null) return from;
  return `${from} Here ${plural(tokens, "token")} ${tokens === 1 ? "differs" : "differ"} (≠), ${order} ${order === 1 ? "was" : "were"} written at another step.`;
}

function makeStrip(page, index) {
  const facts = {},
    badge = h("b", "d2-badge", { textContent: index + 1 }),
    name = h("span", "d2-lane-name");
  const list = h(
    "div",
    "d2-facts",
    {},
    ...FACTS.map(([key, label]) =>
      h(
        "span",
        "d2-fact",
        { title: STATS.find((s) => s[0] === key)[2] },
        (facts[key] = h("b")),
        " ",
        label,
      ),
    ),
  );
  const bar = h("i"),
    progress = h("span", "d2-progress", {}, bar),
    told = h("span", "d2-told"),
    difference = h("p", "d2-more d2-difference");
  const tokens = h("div", "d2-tokens", {
    role: "listbox",
    "aria-orientation": "horizontal",
    tabIndex: -1,
  });
  const absent = h("p", "d2-absent", { hidden: true }),
    mapBox = h("div", "d2-lane-map");
  const diverge = h("div", "d2-diverge", { hidden: true }, h("span", "", { textContent: "≠" })),
    branch = h("div", "d2-branch", { hidden: true }, h("span", "", { textContent: "what if" }));
  const note = h("p", "d2-note", { hidden: true });
  const el = h(
    "section",
    "d2-lane",
    {},
    h(
      "div",
      "d2-lane-head",
      {},
      h("h4", "d2-title", {}, badge, name),
      list,
      h("div", "d2-racing", {}, progress, told),
    ),
    h("div", "d2-lane-body", {}, h("div", "d2-lane-text", {}, tokens, difference, note), mapBox),
  );
  const lane = {
    index,
    el,
    map: null,
    run: null,
    spans: [],
    was: [],
    marked: null,
    drawn: 0,
    drawnFor: "",
    dirty: true,
    resized: true,
    visible: true,
  };
  chipEvents(tokens, page, () => index);

  function cellAt(e) {
    const box = lane.map.plane.getBoundingClientRect(),
      run = page.board.lanes[index];
    const p = Math.floor(((e.clientX - box.left) / box.width) * run.T),
      s = Math.floor(((e.clientY - box.top) / box.height) * lane.rows);
    return {
      p: clamp(p, 0, run.T - 1),
      s: clamp(s, 0, Math.max(0, run.records.length - 1)),
      lane: index,
      chip: null,
    };
  }

  function setMap(spec) {
    lane.map = makePlane(spec);
    lane.drawnFor = "";
    lane.resized = true;
    const { plane } = lane.map,
      point = (e) => page.setHover(cellAt(e));
    plane.append(diverge, branch);
    for (const type of ["pointermove", "pointerdown"]) plane.addEventListener(type, point);
    plane.addEventListener("pointerleave", (e) => {
      if (e.pointerType !== "touch") page.setHover(null);
    });
    plane.addEventListener("click", (e) => page.gotoIn(index, cellAt(e).s));
    mapBox.replaceChildren(plane, absent);
  }

  function build(run) {
    lane.run = run;
    name.textContent = run.name;
    el.setAttribute("aria-label", `Lane ${index + 1}: ${run.name}`);
    tokens.setAttribute("aria-label", `Answer of lane ${index + 1}, by position`);
    lane.spans = Array.from({ length: run.G }, (_, g) =>
      h("span", "d2-token d2-hole", {
        role: "option",
        "aria-selected": "false",
        "aria-label": "masked",
        textContent: HOLE,
        tabIndex: g ? -1 : 0,
        "data-p": run.P + g,
      }),
    );
    lane.was = new Array(run.G).fill(" ");
    lane.marked = null;
    const size = run.G > MANY ? BLOCK : run.G; // blocks of their own: a change lays out one of them, not the whole answer
    tokens.replaceChildren(
      ...Array.from({ length: Math.ceil(run.G / size) }, (_, k) =>
        h(
          "div",
          "d2-tokenblock",
          {
            role: "group",
            "aria-label": `positions ${k * size + 1} to ${Math.min(run.G, (k + 1) * size)}`,
          },
          ...lane.spans.slice(k * size, (k + 1) * size),
        ),
      ),
    );
    lane.drawnFor = "";
    el.classList.toggle("d2-many", run.G > MANY);
    tokens.style.setProperty("--d2-room", `${clamp(Math.ceil(run.G / 8) * 21, 112, 252)}px`); // for all its words, kept free from the start
  }

  // Only tokens whose look has changed are touched. False: the time is up, the rest comes with the next frame.
  function paintTokens(steps, until) {
    let changed = 0;
    const { board } = page,
      { run } = lane,
      first = board.lanes[0],
      step = steps[index],
      same = index === 0 || (first.P === run.P && first.T === run.T);
    for (let g = 0; g < run.G; g++) {
      const p = run.P + g,
        write = writeAt(run, p, step),
        q = same ? p : placeIn(run, first, p);
      const its = write && index && q !== null ? writeAt(first, q, steps[0]) : null;
      const picked = page.selected === p ? "p" : " ";
      const is = !write
        ? picked
        : `${picked}${its && its.text !== write.text ? "≠" : " "}${write.s === step ? "n" : "s"}${write.text}`;
      if (lane.was[g] === is) continue;
      if (++changed > TOKENS_AT_LEAST && performance.now() > until) return false;
      lane.was[g] = is;
      const span = lane.spans[g],
        eos = write && run.eos.has(write.text);
      span.className = `d2-token${!write ? " d2-hole" : write.s === step ? " d2-fresh" : ""}${is[1] === "≠" ? " d2-differs" : ""}${eos ? " d2-eos" : ""}${page.selected === p ? " d2-picked" : ""}`;
      span.ariaLabel = write ? null : "masked";
      span.ariaSelected = String(picked === "p");
      span.textContent = !write ? HOLE : eos ? "end" : visible(write.text);
    }
    return true;
  }

  function paintMap(rows, dark, colours, wanted) {
    const { run } = lane,
      { board, dark: now } = page;
    if (lane.map?.spec !== wanted) setMap(wanted);
    const { map } = lane,
      key = `${run.key}|${now}|${rows}`,
      none = wanted.key === "rollout" && !run.start.rollout;
    map.plane.hidden = none;
    absent.hidden = !none;
    if (none) {
      absent.textContent = `${run.start.policy || "This policy"} makes no attention map; d2 does.`;
      return;
    }
    lane.rows = rows;
    if (lane.resized && fitCanvas(map.canvas)) lane.dirty = true;
    lane.resized = false;
    if (lane.drawnFor !== key) {
      lane.drawnFor = key;
      lane.drawn = 0;
      lane.dirty = true;
      resetStore(map, run.T, rows);
      for (const [name, value] of [
        ["rows", rows],
        ["split", run.P / run.T],
        ["cols", run.T],
      ])
        mapBox.style.setProperty(`--d2-${name}`, value);
    }
    if (lane.drawn < run.records.length) lane.dirty = true;
    for (; lane.drawn < run.records.length; lane.drawn++) drawRow(map, run, lane.drawn, colours);
    if (lane.dirty) showMap(map, run, 0, run.T, rows);
    lane.dirty = false;
    const at = firstDivergence(board, index);
    diverge.hidden = at === null;
    branch.hidden = !run.branch;
    diverge.style.top = `${((at ?? 0) / rows) * 100}%`;
    branch.style.top = `${(((run.branch?.step ?? 0) + 1) / rows) * 100}%`;
    map.plane.lastChild.hidden = branch.hidden;
  }

  lane.paint = ({ steps, race, rows, colours, spec, until, all }) => {
    const { board } = page,
      run = board.lanes[index],
      step = steps[index],
      mine = race.lanes[index];
    if (lane.run !== run) build(run);
    const totals = formatTotals(totalsAt(run, step) || { hit_rate: hitRateSoFar(run, step) });
    facts.step.textContent = `${step + 1} / ${run.records.length}`;
    for (const key of ["tps", "hit", "flops"]) facts[key].textContent = totals[key];
    bar.style.width = `${mine.of ? (100 * mine.written) / mine.of : 0}%`;
    const leads = race.leads.includes(index) && race.leads.length < board.lanes.length; // level: none stands out
    const end =
      mine.finished === null
        ? ""
        : mine.status === "done"
          ? `, finished at ${momentText(board.clock, mine.finished)}`
          : `, ${mine.status}`;
    told.textContent = `${mine.written} of ${mine.of} positions written${end}${leads ? (race.over ? " · first" : " · leads") : ""}`;
    el.classList.toggle("d2-leads", leads);
    el.classList.toggle("d2-few", board.lanes.length <= 3);
    el.classList.toggle("d2-inhand", board.lane === index && board.lanes.length > 1);
    if (!lane.visible && !all) return; // off the screen: the rest waits until nothing else is to be drawn
    difference.textContent = board.lanes.length > 1 ? differenceWords(board, index, steps) : "";
    const said = noteOf(run, step);
    note.textContent = said;
    note.hidden = !said;
    if (!paintTokens(steps, until)) page.schedule();
    paintMap(rows, page.dark, colours, spec);
    mapBox.style.setProperty("--d2-step", step); // on the map alone: what is set on the lane would restyle all of its tokens
    mapBox.style.setProperty("--d2-got", run.records.length);
    paintHover();
  };

  function paintHover() {
    const { hover, board } = page,
      p =
        hover && board.lanes[hover.lane]
          ? placeIn(board.lanes[hover.lane], lane.run, hover.p)
          : null;
    if (lane.marked !== p) {
      lane.spans[lane.marked - lane.run.P]?.classList.remove("d2-marked");
      lane.spans[p - lane.run.P]?.classList.add("d2-marked");
      lane.marked = p;
      mapBox.classList.toggle("d2-pointed", p !== null);
      if (p !== null) mapBox.style.setProperty("--d2-col", p);
    }
  }
  return lane;
}

// Comparisons that tell a story, as the app offers them: a click makes its lanes.
function stories(page) {
  const presets = page.offline ? [] : (page.options.presets ?? []);
  if (!presets.length) return [];
  return [
    h(
      "section",
      "d2-stories",
      { "aria-label": "Comparisons to start from" },
      h("h4", "d2-title", { textContent: "Comparisons to start from" }),
      h(
        "ul",
        "",
        {},
        ...presets.map(({ title, story, query }) =>
          h(
            "li",
            "",
            {},
            h(
              "button",
              "d2-story",
              { type: "button", onclick: () => page.send(query) },
              h("b", "", { textContent: title }),
              h("span", "d2-more", { textContent: story ?? "" }),
            ),
          ),
        ),
      ),
    ),
  ];
}

function mount(host, page) {
  let spec = MAPS[0],
    lanes = [],
    colours = null,
    coloursFor = "",
    legendFor = "",
    clockFor = "step";
  let rest = false,
    resting = 0,
    restsAt = "",
    whole = false; // when the clock rests, lanes off the screen are drawn too
  const more = h("p", "d2-more d2-compare-caption"),
    legend = h("div", "d2-legend"),
    leader = h("p", "d2-sentence d2-leader", { role: "status" });
  const maps = choice(
    "Map of every lane",
    MAPS.map((m) => [m.key, m.short]),
    spec.key,
    (key) => {
      spec = MAPS.find((m) => m.key === key);
      page.schedule();
    },
  );
  const clocks = choice("Clock", CLOCK_WORDS, page.board.clock, (name) => page.setClock(name));
  clocks.dataset.point = POINTS.clock;
  const clockLabel = page.explained(
    h("button", "d2-label", { type: "button", textContent: "clock" }),
    CLOCK_HELP,
  );
  const invite = h(
    "div",
    "d2-invitation",
    {},
    h("p", "d2-invite", { textContent: "One lane so far." }),
    h(
      "p",
      "d2-more",
      {},
      ...worded(
        'Add a second lane to compare: on the left, choose another policy or other knobs and run it as another lane, or open "Side by side". All lanes run on the same prompt and seed, under one slider.',
      ),
    ),
    ...stories(page),
  );
  const strips = h("div", "d2-strips");
  host.append(
    h(
      "div",
      "d2-head d2-compare-head",
      {},
      h("div", "d2-pair", {}, h("span", "d2-label-plain", { textContent: "map" }), maps),
      h("div", "d2-pair", {}, clockLabel, clocks),
    ),
    leader,
    more,
    legend,
    strips,
    invite,
  );

  const seen = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        const lane = lanes.find((other) => other.el === entry.target);
        if (lane) lane.visible = entry.isIntersecting;
      }
      page.schedule();
    },
    { rootMargin: "50px" },
  );
  const sizes = new ResizeObserver(() => {
    for (const lane of lanes) lane.resized = true;
    page.schedule();
  });
  sizes.observe(strips);

  function setLanes(n) {
    if (lanes.length === n) return;
    for (const lane of lanes.splice(n)) {
      seen.unobserve(lane.el);
      lane.el.remove();
    }
    while (lanes.length < n) {
      const lane = makeStrip(page, lanes.length);
      lanes.push(lane);
      strips.append(lane.el);
      seen.observe(lane.el);
    }
  }

  function paintLegend(board, rows) {
    const { dark } = page,
      paper = PAPER[dark ? "dark" : "light"],
      first = board.lanes[0];
    let bits = 0;
    if (spec.key === "cache")
      for (const run of board.lanes) {
        for (run.bitsUpTo ??= 0, run.bits ??= 0; run.bitsUpTo < run.records.length; run.bitsUpTo++)
          for (const byte of run.records[run.bitsUpTo]?.y || []) run.bits |= byte;
        bits |= run.bits;
      }
    const key = `${spec.key}|${dark}|${rows}|${bits}|${board.key}|${board.lanes.length}`;
    if (legendFor === key) return;
    legendFor = key;
    const policies = new Set(board.lanes.map((run) => run.start.policy)),
      there = new Set(["reused", ...reasonsIn(bits)]);
    const reasons = policies.size === 1 ? first.reasons : reasonsOf({});
    legend.replaceChildren(
      ...{
        cache: () =>
          reasons
            .filter((r) => there.has(r.key))
            .map((r) => swatch(r.colour ?? paper.reused, r.label)),
        density: () => [
          colourBar("density", dark, ["0", "0.5", "1"], "share of the neighbourhood that is known"),
        ],
        rollout: () => [
          colourBar(
            "rollout",
            dark,
            ["1/16", "1/2", "4", "32"],
            "× the mean mass of a position (log scale)",
          ),
        ],
        order: () => [
          swatch(css(rgb(paper.masked)), "masked"),
          swatch(WRITTEN_NOW, "written in this step"),
          ...(board.lanes.some((run) => run.again)
            ? [swatch(MASKED_NOW, "masked again in this step")]
            : []),
          colourBar("order", dark, ["1", String(rows)], "step of writing"),
        ],
      }[spec.key](),
    );
    const text =
      policies.size === 1
        ? captions[spec.key](first.start)
        : {
            cache:
              "Grey: reused from the cache. A coloured position was computed again in this step; the colour says why.",
            density:
              "How much of a position's neighbourhood is already known, nearer neighbours counting more.",
            rollout: "Where attention leads, followed through all layers of this step.",
            order: "When each token was written.",
          }[spec.key];
    more.replaceChildren(...worded(`${text} Time runs downwards; click a map to go to that step.`));
  }

  function paint() {
    const { board, moment } = page,
      many = board.lanes.length > 1;
    setLanes(board.lanes.length);
    if (clockFor !== board.clock) {
      clockFor = board.clock;
      clocks.mark(board.clock);
    }
    const steps = stepsAt(board, moment),
      race = raceAt(board, moment),
      rows = Math.max(...board.lanes.map((run) => run.expected));
    if (coloursFor !== `${page.dark}|${rows}`) {
      coloursFor = `${page.dark}|${rows}`;
      colours = tables(page.dark, rows);
    }
    invite.hidden = many;
    const said = raceWords(board, race, moment);
    leader.textContent = said;
    leader.hidden = !many;
    paintLegend(board, rows);
    const key = [steps, spec.key, page.dark, ...board.lanes.map((run) => run.records.length)].join(
      "|",
    );
    if (key !== restsAt) {
      restsAt = key;
      rest = false;
      clearTimeout(resting);
      resting = setTimeout(() => {
        rest = true;
        page.schedule();
      }, REST_MS);
    }
    const all = whole || rest,
      until = whole ? Infinity : performance.now() + TOKEN_MS;
    for (const lane of lanes) lane.paint({ steps, race, rows, colours, spec, until, all });
  }

  function drawAll() {
    whole = true;
    try {
      paint();
    } finally {
      whole = false;
    }
  }

  return {
    paint,
    drawAll,
    destroy() {
      clearTimeout(resting);
      seen.disconnect();
      sizes.disconnect();
    },
  };
}

const tab = { key: "compare", title: "Compare", mount };

export { tab, raceWords, differenceWords };
