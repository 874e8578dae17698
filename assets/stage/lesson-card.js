/* The card of a lesson, as it looks: text, task, hint, buttons. What they do is in lessons.js. */
import { h } from "./dom.js";
import { explainTerm } from "./glossary.js";

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

const button = (textContent, onclick, cls = "") =>
  h("button", `d2-coach-button ${cls}`, { type: "button", textContent, onclick });

class LessonCard {
  // does: what the buttons do, {back, next, again, close}
  constructor(does) {
    this.folded = false;
    this.does = does;
    this.buildText();
    this.buildButtons();
    const { where, less, shut, back, again, ask, next } = this;
    this.el = h(
      "section",
      "d2-coach",
      { popover: "manual", hidden: true, "aria-label": "Lesson" },
      h("div", "d2-coach-head", {}, where, less, shut),
      this.body,
      h("div", "d2-coach-foot", {}, back, again, ask, next),
    );
    this.el.addEventListener("keydown", (e) => {
      if (e.key !== "Escape") return;
      e.stopPropagation();
      does.close();
    });
  }

  buildText() {
    this.where = h("span", "d2-coach-where");
    this.title = h("h2", "d2-coach-title", { tabIndex: -1 });
    this.words = h("div", "d2-coach-words");
    this.task = h("div", "d2-coach-task", { hidden: true });
    this.now = h("p", "d2-coach-now");
    this.result = h("p", "d2-coach-said", { role: "status" });
    this.hint = h("p", "d2-coach-hint", { hidden: true });
    const { title, words, task, now, result, hint } = this,
      live = h("div", "d2-coach-live", { "aria-live": "polite" }, title, words, task),
      group = { tabIndex: 0, role: "group", "aria-label": "The card" };
    this.body = h("div", "d2-coach-body", group, live, now, result, hint);
  }

  buildButtons() {
    const { does } = this;
    this.back = button("Back", does.back);
    this.next = button("Next", does.next, "d2-main");
    this.again = button("Show me again", does.again);
    this.ask = button("Hint", () => this.showHint(this.hint.hidden));
    this.less = h("button", "d2-coach-icon", {
      type: "button",
      "aria-label": "Fold the card away",
      onclick: () => this.fold(!this.folded),
    });
    this.shut = h("button", "d2-coach-icon", {
      type: "button",
      textContent: "×",
      "aria-label": "Close the lesson",
      title: "Close the lesson",
      onclick: does.close,
    });
  }

  open() {
    this.fold(false);
    this.el.hidden = false;
    if (this.el.showPopover && !this.el.matches(":popover-open")) this.el.showPopover();
  }

  close() {
    if (this.el.hidePopover && this.el.matches(":popover-open")) this.el.hidePopover();
    this.el.hidden = true;
  }

  fold(folded) {
    const { less } = this;
    this.folded = folded;
    this.el.classList.toggle("d2-folded", folded);
    less.textContent = folded ? "+" : "–";
    less.title = less.ariaLabel = folded ? "Show the card" : "Fold the card away";
    less.setAttribute("aria-expanded", String(!folded));
  }

  showHint(wanted) {
    this.hint.hidden = !wanted;
    this.ask.setAttribute("aria-expanded", String(wanted));
  }

  // Whether the page is as the card wants it, for styles and for whoever waits for it.
  settle(settled) {
    this.el.dataset.settled = settled;
  }

  // Card `at` of a lesson, not done yet. number: of the lesson, from 1.
  show(lesson, number, at) {
    const card = lesson.cards[at],
      last = at === lesson.cards.length - 1;
    const count = lesson.cards.length;
    this.where.textContent = `Lesson ${number}: ${lesson.title} · ${at + 1} of ${count}`;
    this.title.textContent = card.title;
    this.words.replaceChildren(...card.blocks.map(blockOf));
    this.task.hidden = !card.do;
    const task = h("b", "", { textContent: last ? "Question " : "Your turn " });
    this.task.replaceChildren(task, ...nodesOf(card.do));
    this.hint.replaceChildren(...nodesOf(card.hint));
    this.showHint(false);
    this.ask.hidden = !card.hint;
    this.again.hidden = !card.acts.length;
    this.back.disabled = at === 0;
    this.result.textContent = this.now.textContent = "";
    this.body.scrollTop = 0;
  }

  // The text of the last button; open: the test of the card does not hold yet.
  paintNext(last, open) {
    this.next.textContent = last ? (open ? "Close" : "Finish") : open ? "Skip" : "Next";
    this.next.classList.toggle("d2-main", !open);
  }
}

export { LessonCard };
