/* The transport: where the reader is on the board's clock, and the controls that move there. */
import { lastMoment, liveMoment, momentOf, momentText, nextMoment, stepAt } from "./board.js";
import { POINTS } from "./contract.js";
import { h, iconButton } from "./dom.js";
import { clamp } from "./numbers.js";
import { lampText } from "./sentences.js";

// How fast a replay runs: on the clock of steps, of measured time, of the whole race.
const SPEEDS = {
  step: { picked: 15, options: [5, 15, 30, 60].map((n) => [n, `${n} steps/s`]) },
  ms: {
    picked: 0.25,
    options: [
      [0.1, "0.1× speed"],
      [0.25, "0.25× speed"],
      [1, "as it was"],
      [4, "4× speed"],
    ],
  },
  flops: { picked: 10, options: [5, 10, 20, 40].map((n) => [n, `all in ${n} s`]) },
};

function makeTransport(page, { on }) {
  let at = -1,
    live = true,
    playing = 0,
    clock = null;
  const back = iconButton("back", "Step back"),
    play = iconButton("play", "Play"),
    next = iconButton("next", "Step forward");
  play.classList.add("d2-play");
  const range = h("input", "d2-range", {
    type: "range",
    min: 0,
    max: 0,
    value: 0,
    step: 1,
    "aria-label": "Denoising step",
  });
  const speed = h("select", "d2-speed", { "aria-label": "Replay speed" });
  const liveButton = h(
    "button",
    "d2-live",
    { type: "button", title: "Follow the newest step (End)" },
    h("i", "d2-lamp"),
    h("span", "", { textContent: "live" }),
  );
  const el = h(
    "div",
    "d2-transport",
    { "data-point": POINTS.scrubber },
    back,
    play,
    next,
    range,
    speed,
    liveButton,
  );

  const last = () => lastMoment(page.board);

  function goto(to, follow) {
    stop();
    live = Boolean(follow);
    at = clamp(page.board.clock === "step" ? Math.round(to) : to, 0, Math.max(0, last()));
    page.schedule();
  }

  function stop() {
    cancelAnimationFrame(playing);
    playing = 0;
    play.show("play", "Play");
  }

  // So much of the clock passes in a second of replay.
  const pace = () => Number(speed.value) * (page.board.clock === "ms" ? 1000 : 1);

  function start() {
    if (last() <= 0) return;
    if (at >= last()) at = 0;
    live = false;
    play.show("pause", "Pause");
    let before = performance.now(),
      due = 0;
    const tick = (now) => {
      const passed = Math.max(0, now - before) / 1000,
        end = last();
      before = now;
      due += page.board.clock === "flops" ? (passed * end) / Number(speed.value) : passed * pace();
      const n = page.board.clock === "step" ? Math.floor(due) : due;
      due -= n;
      if (n) {
        at = Math.min(at + n, end);
        page.schedule();
      }
      if (at < end) playing = requestAnimationFrame(tick);
      else {
        stop();
        live = page.board.lanes.some((run) => run.status === "running");
        page.schedule();
      } // caught up with the run: follow it
    };
    playing = requestAnimationFrame(tick);
    page.schedule();
  }

  const toggle = () => {
    if (playing) {
      stop();
      page.schedule();
    } else start();
  };
  const end = () => goto(last(), true);
  const by = (n) => goto(nextMoment(page.board, at, n));
  on(back, "click", () => by(-1));
  on(next, "click", () => by(1));
  on(play, "click", toggle);
  on(liveButton, "click", end);
  on(range, "input", () => goto(Number(range.value)));

  // Another clock, at the same step of the lane in hand.
  function setClock(name) {
    const { board } = page,
      step = stepAt(board, board.lane, at);
    stop();
    board.clock = name;
    at = live ? liveMoment(board) : Math.max(0, momentOf(board, board.lane, step));
    page.schedule();
  }

  function showClock() {
    clock = page.board.clock;
    const { picked, options } = SPEEDS[clock];
    speed.replaceChildren(
      ...options.map(([value, text]) =>
        h("option", "", { value, textContent: text, selected: value === picked }),
      ),
    );
    range.step = clock === "step" ? 1 : "any";
    range.setAttribute(
      "aria-label",
      { step: "Denoising step", ms: "Measured time", flops: "Arithmetic done" }[clock],
    );
  }

  function paint() {
    const { board, run } = page;
    if (clock !== board.clock) showClock();
    range.max = Math.max(0, last());
    range.value = Math.max(0, at);
    const step = `step ${page.step + 1} of ${run.records.length}`;
    range.setAttribute(
      "aria-valuetext",
      clock === "step" ? step : `${momentText(clock, at)}, ${step}`,
    );
    back.disabled = at <= 0;
    next.disabled = at >= last();
    const going = board.lanes.find((lane) => lane.status === "running") ?? run;
    liveButton.classList.toggle("d2-on", live && going.status === "running");
    liveButton.classList.toggle("d2-paused", going.paused);
    liveButton.lastChild.textContent = lampText(going);
    liveButton.setAttribute("aria-pressed", String(live));
  }

  return {
    el,
    paint,
    goto,
    by,
    toggle,
    end,
    stop,
    setClock,
    get at() {
      return at;
    },
    get live() {
      return live;
    },
    follow() {
      if (live) at = liveMoment(page.board);
    },
    reset() {
      stop();
      live = true;
      at = -1;
    },
  };
}

export { makeTransport };
