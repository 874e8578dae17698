/* The folded parts of the controls beside the stage. Which are open is remembered; a lesson opens
 * what it points at. The controls are the page's, not the stage's: a file has none. */
import { keepNames, recallNames } from "./storage.js";

const REMEMBERED = "d2-folds"; // ids of what is open
const MORE = "more"; // the fold that all others are in

const headOf = (id) => document.querySelector(`#${CSS.escape(id)} > .label-wrap`);
const isOpen = (head) => head.classList.contains("open");

// A closed fold's contents are not on the page until it is opened.
function reveal(id) {
  if (document.getElementById(id)) return;
  const head = headOf(MORE);
  if (head && !isOpen(head)) head.click();
}

class Folds {
  constructor(page) {
    this.wanted = recallNames(REMEMBERED); // to be opened as soon as they are there
    page.on(document, "click", (e) => this.clicked(e));
    page.on(page.root.parentNode, "d2:paint", () => this.open());
  }

  open() {
    this.wanted = this.wanted.filter((id) => {
      const head = headOf(id);
      if (head && !isOpen(head)) head.click();
      return !head;
    });
  }

  clicked(e) {
    const head = e.isTrusted && e.target.closest?.(".label-wrap"),
      id = head?.parentElement?.id;
    if (!id) return;
    const others = recallNames(REMEMBERED).filter((one) => one !== id);
    requestAnimationFrame(() => keepNames(REMEMBERED, isOpen(head) ? [...others, id] : others));
  }
}

const part = (page) => (page.offline ? null : new Folds(page));

export { part, reveal };
