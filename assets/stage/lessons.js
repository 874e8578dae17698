/* The lessons: a list at the top of the stage, and a card that drives the live page.
 *
 * A lesson is data, made from text files by analysis/lessons.py. A card sets the page up when it is
 * opened, says what to do, and notices when it is done; the reader can always go on, back, or close. */
import { EDIT, LANE_MARKS, RUN_WORDS } from "./contract.js";
import { h } from "./dom.js";
import { explainTerm, setGlossary } from "./glossary.js";
import { totalsAt, writeAt } from "./run.js";

// ---- pure

const OPERATORS = {
  "=": (a, b) => a === b,
  "!=": (a, b) => a !== b,
  "<": (a, b) => a < b,
  "<=": (a, b) => a <= b,
  ">": (a, b) => a > b,
  ">=": (a, b) => a >= b,
};
const NEAR = 1e-9; // sums of shares are not exact

// Whether a test of a card holds: alternatives, each a list of [name, operator, value]. What is
// not known yet fails every comparison.
function holds(until, state) {
  const one = ([name, operator, value]) => {
    const now = state[name];
    if (now === null || now === undefined || Number.isNaN(now)) return false;
    const same = typeof now === "number" && Math.abs(now - value) < NEAR;
    return OPERATORS[operator](same ? value : now, value);
  };
  return until.some((all) => all.every(one));
}

// Share of the answer positions written in either run that hold the same token in both; null: none.
function agreementOf(run, s, first, at) {
  if (!first || run.P !== first.P || run.G !== first.G) return null;
  let both = 0,
    same = 0;
  for (let p = run.P; p < run.T; p++) {
    const a = writeAt(run, p, s),
      b = writeAt(first, p, at);
    if (!a && !b) continue;
    both++;
    if (a && b && a.text === b.text) same++;
  }
  return both ? same / both : null;
}

// The names that a test may use, as they stand now; counted from 1, as on screen.
function lessonState(page) {
  const { board, run, step } = page,
    lanes = board?.lanes || [],
    start = run?.start || {};
  const totals = run?.key ? totalsAt(run, step) : null;
  const state = {
    step: step + 1,
    steps: run?.records.length ?? 0,
    lane: (page.lane ?? 0) + 1,
    lanes: lanes.length,
    branches: lanes.filter((l) => l.branch || l.start?.branch).length,
    tab: page.tab ?? null,
    clock: board?.clock ?? "step",
    selected:
      page.selected === null || page.selected === undefined || page.selected < run.P
        ? null
        : page.selected - run.P + 1,
    status: !run?.key ? "empty" : run.status === "running" && run.paused ? "paused" : run.status,
    policy: start.policy ?? null,
    decoder: start.decoder ?? null,
    block: start.block_length ?? null,
    hit_rate: totals?.hit_rate ?? null,
    flops: totals?.flops_none ? totals.flops / totals.flops_none : null,
    agreement: run?.key
      ? agreementOf(run, step, lanes[0] ?? run, page.stepOf ? page.stepOf(0) : step)
      : null,
  };
  for (const kind of EDIT.owners)
    for (const [name, value] of Object.entries(start.knobs?.[kind] || {}))
      state[`${kind}.${name}`] = Number(value);
  return state;
}

// What the names of a test are now, in words: so that a reader sees how far it is.
const SHARES = new Set(["hit_rate", "agreement"]);
function nowWords(until, state) {
  const names = [...new Set(until.flat().map(([name]) => name))];
  const said = (name) => {
    const now = state[name];
    if (now === null || now === undefined || Number.isNaN(now))
      return name === "selected" ? "no token pinned" : "not yet";
    return SHARES.has(name)
      ? `${Math.round(100 * now)} %`
      : typeof now === "number"
        ? String(Number(now.toFixed(2)))
        : now;
  };
  return names
    .map((name) =>
      name === "selected" && state[name] !== null
        ? `answer position ${said(name)}`
        : name === "selected"
          ? said(name)
          : `${name.replace("policy.", "").replace("decoder.", "").replaceAll("_", " ")} ${said(name)}`,
    )
    .join(", ");
}

// The policy of a lane, as the address writes one: POLICY,KNOB=VALUE/DECODER~EDIT.
const policyOf = (lane) =>
  Object.values(LANE_MARKS).reduce((text, mark) => text.split(mark)[0], lane);

