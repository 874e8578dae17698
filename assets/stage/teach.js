/* The stage for a class: alone on the screen, in large type, one step at a key press or one a
 * second, with a pointer that can be seen from the last row. */
import { h } from "./dom.js";

const PACE = 1; // step per second

class Teach {
  constructor(page, { on }) {
    this.page = page;
    this.active = false;
    this.button = h("button", "d2-button d2-teach", {
      type: "button",
      title: "The stage alone, in large type, for a class",
      onclick: () => this.set(!this.active),
    });
    this.pointer = h("i", "d2-pointer", { "aria-hidden": "true", hidden: true });
    on(document, "pointermove", (e) => this.point(e));
    on(document, "keydown", (e) => this.press(e));
    this.paint();
  }

  set(wanted) {
    if (this.active === wanted) return;
    this.active = wanted;
    const { page } = this;
    if (wanted) {
      page.transport.stop();
      page.transport.setPace(PACE);
    }
    page.showGhosts(!wanted); // a class is asked for them first: the key g shows them
    this.paint();
    page.schedule();
  }

  paint() {
    document.documentElement.classList.toggle("d2-teaching", this.active);
    this.button.textContent = this.active ? "Leave" : "Teach";
    this.button.setAttribute("aria-pressed", String(this.active));
    this.pointer.hidden = true; // until it moves
  }

  point(e) {
    if (!this.active || e.pointerType === "touch") return;
    this.pointer.hidden = false;
    this.pointer.style.transform = `translate(${e.clientX}px, ${e.clientY}px)`;
  }

  press(e) {
    if (this.active && e.key === "Escape" && !e.defaultPrevented) this.set(false);
  }

  destroy() {
    document.documentElement.classList.remove("d2-teaching");
  }
}

export { Teach };
