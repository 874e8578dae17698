/* The lessons: a list at the top of the stage, and a card that drives the live page.
 *
 * A lesson is data, made from text files by analysis/page/lessons.py. A card sets the page up when
 * it is opened, describes what to do, and notices when it is done; the reader can always go on, go
 * back, or close it. */
import { h } from "./dom.js";
import { frame } from "./frame.js";
import { setGlossary } from "./glossary.js";
import { LessonCard } from "./lesson-card.js";
import { CardSetup, Ring } from "./lesson-setup.js";
import { holds, lessonState, nowWords } from "./lesson-state.js";
import { keepNames, recallNames } from "./storage.js";
import { setText } from "./widgets.js";

const KEY = "d2-lessons-done"; // where the browser keeps the lessons done
const WAITING = "Setting up the page … If nothing happens, press Show me again.";
const OWN_RUN = "This card asks for a run of your own, which needs the live page: skip it here.";

const minutesOf = ({ minutes }) => `${minutes} minute${minutes === 1 ? "" : "s"}`;

// The bar with the list of lessons; onPick(index) opens one.
class LessonList {
  constructor(lessons, onPick) {
    this.lessons = lessons;
    this.next = 0; // the lesson that `first` starts
    this.first = h("button", "d2-lessons-first", {
      type: "button",
      onclick: () => onPick(this.next),
    });
    this.list = h("ol", "d2-lessons-list", { hidden: true });
    this.opener = h("button", "d2-lessons-open", { type: "button", "aria-expanded": "false" });
    this.opener.addEventListener("click", () => this.fold(!this.list.hidden));
    const bar = h("div", "d2-lessons-bar", {}, this.first, this.opener);
    this.el = h("nav", "d2-lessons", { "aria-label": "Lessons" }, bar, this.list);
    this.marks = lessons.map((_, i) => this.addRow(i, () => onPick(i)));
  }

  addRow(i, onclick) {
    const lesson = this.lessons[i],
      mark = h("span", "d2-lessons-mark", { role: "img" }),
      more = { textContent: `${lesson.summary} ${minutesOf(lesson)}.` },
      text = h(
        "span",
        "",
        {},
        h("b", "", { textContent: `${i + 1} ${lesson.title}` }),
        h("span", "d2-lessons-more", more),
      );
    const row = h("button", "d2-lessons-row", { type: "button", onclick }, mark, text);
    this.list.append(h("li", "", {}, row));
    return mark;
  }

  fold(away) {
    this.list.hidden = away;
    this.opener.setAttribute("aria-expanded", String(!away));
  }

  // done: the keys of the lessons done
  paint(done) {
    const { lessons, first, opener } = this,
      n = lessons.filter((l) => done.has(l.key)).length;
    this.next = lessons.findIndex((l) => !done.has(l.key));
    first.hidden = this.next < 0;
    if (!first.hidden)
      first.textContent = `${n ? "Go on" : "Start"} with lesson ${this.next + 1} (${minutesOf(lessons[this.next])})`;
    opener.textContent = n
      ? `Lessons · ${n} of ${lessons.length} done`
      : `All ${lessons.length} lessons`;
    this.marks.forEach((mark, i) => {
      const is = done.has(lessons[i].key);
      mark.textContent = is ? "✓" : "";
      mark.classList.toggle("d2-on", is);
      mark.setAttribute("aria-label", is ? "done" : "not done yet");
    });
  }
}

class Lessons {
  constructor(host, page, lessons) {
    this.page = page;
    this.lessons = lessons;
    this.done = new Set(recallNames(KEY));
    this.lesson = null; // the lesson that is open
    this.at = 0; // its current card
    this.solved = false;
    this.opening = 0;
    this.list = new LessonList(lessons, (i) => this.start(i));
    this.card = new LessonCard({
      back: () => this.go(this.at - 1),
      next: () => this.go(this.at + 1),
      again: () => this.perform(true),
      close: () => this.close(),
    });
    this.setup = new CardSetup(page, (text) => (this.card.result.textContent = text));
    this.ring = new Ring(page.root, this.card.el);
    this.list.el.append(this.card.el);
    const moved = () => this.lesson && this.ring.place();
    for (const type of ["scroll", "resize"]) page.on(globalThis, type, moved, { passive: true });
    this.unfollow = frame.onMove(moved);
    host.prepend(this.list.el);
    this.list.paint(this.done);
  }

