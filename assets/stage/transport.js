/* The transport: where the reader is on the board's clock, and the controls that move there. */
import { lastMoment, liveMoment, momentOf, momentText, nextMoment, stepAt } from "./board.js";
import { POINTS } from "./contract.js";
import { h, iconButton } from "./dom.js";
import { clamp } from "./numbers.js";
import { lampText } from "./sentences.js";

// How fast a replay runs: on the clock of steps, of measured time, of the whole race.
const SPEEDS = {
  step: {
    picked: 15,
    options: [1, 2, 5, 15, 30, 60].map((n) => [n, n === 1 ? "1 step/s" : `${n} steps/s`]),
  },
  ms: {
    picked: 0.25,
    options: [
      [0.1, "0.1× speed"],
      [0.25, "0.25× speed"],
      [1, "real time"],
      [4, "4× speed"],
    ],
  },
  flops: { picked: 10, options: [5, 10, 20, 40].map((n) => [n, `all in ${n} s`]) },
};
const SLOW = 2; // steps per second of a run that plays by itself
const SOON = 0.6; // of its first step that is over already: it moves as soon as it is seen
const RANGE_LABELS = { step: "Denoising step", ms: "Measured time", flops: "Arithmetic done" };

class Transport {
  constructor(page, { on }) {
    this.page = page;
    this.at = -1; // the current moment
    this.live = true; // whether it follows the newest step
    this.playing = 0; // the frame that goes on with the replay; 0: none
    this.clock = null; // that the controls are made for
    this.build();
    this.listen(on);
  }

  build() {
    this.back = iconButton("back", "Step back");
    this.play = iconButton("play", "Play");
    this.next = iconButton("next", "Step forward");
    this.play.classList.add("d2-play");
    this.range = h("input", "d2-range", {
      type: "range",
      min: 0,
      max: 0,
      value: 0,
      step: 1,
      "aria-label": RANGE_LABELS.step,
    });
    this.speed = h("select", "d2-speed", { "aria-label": "Replay speed" });
    this.lamp = h(
      "button",
      "d2-live",
      { type: "button", title: "Follow the newest step (End)" },
      h("i", "d2-lamp"),
      h("span", "", { textContent: "live" }),
    );
    this.halt = iconButton("stop", "End the run here");
    const { back, play, next, halt, range, speed, lamp } = this,
      point = { "data-point": POINTS.scrubber };
    this.el = h("div", "d2-transport", point, back, play, next, halt, range, speed, lamp);
  }

  listen(on) {
    on(this.back, "click", () => this.by(-1));
    on(this.next, "click", () => this.forward());
    on(this.halt, "click", () => this.page.press("stop"));
    on(this.play, "click", () => this.toggle());
    on(this.lamp, "click", () => this.end());
    on(this.range, "input", () => this.goto(Number(this.range.value)));
  }

  // ---- moving

  last() {
    return lastMoment(this.page.board);
  }

  goto(to, follow) {
    const { board } = this.page;
    this.stop();
    this.live = Boolean(follow);
    this.at = clamp(board.clock === "step" ? Math.round(to) : to, 0, Math.max(0, this.last()));
    this.page.schedule();
  }

  by(n) {
    this.goto(nextMoment(this.page.board, this.at, n));
  }

  // At the newest step of a run that is paused, one more is made.
  forward() {
    if (this.going?.paused && this.at >= this.last()) {
      this.live = true;
      this.page.press("step");
    } else this.by(1);
  }

  end() {
    this.goto(this.last(), true);
  }

  // A lane that is not at its end and can be told what to do; undefined: there is none.
  get going() {
    const { board, presses } = this.page;
    return presses ? board.lanes.find((lane) => lane.status === "running") : undefined;
  }

  // Whether a run is being watched while it is made.
  get running() {
    return this.live && Boolean(this.going) && !this.going.paused;
  }

  // Called before each frame is painted.
  follow() {
    if (this.live) this.at = liveMoment(this.page.board);
  }

  reset() {
    this.stop();
    this.live = true;
    this.at = -1;
  }