// The policies of the lanes that a query asks for, so that another run on its way is not taken for it.
const policiesAsked = (query) => new URLSearchParams(query).getAll(RUN_WORDS.lane).map(policyOf);

// ---- the page

const KEY = "d2-lessons-done";
const WAITING = "Setting the page up … If it stays so, press Show me again.";

function readDone() {
  try {
    return new Set(JSON.parse(localStorage.getItem(KEY) || "[]"));
  } catch {
    return new Set();
  }
}

function keepDone(done) {
  try {
    localStorage.setItem(KEY, JSON.stringify([...done]));
  } catch {
    /* a page without a memory */
  }
}

// Tokens of a lesson as nodes; text is data, so textContent only.
function nodesOf(tokens) {
  return (tokens || []).map((t) => {
    if (typeof t === "string") return document.createTextNode(t);
    if (t.b) return h("b", "", {}, ...nodesOf(t.b));
    if (t.i) return h("em", "", {}, ...nodesOf(t.i));
    if (t.code) return h("code", "", { textContent: t.code });
    if (t.term) return explainTerm(t.term, t.text);
    return h("a", "", { href: t.href, target: "_blank", rel: "noopener", textContent: t.text });
  });
}

function blockOf(block) {
  if (block.p) return h("p", "", {}, ...nodesOf(block.p));
  const kind = block.ul ? "ul" : "ol";
  return h(kind, "", {}, ...block[kind].map((item) => h("li", "", {}, ...nodesOf(item))));
}

/* Put the lessons at the top of `host`; view {lesson, card} opens one at once (card from 1).
 * -> { paint(), open(key, card), close(), destroy() }; paint is called after anything changed. */