  // card: counted from 1, as a link has it
  open(key, card) {
    const i = this.lessons.findIndex((l) => l.key === key);
    if (i < 0) return;
    const number = Math.max(1, Math.floor(Number(card)) || 1);
    this.show(i, Math.min(number, this.lessons[i].cards.length) - 1);
  }

  // On the next frame: what the page opens with is on the stage then, and not taken for the card's.
  openSoon(key, card) {
    this.opening = requestAnimationFrame(() => this.open(key, card));
  }

  start(i) {
    this.show(i, 0);
    this.card.title.focus();
  }

  show(i, at) {
    this.lesson = this.lessons[i];
    this.list.fold(true);
    this.page.depth.set(true); // a card may point at anything
    this.card.open();
    this.go(at);
  }

  close() {
    if (!this.lesson) return;
    this.lesson = this.page.lesson = null;
    this.page.schedule();
    this.setup.stop();
    this.ring.move(null);
    this.card.close();
    this.list.opener.focus();
  }

  go(to) {
    if (to >= this.lesson.cards.length) {
      this.close();
      this.list.fold(false);
      return;
    }
    this.at = Math.max(0, to);
    this.solved = false;
    this.page.lesson = { lesson: this.lesson.key, card: this.at + 1 };
    this.card.show(this.lesson, this.lessons.indexOf(this.lesson) + 1, this.at);
    this.paintNext();
    this.perform(false);
  }

  // Sets the page up as the card wants it.
  perform(force) {
    const acts = Object.fromEntries(this.lesson.cards[this.at].acts);
    this.card.settle(false); // at once: until the next frame, the page is that of the last card
    this.ring.aim(acts.point ?? null);
    this.setup.perform(acts, force);
    setText(this.card.now, WAITING);
    if (this.page.options.offline && acts.point?.startsWith("#"))
      this.card.result.textContent = OWN_RUN;
  }

  paint() {
    if (!this.lesson) return;
    const settled = this.setup.settle();
    this.card.settle(settled);
    this.ring.keep(settled);
    if (settled) this.check();
    else if (this.setup.waits) setText(this.card.now, this.reason());
  }

  // Why the card is not ready yet: others are before its run, or share the engine with it.
  reason() {
    const { wait, share } = this.page.board;
    return wait || share || WAITING;
  }

  get last() {
    return this.at === this.lesson.cards.length - 1;
  }

  paintNext() {
    this.card.paintNext(this.last, Boolean(this.lesson.cards[this.at].until) && !this.solved);
  }

  // How far the test of the card is, and whether it holds.
  check() {
    const { until } = this.lesson.cards[this.at],
      { now } = this.card;
    if (!until || this.solved) {
      setText(now, "");
      return;
    }
    const state = lessonState(this.page);
    if (holds(until, state)) this.solve();
    else setText(now, this.page.board.wait || `Now: ${nowWords(until, state)}.`);
  }

  solve() {
    const { card, last } = this;
    this.solved = true;
    card.now.textContent = "";
    card.result.textContent = last
      ? "✓ Right. That was the last card."
      : "✓ That is it. Go on with Next.";
    if (last) {
      this.done.add(this.lesson.key);
      keepNames(KEY, [...this.done]);
      this.list.paint(this.done);
    }
    this.paintNext();
  }

  destroy() {
    cancelAnimationFrame(this.opening);
    this.unfollow();
    this.ring.move(null);
    this.lesson = this.page.lesson = null;
    this.list.el.remove();
  }
}

// The stage makes every part once. options.view: {lesson, card} opens a card at once.
function part(page) {
  const { lessons, glossary, view = {} } = page.options;
  if (glossary) setGlossary(glossary);
  if (!lessons?.length) return null;
  const all = new Lessons(page.root.querySelector(".d2-inner"), page, lessons);
  page.on(page.root.parentNode, "d2:paint", () => all.paint());
  if (view.lesson) all.openSoon(view.lesson, view.card);
  return all;
}

export { part };