  // Another clock, at the same step of the current lane.
  setClock(name) {
    const { board } = this.page,
      step = stepAt(board, board.lane, this.at);
    this.stop();
    board.clock = name;
    this.at = this.live ? liveMoment(board) : Math.max(0, momentOf(board, board.lane, step));
    this.page.schedule();
  }

  // ---- replay

  // A run that is being made is paused and goes on; one that was made is played again.
  toggle() {
    if (this.running) this.page.press("pause");
    else if (this.playing) this.stop();
    else if (this.going?.paused && this.at >= this.last()) {
      this.live = true;
      this.page.press("resume");
    } else this.start();
    this.page.schedule();
  }

  start() {
    if (this.last() <= 0) return;
    if (this.at >= this.last()) this.at = 0;
    this.live = false;
    this.tickedAt = performance.now();
    this.due = 0; // of the clock, not yet shown
    this.playing = requestAnimationFrame((now) => this.tick(now));
    this.page.schedule();
  }

  // Plays from the first step at a reader's pace; still, halfway, where motion is not wanted.
  playSlowly() {
    if (this.last() <= 0) return;
    if (globalThis.matchMedia("(prefers-reduced-motion: reduce)").matches) {
      this.goto(Math.floor(this.last() / 2));
      return;
    }
    this.goto(0);
    this.setPace(SLOW);
    this.start();
    this.due = SOON;
  }

  // Steps per second of a replay, on the clock of steps.
  setPace(steps) {
    if (this.clock !== this.page.board.clock) this.showClock();
    if (this.clock === "step") this.speed.value = String(steps);
  }

  tick(now) {
    const { clock } = this.page.board,
      end = this.last();
    this.due += this.pace(end) * (Math.max(0, now - this.tickedAt) / 1000);
    this.tickedAt = now;
    const n = clock === "step" ? Math.floor(this.due) : this.due;
    this.due -= n;
    if (n) {
      this.at = Math.min(this.at + n, end);
      this.page.schedule();
    }
    if (this.at < end) this.playing = requestAnimationFrame((time) => this.tick(time));
    else this.caughtUp();
  }

  // So much of the clock passes in a second of replay.
  pace(end) {
    const { clock } = this.page.board,
      speed = Number(this.speed.value);
    if (clock === "flops") return end / speed;
    return clock === "ms" ? 1000 * speed : speed;
  }

  // The replay is at the newest step: it follows a run that goes on.
  caughtUp() {
    this.stop();
    this.live = this.page.board.lanes.some((run) => run.status === "running");
    this.page.schedule();
  }

  stop() {
    cancelAnimationFrame(this.playing);
    this.playing = 0;
  }

  // ---- painting

  paint() {
    const { board, run } = this.page,
      { range, at, lamp, live } = this;
    if (this.clock !== board.clock) this.showClock();
    range.max = Math.max(0, this.last());
    range.value = Math.max(0, at);
    range.setAttribute("aria-valuetext", this.placeText());
    this.back.disabled = at <= 0;
    this.next.disabled = at >= this.last() && !this.going?.paused;
    const moving = this.playing !== 0 || this.running;
    this.play.show(...(moving ? ["pause", "Pause"] : ["play", "Play"]));
    this.halt.style.visibility = this.going ? "" : "hidden"; // its place stays: nothing jumps
    const going = board.lanes.find((lane) => lane.status === "running") ?? run;
    lamp.classList.toggle("d2-on", live && going.status === "running");
    lamp.classList.toggle("d2-paused", going.paused);
    lamp.lastChild.textContent = lampText(going);
    lamp.setAttribute("aria-pressed", String(live));
  }

  placeText() {
    const { run, step } = this.page,
      place = `step ${step + 1} of ${run.records.length}`;
    return this.clock === "step" ? place : `${momentText(this.clock, this.at)}, ${place}`;
  }

  showClock() {
    this.clock = this.page.board.clock;
    const { picked, options } = SPEEDS[this.clock];
    const option = ([value, text]) =>
      h("option", "", { value, textContent: text, selected: value === picked });
    this.speed.replaceChildren(...options.map(option));
    this.range.step = this.clock === "step" ? 1 : "any";
    this.range.setAttribute("aria-label", RANGE_LABELS[this.clock]);
  }
}

export { Transport };
