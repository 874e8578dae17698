/* One floating box of text inside the stage: about tokens, and about controls. */
import { candidateNodes } from "./candidates.js";
import { h, swatch } from "./dom.js";
import { frame } from "./frame.js";
import { clamp, fixed, plural } from "./numbers.js";
import { policyWords } from "./reasons.js";
import { quoted, visible } from "./sentences.js";

class Tip {
  // on: listens until the stage is destroyed
  constructor({ uid, inner, on }) {
    Object.assign(this, { uid, inner, on });
    this.el = h("div", "d2-tip", { id: `${uid}-tip`, role: "tooltip", hidden: true });
    this.help = h("div", "d2-sr", { hidden: true }); // the texts of controls, for screen readers
    this.control = null; // whose text is shown
    this.texts = 0;
    on(document, "pointerdown", (e) => {
      if (this.control && !this.control.contains(e.target)) this.hide();
    });
  }

  show(anchor, kids) {
    this.control = null;
    this.el.replaceChildren(...kids);
    this.el.hidden = false;
    const a = anchor.getBoundingClientRect(),
      box = this.inner.getBoundingClientRect(),
      { offsetWidth: w, offsetHeight: ht } = this.el;
    const { top, bottom } = frame.seen,
      below = a.bottom + 8 + ht < bottom || a.top - 8 - ht < top;
    const left = a.left + a.width / 2 - w / 2 - box.left;
    this.el.style.left = `${clamp(left, 8, Math.max(8, box.width - w - 8))}px`;
    this.el.style.top = `${(below ? a.bottom + 8 : a.top - 8 - ht) - box.top}px`;
  }

  hide() {
    this.el.hidden = true;
    this.control = null;
  }

  // A control whose meaning pops up by mouse, keyboard and touch. why: text, or an element with it.
  explained(control, why) {
    const text = typeof why === "string" ? h("span", "", { textContent: why }) : why;
    if (text !== why) this.help.append(text);
    if (!text.id) text.id = `${this.uid}-words-${++this.texts}`;
    control.setAttribute("aria-describedby", text.id);
    const show = () => {
      this.show(control, [h("p", "", { textContent: text.textContent })]);
      this.control = control;
    };
    for (const type of ["pointerenter", "focus", "click"]) this.on(control, type, show);
    this.on(control, "pointerleave", (e) => {
      if (e.pointerType !== "touch") this.hide(); // a finger leaves by lifting
    });
    this.on(control, "blur", () => this.hide());
    return control;
  }

  // For what is pointed at no longer; the text of a control stays.
  hideToken() {
    if (!this.control) this.hide();
  }
}

const line = (textContent) => h("p", "", { textContent });

function tokenTitle(d) {
  if (d.masked) return d.again === null ? "still masked" : "masked again";
  return d.eos ? "end token" : visible(d.text);
}

// When the token was written and masked again, and what the model guesses now.
function tokenHistory(d) {
  const list = [];
  if (d.write) {
    const how = d.conf === null ? "by hand" : `with confidence ${fixed(d.conf, 2)}`;
    list.push(`written in step ${d.step + 1} ${how}`);
  }
  if (d.again !== null) {
    const was = d.was === null ? "its token" : quoted(d.was);
    list.push(`${was} was masked again in step ${d.again + 1}`);
  }
  if (d.masked && d.candidate !== null)
    list.push(`its best guess now has confidence ${fixed(d.candidate, 2)}`);
  return list.map(line);
}

function tokenReasons(run, d) {
  const somewhere = run.start.by_layer && !policyWords(run.start).even,
    steps = plural(d.steps, "step"),
    layers = somewhere ? ", in at least one layer" : "";
  const reasons = run.reasons
    .filter((r) => d.byReason[r.key])
    .map((r) => swatch(r.colour, r.label, d.byReason[r.key]));
  return [
    line(`recomputed in ${d.recomputed} of ${steps} so far${layers}`),
    h("p", "d2-tip-reasons", {}, ...reasons),
  ];
}

// Everything about one token, as tooltipData found it.
const tipContent = (run, d) => [
  h("p", "d2-tip-token", { textContent: tokenTitle(d) }),
  h("p", "d2-tip-where", { textContent: d.place }),
  ...tokenHistory(d),
  ...candidateNodes(run, d.at, d.pos),
  ...tokenReasons(run, d),
];

export { Tip, tipContent };
