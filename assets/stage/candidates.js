/* The likeliest tokens at a position: one rule for tooltips, the line under the clock and the tab
 * Token. */
import { h } from "./dom.js";
import { fixed } from "./numbers.js";
import { guessAt, writeAt } from "./run.js";
import { knobsOf, quoted, tokenName } from "./sentences.js";
import { candidateRows } from "./widgets.js";

const MOST = 5;

// The likeliest tokens, best first, and the written one if it is not among them (share: null).
function barsOf(run, top, text = null) {
  const bars = top.slice(0, MOST).map(([token, share]) => ({ text: tokenName(run, token), share }));
  if (bars.length && text !== null && !top.some(([token]) => token === text))
    bars.push({ text: tokenName(run, text), share: null });
  return bars;
}

/* {bars: [{text, share}], step: that they are of, later}: of the step that wrote position p; while
 * it is masked, as they were last sent up to step s; where none were kept (a trace of an earlier
 * version has those of the writing step alone), of the step that will write it: later. No bars:
 * none are known. */
function candidatesOf(run, s, p) {
  const write = writeAt(run, p, s);
  if (write) return { bars: barsOf(run, write.top, write.text), step: write.s, later: false };
  const now = guessAt(run, p, s);
  if (now) return { bars: barsOf(run, now.top), step: now.s, later: false };
  const next = (run.changes[p] ?? []).find((x) => x.s > s && x.text !== null);
  return { bars: barsOf(run, next?.top ?? [], next?.text), step: next?.s ?? s, later: true };
}

// Above the bars. They are shares of the plain distribution; the confidence of a write may be of
// another one, or no share at all: it is not drawn as a bar.
function candidatesCaption(start, { step, later }) {
  const { temperature, top_p } = knobsOf(start, "decoder"),
    plain = temperature > 0 || top_p < 1 ? " before temperature and top p" : "";
  return (
    `in step ${step + 1}${later ? ", which writes it" : ""}: ` +
    `the model's likeliest tokens${plain}`
  );
}

// "in step 3: ' 7' 0.41, ' 8' 0.22", of a masked position; "" where nothing is known.
function guessWords(run, s, p) {
  const { bars, step, later } = candidatesOf(run, s, p);
  if (!bars.length || writeAt(run, p, s)) return "";
  const list = bars.map(
    (b) => `${quoted(b.text)}${b.share === null ? "" : ` ${fixed(b.share, 2)}`}`,
  );
  return `${later ? `likeliest when written in step ${step + 1}` : "likeliest"} ${list.join(", ")}`;
}

// The caption and the bars, as nodes for a tooltip or a view; [] where nothing is known.
function candidateNodes(run, s, p) {
  const found = candidatesOf(run, s, p);
  if (!found.bars.length) return [];
  return [
    h("p", "d2-tip-caption", { textContent: candidatesCaption(run.start, found) }),
    h("div", "d2-top", {}, ...candidateRows(found.bars)),
  ];
}

export { candidatesOf, candidatesCaption, candidateNodes, guessWords };
