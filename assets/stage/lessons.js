/* The lessons: a list at the top of the stage, and a card that drives the live page.
 *
 * A lesson is data, made from text files by analysis/page/lessons.py. A card sets the page up when
 * it is opened, describes what to do, and notices when it is done; the reader can always go on, go
 * back, or close it. */
import { h } from "./dom.js";
import { setGlossary } from "./glossary.js";
import { LessonCard } from "./lesson-card.js";
import { CardSetup, Ring } from "./lesson-setup.js";
import { holds, lessonState, nowWords } from "./lesson-state.js";
import { setText } from "./widgets.js";

const KEY = "d2-lessons-done"; // where the browser keeps the lessons done
const WAITING = "Setting up the page … If nothing happens, press Show me again.";

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

// The bar with the list of lessons; onPick(index) opens one.
class LessonList {
  constructor(lessons, onPick) {
    this.lessons = lessons;
    this.count = h("span", "d2-lessons-count");
    this.list = h("ol", "d2-lessons-list", { hidden: true });
    this.opener = h(
      "button",
      "d2-lessons-open",
      { type: "button", "aria-expanded": "false" },
      h("b", "", { textContent: "Lessons" }),
      this.count,
    );
    this.opener.addEventListener("click", () => this.fold(!this.list.hidden));
    this.el = h("nav", "d2-lessons", { "aria-label": "Lessons" }, this.opener, this.list);
    this.marks = lessons.map((lesson, i) => this.addRow(lesson, () => onPick(i)));
  }

  addRow({ title, summary, minutes }, onclick) {
    const mark = h("span", "d2-lessons-mark", { role: "img" }),
      more = { textContent: ` ${summary} ${minutes} minutes.` },
      text = h(
        "span",
        "",
        {},
        h("b", "", { textContent: title }),
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
    const { lessons, count } = this,
      n = lessons.filter((l) => done.has(l.key)).length;
    count.textContent = n
      ? `${n} of ${lessons.length} done`
      : `New here? ${lessons.length} short lessons, on the live page.`;
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
    this.done = readDone();
    this.lesson = null; // the lesson that is open
    this.at = 0; // its card on view
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
    this.card.open();
    this.go(at);
  }

  close() {
    if (!this.lesson) return;
    this.lesson = null;
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
    this.card.show(this.lesson, this.at);
    this.paintNext();
    this.perform(false);
  }

  // Sets the page up as the card wants it.
  perform(force) {
    const acts = Object.fromEntries(this.lesson.cards[this.at].acts);
    this.ring.aim(acts.point ?? null);
    this.setup.perform(acts, force);
  }

  paint() {
    if (!this.lesson) return;
    const settled = this.setup.settle();
    this.ring.keep(settled);
    if (settled) this.check();
    else if (this.setup.waits) setText(this.card.now, WAITING);
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
    else setText(now, `Now: ${nowWords(until, state)}.`);
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
      keepDone(this.done);
      this.list.paint(this.done);
    }
    this.paintNext();
  }

  destroy() {
    cancelAnimationFrame(this.opening);
    this.ring.move(null);
    this.lesson = null;
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
