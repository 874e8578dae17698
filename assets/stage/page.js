/* What the tabs and parts of the page see: the board, where the reader is on it, and what can be
 * done there. */
import { emptyBoard, momentOf, nextDifference, stepAt } from "./board.js";
import { MAPS } from "./pixels.js";
import { emptyRun } from "./run.js";

const NOBODY = emptyRun();

class Page {
  // on: listens until the stage is destroyed; paint: paints the stage
  constructor({ uid, options, on, paint }) {
    Object.assign(this, { uid, options, on, onFrame: paint });
    this.board = emptyBoard();
    this.dark = false;
    this.hover = null; // {p, s or null for the current step, lane, chip: element or null}
    this.selected = null; // the pinned position
    this.ghosts = true; // whether masks show the model's guesses
    this.lesson = null; // {lesson, card} while a card is open: its key, and the card from 1
    this.chosenFor = null; // the board for which the reader chose a tab
    this.map = MAPS[0].key; // of every lane in Compare
    this.sought = null; // the lane that Compare is to bring into view
    this.away = ""; // what is said while the server cannot be reached
    this.frame = 0;
  }

  // The parts of the stage that know the rest, as soon as they are made.
  attach({ root, transport, tabs, tip, depth, teach }) {
    Object.assign(this, { root, transport, tabs, tip, depth, teach });
  }

  // ---- what is shown

  get lane() {
    return this.board.lane;
  }

  get run() {
    return this.board.lanes[this.board.lane] ?? NOBODY;
  }

  get moment() {
    return this.transport.at;
  }

  get step() {
    return this.stepOf(this.board.lane);
  }

  stepOf(i) {
    return this.board.lanes[i] ? stepAt(this.board, i, this.transport.at) : -1;
  }

  get live() {
    return this.transport.live;
  }

  get tab() {
    return this.tabs.key;
  }

  get teaching() {
    return this.teach.active;
  }

  get offline() {
    return Boolean(this.options.offline) || !this.options.ask;
  }

  // ---- going elsewhere

  // Paints with the next frame, once.
  schedule() {
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      this.onFrame();
    });
  }

  goto(step) {
    this.gotoIn(this.board.lane, step);
  }

  gotoIn(i, step) {
    if (this.board.lanes[i]) this.transport.goto(momentOf(this.board, i, step));
  }

  nextDifference() {
    const s = nextDifference(this.board, this.step);
    if (s !== null) this.goto(s);
  }

  setLane(i) {
    if (!this.board.lanes[i]) return;
    this.board.lane = i;
    this.hover = null;
    this.schedule();
  }

  setMap(key) {
    if (!MAPS.some((map) => map.key === key)) return;
    this.map = key;
    this.schedule();
  }

  // A lane beside the others, in view.
  showLane(i) {
    this.show("compare");
    this.setLane(i);
    this.sought = i;
  }

  setClock(name) {
    this.transport.setClock(name);
  }

  // The reader's choice of a tab; false when there is none of that name.
  show(key) {
    this.chosenFor = this.board.key;
    return this.open(key, true);
  }

  open(key, chosen = false) {
    const done = this.tabs.show(key);
    if (done) {
      this.depth.opened(key, chosen);
      this.hover = null;
      this.tip.hide();
      this.schedule();
    }
    return done;
  }

  setHover(to) {
    this.hover = to && { s: null, lane: this.board.lane, chip: null, ...to };
    this.schedule();
  }

  showGhosts(shown) {
    this.ghosts = shown;
    this.schedule();
  }

  select(p) {
    this.selected = p;
    this.schedule();
  }

  setAway(text) {
    this.away = text;
    this.schedule();
  }

  explained(control, why) {
    return this.tip.explained(control, why);
  }

  // Draws also what is off the screen, for a picture.
  drawAll() {
    this.tabs.drawAll();
  }

  // ---- the server

  async ask(name, args) {
    if (this.offline) throw new Error("this needs the running app");
    return this.options.ask(name, args);
  }

  // Whether what a query asks for can be shown: a file has some runs, and makes none.
  canShow(query) {
    return this.options.offline ? Boolean(this.options.has?.(query)) : !this.offline;
  }

  send(query) {
    return this.options.offline && !this.canShow(query) ? undefined : this.options.send?.(query);
  }

  // Presses a button that the page has for a live run: pause, resume, step or stop.
  press(name) {
    this.options.press?.(name);
  }

  get presses() {
    return Boolean(this.options.press);
  }

  destroy() {
    cancelAnimationFrame(this.frame);
  }
}

export { Page };
