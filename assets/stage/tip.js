/* One floating box of text inside the stage: about tokens, and about controls. */
import { h, swatch } from "./dom.js";
import { clamp, fixed, plural } from "./numbers.js";
import { policyWords } from "./reasons.js";
import { barsCaption, quoted, visible } from "./sentences.js";

function makeTip({ uid, inner, on }) {
  const tip = h("div", "d2-tip", { id: `${uid}-tip`, role: "tooltip", hidden: true }),
    help = h("div", "d2-sr", { hidden: true });
  let tipOf = null,
    ids = 0; // tipOf: the control whose words the tooltip shows

  function show(anchor, kids) {
    tipOf = null;
    tip.replaceChildren(...kids);
    tip.hidden = false;
    const a = anchor.getBoundingClientRect(),
      box = inner.getBoundingClientRect(),
      w = tip.offsetWidth,
      ht = tip.offsetHeight;
    const below = a.bottom + 8 + ht < globalThis.innerHeight || a.top - 8 - ht < 0;
    const left = a.left + a.width / 2 - w / 2 - box.left;
    tip.style.left = `${clamp(left, 8, Math.max(8, box.width - w - 8))}px`;
    tip.style.top = `${(below ? a.bottom + 8 : a.top - 8 - ht) - box.top}px`;
  }

  function hide() {
    tip.hidden = true;
    tipOf = null;
  }

  // A control whose meaning pops up by mouse, keyboard and touch. words: text, or an element with it.
  function explained(control, words) {
    if (typeof words === "string") help.append((words = h("span", "", { textContent: words })));
    if (!words.id) words.id = `${uid}-words-${++ids}`;
    control.setAttribute("aria-describedby", words.id);
    const tell = () => {
      show(control, [h("p", "", { textContent: words.textContent })]);
      tipOf = control;
    };
    for (const type of ["pointerenter", "focus", "click"]) on(control, type, tell);
    on(control, "pointerleave", (e) => {
      if (e.pointerType !== "touch") hide();
    }); // a finger leaves by lifting
    on(control, "blur", hide);
    return control;
  }

  on(document, "pointerdown", (e) => {
    if (tipOf && !tipOf.contains(e.target)) hide();
  });
  return { tip, help, show, hide, explained, explaining: () => tipOf !== null };
}

// Everything about one token, as tooltipData found it.
function tipContent(run, d) {
  const title = h("p", "d2-tip-token", {
    textContent: d.masked
      ? d.again === null
        ? "still masked"
        : "masked again"
      : d.eos
        ? "end token"
        : visible(d.text),
  });
  const kids = [title, h("p", "d2-tip-where", { textContent: d.place })];
  if (d.write)
    kids.push(
      h("p", "", {
        textContent:
          `written in step ${d.step + 1} ` +
          `${d.conf === null ? "by hand" : `with confidence ${fixed(d.conf, 2)}`}`,
      }),
    );
  if (d.again !== null)
    kids.push(
      h("p", "", {
        textContent:
          `${d.was === null ? "its token" : quoted(d.was)} was masked again in step ` +
          `${d.again + 1}`,
      }),
    );
  if (d.masked && d.candidate !== null)
    kids.push(
      h("p", "", { textContent: `its best guess now has confidence ${fixed(d.candidate, 2)}` }),
    );
  if (d.bars.length)
    kids.push(
      h("p", "d2-tip-caption", { textContent: barsCaption(run.start) }),
      h(
        "div",
        "d2-top",
        {},
        ...d.bars.flatMap(({ text, share }) => {
          const fill = h("i");
          fill.style.width = `${clamp(share, 0, 1) * 100}%`;
          return [
            h("span", "d2-top-token", { textContent: text }),
            h("span", "d2-top-bar", {}, fill),
            h("span", "d2-top-p", { textContent: share === null ? "written" : fixed(share, 2) }),
          ];
        }),
      ),
    );
  const layered =
    run.start.by_layer && !policyWords(run.start).even ? ", in at least one layer" : "";
  kids.push(
    h("p", "", {
      textContent: `recomputed in ${d.recomputed} of ${plural(d.steps, "step")} so far${layered}`,
    }),
  );
  kids.push(
    h(
      "p",
      "d2-tip-reasons",
      {},
      ...run.reasons
        .filter((r) => d.byReason[r.key])
        .map((r) => swatch(r.colour, r.label, d.byReason[r.key])),
    ),
  );
  return kids;
}

export { makeTip, tipContent };
