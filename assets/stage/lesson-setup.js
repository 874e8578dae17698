/* What a card of a lesson does to the page: asks for a run, goes to its place, points at a part. */
import { frame } from "./frame.js";
import { policiesAsked } from "./lesson-state.js";

const OFFLINE =
  "This card needs the running app: nothing can be run here, so read on with the run on view.";

class CardSetup {
  // say: shows a sentence on the card
  constructor(page, say) {
    this.page = page;
    this.say = say;
    this.todo = null; // of the card: what is left until its run is there
    this.ran = null; // {query, before, runs}: what was asked for last, the runs before it and after
  }

  runs() {
    return this.page.board.lanes.map((l) => l.key).join();
  }

  // acts: {run, tab, lane, step, clock}; force: the run is made again even if it is on view
  perform(acts, force) {
    this.todo = { ...acts, before: null, policies: [] };
    if (acts.run && this.page.offline) this.say(OFFLINE);
    else if (acts.run) this.prepare(acts.run, force);
    if (acts.tab) this.page.show(acts.tab);
    this.page.schedule();
  }

  prepare(query, force) {
    const same = !force && this.ran?.query === query;
    if (same && this.ran.runs === this.runs()) return; // on view
    const coming = same && !this.ran.runs;
    if (!coming) this.ran = { query, before: this.runs(), runs: null };
    Object.assign(this.todo, { before: this.ran.before, policies: policiesAsked(query) });
    if (!coming) this.send(query);
  }

  async send(query) {
    const mine = this.todo;
    try {
      await this.page.send(query);
    } catch (error) {
      if (this.todo !== mine) return;
      this.say(String(error?.message || error));
      this.todo = this.ran = null;
      this.page.schedule();
    }
  }

  // As the run comes in: lane and step as soon as they are there. True when nothing is left to do.
  settle() {
    if (!this.todo) return true;
    if (this.arrived()) this.goThere();
    return false; // all of it is seen on the next frame
  }

  arrived() {
    const { before, policies, step } = this.todo,
      { lanes } = this.page.board,
      here = (l) => l.status !== "running" || l.records.length >= (step ?? 0);
    if (before !== null && this.runs() === before) return false; // the new run has not begun
    return policies.every((name, i) => lanes[i]?.start.policy === name) && lanes.every(here);
  }

  goThere() {
    const { page } = this,
      { before, lane, step, clock, tab } = this.todo;
    if (before !== null) this.ran.runs = this.runs();
    this.todo = null;
    if (tab) page.show(tab); // again: a board of several lanes opens a tab of its own
    if (clock) page.setClock(clock);
    if (lane) page.setLane(lane - 1);
    if (step && page.run.key) page.goto(step - 1);
    page.schedule();
  }

  get waits() {
    return this.todo !== null;
  }

  stop() {
    this.todo = null;
  }
}

// A ring around the part of the page that a card points at.
class Ring {
  // card: the element that must not cover it
  constructor(root, card) {
    this.root = root;
    this.card = card;
    this.wanted = null; // a name of a data-point, or # and an id
    this.el = null;
  }

  aim(name) {
    this.move(null);
    this.wanted = name;
  }

  // Called with every frame: what is pointed at may come late, and be made again.
  keep(settled) {
    if (settled && this.wanted && !this.el?.isConnected) {
      const el = this.find();
      if (el) this.move(el);
    }
    this.el?.classList.add("d2-ring");
  }

  find() {
    const { wanted } = this,
      found = wanted.startsWith("#")
        ? [document.getElementById(wanted.slice(1))]
        : [...this.root.querySelectorAll(`[data-point="${wanted}"]`)];
    return found.find((el) => el && el.getClientRects().length) || null;
  }

  move(el) {
    if (this.el === el) return;
    this.el?.classList.remove("d2-ring");
    if (this.el) this.el.style.scrollMargin = "";
    this.el = el;
    if (el) this.bringIntoView(el);
  }

  bringIntoView(el) {
    el.classList.add("d2-ring");
    const box = el.getBoundingClientRect(); // the card keeps off it: on the other side, or below
    this.card.classList.toggle("d2-aside", box.left + box.width / 2 > innerWidth / 2);
    const calm = globalThis.matchMedia("(prefers-reduced-motion: reduce)").matches;
    frame.bringIntoView(el, {
      above: this.root.querySelector(".d2-topbar").offsetHeight + 24, // the clock covers nothing
      below: this.card.offsetHeight + 32,
      behavior: calm ? "auto" : "smooth",
    });
  }
}

export { CardSetup, Ring };
