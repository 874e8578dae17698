/* What a card of a lesson does to the page: asks for a run, goes to its place, points at a part. */
import { reveal } from "./folds.js";
import { frame } from "./frame.js";
import { placeBeside } from "./lesson-place.js";
import { lanesAsked, sameRuns } from "./lesson-state.js";

const OFFLINE =
  "This card needs the running app: nothing can be run here, so read on with the current run.";
const PHONE = "(max-width: 700px)"; // the card is at the bottom there, as wide as the page
const ROOM = 24; // pixels above and below what is scrolled to, for the ring

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

  // acts: {run, tab, lane, step, clock}; force: the run is made again even if it is shown
  perform(acts, force) {
    this.todo = { ...acts, before: null };
    if (acts.run && !this.page.canShow(acts.run)) this.say(OFFLINE);
    else if (acts.run) this.prepare(acts.run, force);
    if (acts.tab) this.page.show(acts.tab);
    this.page.schedule();
  }

  prepare(query, force) {
    const same = !force && this.ran?.query === query;
    if (same && this.ran.runs === this.runs()) return; // it is shown
    const coming = same && !this.ran.runs;
    if (!coming) this.ran = { query, before: this.runs(), runs: null };
    this.todo.before = this.ran.before;
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
    const { before, run, step } = this.todo,
      { lanes, link } = this.page.board,
      here = (l) => l.status !== "running" || l.records.length >= (step ?? 0);
    if (before !== null) {
      if (this.runs() === before || !sameRuns(run, link)) return false; // it has not begun
      if (lanes.length < lanesAsked(run)) return false;
    }
    return lanes.every(here);
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
    const { wanted } = this;
    if (wanted.startsWith("#")) reveal(wanted.slice(1));
    const found = wanted.startsWith("#")
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
    const calm = globalThis.matchMedia("(prefers-reduced-motion: reduce)").matches,
      above = ROOM + this.clockHeight(),
      below = ROOM + (globalThis.matchMedia(PHONE).matches ? this.card.offsetHeight : 0);
    frame.bringIntoView(el, { above, below, behavior: calm ? "auto" : "smooth" });
    this.place();
  }

  // The clock stays at the top while the page is scrolled.
  clockHeight() {
    return this.root.querySelector(".d2-topbar")?.offsetHeight ?? 0;
  }

  // Puts the card where it does not cover what it points at; on a phone it is at the bottom.
  place() {
    const { card, el } = this;
    if (card.hidden) return;
    const free = !el?.isConnected || globalThis.matchMedia(PHONE).matches;
    const { left, top } = free ? {} : this.besideRing();
    card.style.inset = free ? "" : `${top}px auto auto ${left}px`;
  }

  besideRing() {
    const { card, el } = this,
      { top, bottom } = frame.seen,
      width = document.documentElement.clientWidth,
      view = { left: 0, top, width, height: bottom - top },
      size = { width: card.offsetWidth, height: card.offsetHeight };
    return placeBeside(el.getBoundingClientRect(), size, view);
  }
}

export { CardSetup, Ring };
