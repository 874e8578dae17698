/* The keyboard: with the focus inside the stage, or on hover while nothing else has the focus. */
import { MOST_LANES } from "./contract.js";
import { h } from "./dom.js";

const KEYS = [
  ["← →", "a step back or forward"],
  ["Home, End", "to the start; to the end, following a run that goes on"],
  ["Space", "play or stop the replay"],
  [`1 … ${MOST_LANES}`, "show that lane"],
  ["n", "to the next step at which a lane differs from lane 1"],
  ["Enter", "on a token: pin it, or let it go"],
  ["Esc", "close what is open"],
  ["?", "this list"],
];

function makeKeys(page, { root, on, transport, close }) {
  const list = h(
    "div",
    "d2-keys",
    { role: "dialog", "aria-label": "Keys", tabIndex: -1, hidden: true },
    h("h4", "d2-title", { textContent: "Keys" }),
    h(
      "dl",
      "",
      {},
      ...KEYS.flatMap(([key, what]) => [
        h("dt", "", { textContent: key }),
        h("dd", "", { textContent: what }),
      ]),
    ),
  );
  const button = h("button", "d2-icon d2-help", {
    type: "button",
    title: "Keys (?)",
    "aria-label": "Keys",
    "aria-expanded": "false",
    textContent: "?",
    onclick: () => toggle(),
  });

  function toggle(open = list.hidden) {
    if (list.hidden === !open) return;
    const had = list.contains(document.activeElement);
    list.hidden = !open;
    button.setAttribute("aria-expanded", String(open));
    if (open) list.focus();
    else if (had) button.focus();
  }

  const ACTIONS = {
    ArrowLeft: () => transport.by(-1),
    ArrowRight: () => transport.by(1),
    Home: () => transport.goto(0),
    End: transport.end,
    " ": transport.toggle,
    n: page.nextDifference,
    "?": () => toggle(),
  };
  for (let i = 0; i < MOST_LANES; i++) ACTIONS[i + 1] = () => page.setLane(i);

  on(document, "keydown", (e) => {
    const focused = root.contains(document.activeElement),
      free = !document.activeElement || document.activeElement === document.body;
    if (e.key === "Escape") {
      toggle(false);
      close();
    }
    if (
      e.defaultPrevented ||
      e.altKey ||
      e.ctrlKey ||
      e.metaKey ||
      !page.run.key ||
      !ACTIONS[e.key]
    )
      return;
    if (!focused && !(free && root.matches(":hover"))) return;
    const { tagName: tag = "", type } = focused ? document.activeElement : {};
    if (
      ["SELECT", "TEXTAREA"].includes(tag) ||
      (tag === "INPUT" && type !== "range") ||
      (e.key === " " && ["BUTTON", "SUMMARY"].includes(tag))
    )
      return; // theirs
    e.preventDefault();
    ACTIONS[e.key]();
  });
  on(document, "pointerdown", (e) => {
    if (!list.contains(e.target) && !button.contains(e.target)) toggle(false);
  });
  return { button, list };
}

export { makeKeys };