function mountLessons(host, page, lessons, view = {}) {
  const done = readDone(),
    number = (n) => Math.max(1, Math.floor(Number(n)) || 1);
  let lesson = null,
    at = 0,
    solved = false,
    todo = null,
    ran = null,
    ring = null,
    wanted = null,
    folded = false,
    seen = "";

  // ---- the bar and the list
  const count = h("span", "d2-lessons-count"),
    list = h("ol", "d2-lessons-list", { hidden: true });
  const opener = h(
    "button",
    "d2-lessons-open",
    { type: "button", "aria-expanded": "false" },
    h("b", "", { textContent: "Lessons" }),
    count,
  );
  const bar = h("nav", "d2-lessons", { "aria-label": "Lessons" }, opener, list);
  const rows = lessons.map((one) => {
    const mark = h("span", "d2-lessons-mark");
    const row = h(
      "button",
      "d2-lessons-row",
      { type: "button" },
      mark,
      h(
        "span",
        "",
        {},
        h("b", "", { textContent: one.title }),
        h("span", "d2-lessons-more", { textContent: ` ${one.summary} ${one.minutes} minutes.` }),
      ),
    );
    row.addEventListener("click", () => {
      start(lessons.indexOf(one), 0);
      title.focus();
    });
    list.append(h("li", "", {}, row));
    return { key: one.key, mark };
  });
  opener.addEventListener("click", () => fold(!list.hidden));

  function fold(away) {
    list.hidden = away;
    opener.setAttribute("aria-expanded", String(!away));
  }

  function paintList() {
    const n = lessons.filter((l) => done.has(l.key)).length;
    count.textContent = n
      ? `${n} of ${lessons.length} done`
      : `New here? ${lessons.length} short ones, on the live page.`;
    for (const { key, mark } of rows) {
      mark.textContent = done.has(key) ? "✓" : "";
      mark.classList.toggle("d2-on", done.has(key));
      mark.setAttribute("role", "img");
      mark.setAttribute("aria-label", done.has(key) ? "done" : "not done yet");
    }
  }

  // ---- the card
  const where = h("span", "d2-coach-where"),
    title = h("h3", "d2-coach-title", { tabIndex: -1 });
  const words = h("div", "d2-coach-words"),
    task = h("div", "d2-coach-task", { hidden: true }),
    now = h("p", "d2-coach-now");
  const said = h("p", "d2-coach-said", { role: "status" }),
    hint = h("p", "d2-coach-hint", { hidden: true });
  const button = (text, onclick, cls = "") =>
    h("button", `d2-coach-button ${cls}`, { type: "button", textContent: text, onclick });
  const back = button("Back", () => go(at - 1)),
    next = button("Next", () => go(at + 1), "d2-main");
  const again = button("Show me again", () => perform(true)),
    ask = button("Hint", () => {
      hint.hidden = !hint.hidden;
      ask.setAttribute("aria-expanded", String(!hint.hidden));
    });
  const less = h("button", "d2-coach-icon", {
    type: "button",
    "aria-label": "Fold the card away",
    onclick: () => {
      folded = !folded;
      paintFold();
    },
  });
  const shut = h("button", "d2-coach-icon", {
    type: "button",
    textContent: "×",
    "aria-label": "Close the lesson",
    title: "Close the lesson",
    onclick: () => close(),
  });
  const live = h("div", "d2-coach-live", { "aria-live": "polite" }, title, words, task);
  const body = h(
    "div",
    "d2-coach-body",
    { tabIndex: 0, role: "group", "aria-label": "The card" },
    live,
    now,
    said,
    hint,
  );
  const card = h(
    "section",
    "d2-coach",
    { popover: "manual", hidden: true, "aria-label": "Lesson" },
    h("div", "d2-coach-head", {}, where, less, shut),
    body,
    h("div", "d2-coach-foot", {}, back, again, ask, next),
  );
  card.addEventListener("keydown", (e) => {
    if (e.key === "Escape") {
      e.stopPropagation();
      close();
    }
  });
  bar.append(card);
  host.prepend(bar);

  function paintFold() {
    card.classList.toggle("d2-folded", folded);
    less.textContent = folded ? "+" : "–";
    less.setAttribute("aria-expanded", String(!folded));
    less.setAttribute("aria-label", folded ? "Show the card" : "Fold the card away");
    less.title = less.getAttribute("aria-label");
  }

  function start(which, first) {
    lesson = lessons[which];
    fold(true);
    folded = false;
    card.hidden = false;
    if (card.showPopover && !card.matches(":popover-open")) card.showPopover();
    go(first);
  }

  function close() {
    if (!lesson) return;
    lesson = null;
    todo = null;
    point(null);
    if (card.hidePopover && card.matches(":popover-open")) card.hidePopover();
    card.hidden = true;
    opener.focus();
  }

  function go(to) {
    if (to >= lesson.cards.length) {
      close();
      fold(false);
      return;
    }
    at = Math.max(0, to);
    const one = lesson.cards[at];
    solved = false;
    seen = "";
    where.textContent = `${lesson.title} · ${at + 1} of ${lesson.cards.length}`;
    title.textContent = one.title;
    words.replaceChildren(...one.blocks.map(blockOf));
    task.hidden = !one.do;
    task.replaceChildren(
      h("b", "", { textContent: at === lesson.cards.length - 1 ? "Question " : "Your turn " }),
      ...nodesOf(one.do),
    );
    hint.replaceChildren(...nodesOf(one.hint));
    hint.hidden = true;
    ask.hidden = !one.hint;
    ask.setAttribute("aria-expanded", "false");
    again.hidden = !one.acts.length;
    back.disabled = at === 0;
    said.textContent = now.textContent = "";
    body.scrollTop = 0;
    paintFold();
    paintNext();
    perform(false);
  }

  function paintNext() {
    const last = at === lesson.cards.length - 1,
      open = lesson.cards[at].until && !solved;
    next.textContent = last ? (open ? "Close" : "Finish") : open ? "Skip" : "Next";
    next.classList.toggle("d2-main", !open);
  }

  // ---- what a card does to the page
  const runs = () => (page.board?.lanes || []).map((l) => l.key).join();

  function perform(force) {
    const acts = Object.fromEntries(lesson.cards[at].acts);
    point(null);
    wanted = acts.point ?? null;
    todo = { ...acts, before: null, policies: [] };
    if (acts.run && page.offline)
      said.textContent =
        "This card needs the running app: here nothing can be run, so read on with the run on view.";
    else if (acts.run && !force && ran?.query === acts.run && (!ran.runs || ran.runs === runs())) {
      // on view, or coming
      if (!ran.runs) Object.assign(todo, { before: ran.before, policies: policiesAsked(acts.run) });
    } else if (acts.run) {
      ran = { query: acts.run, before: runs(), runs: null };
      Object.assign(todo, { before: ran.before, policies: policiesAsked(acts.run) });
      const mine = todo;
      Promise.resolve(page.send(acts.run)).catch((error) => {
        if (todo === mine) {
          said.textContent = String(error?.message || error);
          todo = ran = null;
          page.schedule?.();
        }
      });
    }
    if (acts.tab) page.show(acts.tab);
    page.schedule?.();
  }

  // As the run comes in: lane and step as soon as they are there. True when nothing is left to do.
  function settle() {
    if (!todo) return true;
    if (todo.before !== null && runs() === todo.before) return false; // the new run has not begun
    const lanes = page.board?.lanes || [],
      here = (l) => l.status !== "running" || l.records.length >= (todo.step ?? 0);
    if (todo.policies.some((name, i) => lanes[i]?.start.policy !== name) || !lanes.every(here))
      return false;
    if (todo.before !== null) ran.runs = runs();
    const { lane, step, clock, tab } = todo;
    todo = null;
    if (tab) page.show(tab); // again: a board of several lanes opens a tab of its own
    if (clock) page.setClock?.(clock);
    if (lane && lane <= lanes.length) page.setLane(lane - 1);
    if (step && page.run?.key) page.goto(step - 1);
    page.schedule?.();
    return false; // all of it is seen on the next frame
  }

  function anchor(name) {
    const root = host.closest(".d2-stage") || host;
    const found = name.startsWith("#")
      ? [document.getElementById(name.slice(1))]
      : [...root.querySelectorAll(`[data-point="${name}"]`)];
    return found.find((el) => el && el.getClientRects().length) || null;
  }

  function point(el) {
    if (ring === el) return;
    ring?.classList.remove("d2-ring");
    if (ring) ring.style.scrollMarginBottom = "";
    ring = el;
    if (!el) return;
    el.classList.add("d2-ring");
    const box = el.getBoundingClientRect(); // the card keeps off it: on the other side, or below
    card.classList.toggle("d2-aside", box.left + box.width / 2 > innerWidth / 2);
    el.style.scrollMarginBottom = `${card.offsetHeight + 32}px`;
    const calm = globalThis.matchMedia("(prefers-reduced-motion: reduce)").matches;
    el.scrollIntoView({ block: "nearest", inline: "nearest", behavior: calm ? "auto" : "smooth" });
  }

  function check() {
    const { until } = lesson.cards[at],
      state = until && lessonState(page);
    const so = until && !solved ? `Now: ${nowWords(until, state)}.` : "";
    if (so !== seen) now.textContent = seen = so;
    if (!until || solved || !holds(until, state)) return;
    solved = true;
    now.textContent = seen = "";
    const last = at === lesson.cards.length - 1;
    said.textContent = last ? "✓ Right. That was the last card." : "✓ That is it. Go on with Next.";
    if (last) {
      done.add(lesson.key);
      keepDone(done);
      paintList();
    }
    paintNext();
  }

  function paint() {
    if (!lesson) return;
    const settled = settle();
    if (settled && wanted && !ring?.isConnected) {
      const el = anchor(wanted);
      if (el) point(el);
    }
    if (ring && !ring.classList.contains("d2-ring")) ring.classList.add("d2-ring");
    if (settled) check();
    else if (todo && seen !== WAITING) now.textContent = seen = WAITING;
  }

  function open(key, first) {
    const which = lessons.findIndex((l) => l.key === key);
    if (which < 0) return false;
    start(which, Math.min(number(first), lessons[which].cards.length) - 1);
    return true;
  }

  paintList();
  // on the next frame: what the page opens with is on the stage then, and not taken for the card's run
  const opening = view.lesson ? requestAnimationFrame(() => open(view.lesson, view.card)) : 0;
  return {
    paint,
    open,
    close,
    destroy() {
      cancelAnimationFrame(opening);
      point(null);
      lesson = null;
      bar.remove();
    },
  };
}

// The stage mounts every part once; the lessons of this page and the words of its glossary.
function part(page) {
  const { lessons, glossary, view } = page.options;
  if (glossary) setGlossary(glossary);
  if (!lessons?.length) return null;
  const player = mountLessons(
    page.root.querySelector(".d2-inner") ?? page.root,
    page,
    lessons,
    view,
  );
  page.on(page.root.parentNode, "d2:paint", player.paint);
  return player;
}

export { part, holds, agreementOf, lessonState, nowWords, policiesAsked, mountLessons };
