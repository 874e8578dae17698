/* How much of the stage is shown: at first only the tab Watch and the transport; all views once the
 * reader has looked inside, which is remembered, and with it the tab that was open last. */
import { h } from "./dom.js";
import { keep, recall } from "./storage.js";

const REMEMBERED = "d2-inside"; // the tab

class Depth {
  // changed: called when more or less is to be shown
  constructor(page, { first, second, changed }) {
    this.page = page;
    this.first = first; // the tab that is shown alone
    this.second = second; // the one that looking inside opens
    this.changed = changed;
    this.inside = Boolean(recall(REMEMBERED));
    this.button = h("button", "d2-button d2-unfold", {
      type: "button",
      onclick: () => this.toggle(),
    });
    this.paint();
  }

  // The tab to open with, where the reader was before.
  get tab() {
    return recall(REMEMBERED) ?? this.first;
  }

  toggle() {
    if (this.inside) {
      this.set(false);
      keep(REMEMBERED, null);
      this.page.show(this.first);
      return;
    }
    this.set(true);
    this.page.setLane(this.page.board.lanes.length - 1); // the first one is what it is compared with
    this.page.show(this.second);
  }

  // A tab has been opened, by the reader's choice or not.
  opened(tab, chosen) {
    if (tab !== this.first) this.set(true);
    if (chosen && this.inside) keep(REMEMBERED, tab);
  }

  set(inside) {
    this.inside = inside;
    this.paint();
    this.changed();
  }

  paint() {
    this.button.textContent = this.inside ? "Show less" : "Look inside";
    this.button.setAttribute("aria-expanded", String(this.inside));
  }
}

export { Depth };
