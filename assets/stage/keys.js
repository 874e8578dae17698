/* The keyboard: with the focus inside the stage, or on hover while nothing else has the focus; the
 * arrow keys step from anywhere on the page where they have no other use. */
import { MOST_LANES } from "./contract.js";
import { h } from "./dom.js";

const KEYS = [
  ["← →", "a step back or forward"],
  ["Home, End", "to the start; to the end, following a run in progress"],
  ["Space", "play or stop the replay"],
  [`1 … ${MOST_LANES}`, "show that lane"],
  ["n", "to the next step at which a lane differs from lane 1"],
  ["g", "hide or show the model's guesses, as for a question to a class"],
  ["Enter", "on a token: pin or unpin it"],
  ["Esc", "close what is open"],
  ["?", "this list"],
];

const ARROWS = ["ArrowLeft", "ArrowRight"];
const TYPED = ["textarea", "text", "search", "number"]; // fields whose arrows move in a text
const WALKED = ["tab", "option", "application", "slider", "combobox", "menuitem", "radio"];

// Whether the control in focus has a use of its own for this key. The stage's own slider has none.
function takes(el, key, root) {
  const { tagName, type } = el;
  if (["SELECT", "TEXTAREA"].includes(tagName) || el.isContentEditable) return true;
  if (tagName === "INPUT") {
    if (type === "range") return !root.contains(el);
    return !(ARROWS.includes(key) && ["button", "checkbox", "submit"].includes(type));
  }
  if (ARROWS.includes(key)) return WALKED.includes(el.getAttribute("role"));
  return key === " " && ["BUTTON", "SUMMARY"].includes(tagName);
}

// Of several stages on a page, the one that the arrow keys move.
const stageFor = (focused) =>
  focused.closest(".d2-stage") ??
  document.querySelector(".d2-stage:hover") ??
  document.querySelector(".d2-stage");

class Keys {
  // close: closes whatever floats
  constructor(page, { on, close }) {
    this.page = page;
    this.close = close;
    this.actions = this.makeActions();
    this.build();
    on(document, "keydown", (e) => this.press(e));
    on(document, "pointerdown", (e) => {
      if (!this.list.contains(e.target) && !this.button.contains(e.target)) this.toggle(false);
    });
  }

  makeActions() {
    const { page } = this,
      { transport } = page;
    const actions = {
      ArrowLeft: () => transport.by(-1),
      ArrowRight: () => transport.forward(),
      Home: () => transport.goto(0),
      End: () => transport.end(),
      " ": () => transport.toggle(),
      n: () => page.nextDifference(),
      g: () => page.showGhosts(!page.ghosts),
      "?": () => this.toggle(),
    };
    for (let i = 0; i < MOST_LANES; i++) actions[i + 1] = () => page.setLane(i);
    return actions;
  }

  build() {
    const rows = KEYS.flatMap(([key, what]) => [
      h("dt", "", { textContent: key }),
      h("dd", "", { textContent: what }),
    ]);
    this.list = h(
      "div",
      "d2-keys",
      { role: "dialog", "aria-label": "Keys", tabIndex: -1, hidden: true },
      h("h2", "d2-title", { textContent: "Keys" }),
      h("dl", "", {}, ...rows),
    );
    this.button = h("button", "d2-icon d2-help", {
      type: "button",
      title: "Keys (?)",
      "aria-label": "Keys",
      "aria-expanded": "false",
      textContent: "?",
      onclick: () => this.toggle(),
    });
  }

  toggle(open = this.list.hidden) {
    const { list, button } = this;
    if (list.hidden === !open) return;
    const had = list.contains(document.activeElement);
    list.hidden = !open;
    button.setAttribute("aria-expanded", String(open));
    if (open) list.focus();
    else if (had) button.focus();
  }

  press(e) {
    if (e.key === "Escape") {
      this.toggle(false);
      this.close();
    }
    if (e.defaultPrevented || e.altKey || e.ctrlKey || e.metaKey) return;
    const act = this.actions[e.key],
      focused = document.activeElement ?? document.body;
    if (!act || !this.page.run.key || !this.listens(focused, e.key)) return;
    const steps = this.page.teaching && ARROWS.includes(e.key) && !TYPED.includes(focused.type);
    if (!steps && takes(focused, e.key, this.page.root)) return;
    e.preventDefault();
    act();
  }

  // Keys are the stage's when it has the focus, or is pointed at and nothing has it; arrows also
  // while a button elsewhere on the page has it, such as Run.
  listens(focused, key) {
    const { root } = this.page;
    if (root.contains(focused)) return true;
    if (this.page.teaching) return true; // from wherever the teacher has clicked last
    if (ARROWS.includes(key)) return root === stageFor(focused);
    return focused === document.body && root.matches(":hover");
  }
}

export { Keys };
