/* In a frame that is as high as its page, as a Space is shown: the page around it scrolls, so the
 * window is no screen there. This module tells the rest which part of the page can be seen, keeps
 * sticky elements in sight, scrolls the page around, and reports the address to it.
 *
 * The page around scrolls for parentIFrame, which iframe-resizer's script makes; Gradio loads it.
 * What it says of itself is left to Gradio: one function at a time can listen to that. */
import { clamp } from "./numbers.js";
import { watchSight } from "./sight.js";

const HOST = "https://huggingface.co"; // takes the address of a Space

// ---- pure

// How much of a window is out of sight above and below, in px. seen: {top, bottom} of what is on
// the screen.
const outOfSight = (seen, height) => ({
  above: clamp(seen.top, 0, Math.max(0, height - 1)),
  below: clamp(height - seen.bottom, 0, Math.max(0, height - 1)),
});

// How far an element at `top` that sticks at `offset` below the edge of the screen is moved down;
// it stays within its parent. All in px from the top of the page.
const shiftOf = ({ top, height, end }, edge, offset) =>
  clamp(edge + offset - top, 0, Math.max(0, end - height - top));

// ---- the page

const isFramed = () => globalThis.parent !== globalThis;

class Frame {
  constructor() {
    this.above = this.below = 0;
    this.following = false;
    this.sticky = new Map(); // element -> how far it is moved down
    this.listeners = new Set();
  }

  // Learns what can be seen from now on.
  follow() {
    if (this.following || !isFramed()) return;
    this.following = true;
    watchSight((seen) => this.take(seen));
  }

  take(seen) {
    Object.assign(this, outOfSight(seen, innerHeight));
    const { style } = document.documentElement;
    style.setProperty("--d2-above", `${Math.round(this.above)}px`);
    style.setProperty("--d2-below", `${Math.round(this.below)}px`);
    this.keep();
    for (const listener of this.listeners) listener();
  }

  // What can be seen, in px of the window: {top, bottom}.
  get seen() {
    return { top: this.above, bottom: innerHeight - this.below };
  }

  // Keeps an element in sight that is sticky by its style. until: a signal that ends it.
  stick(el, until) {
    this.sticky.set(el, 0);
    until?.addEventListener("abort", () => this.sticky.delete(el));
    this.follow();
    return el;
  }

  keep() {
    for (const [el, was] of this.sticky) {
      const style = getComputedStyle(el),
        box = el.getBoundingClientRect(),
        end = el.parentElement?.getBoundingClientRect().bottom ?? 0,
        place = { top: box.top - was, height: box.height, end },
        on = style.position === "sticky" && box.height > 0,
        shift = on ? shiftOf(place, this.above, parseFloat(style.top) || 0) : 0;
      if (shift === was) continue;
      this.sticky.set(el, shift);
      el.style.translate = shift ? `0 ${shift}px` : "";
    }
  }

  // Calls what() when another part of the page is seen; returns what ends that.
  onMove(what) {
    this.listeners.add(what);
    this.follow();
    return () => this.listeners.delete(what);
  }

  // As el.scrollIntoView({ block: "nearest" }), with this much room above and below it; the
  // beginning of what is too high to be seen as a whole.
  bringIntoView(el, { above = 0, below = 0, behavior = "auto" } = {}) {
    const { top, bottom } = this.seen;
    if (!isFramed() || !globalThis.parentIFrame) {
      Object.assign(el.style, {
        scrollMarginTop: `${above}px`,
        scrollMarginBottom: `${below}px`,
      });
      const fits = el.offsetHeight <= bottom - top - above - below;
      el.scrollIntoView({ block: fits ? "nearest" : "start", inline: "nearest", behavior });
      return;
    }
    const box = el.getBoundingClientRect(),
      high = box.top - above < top,
      low = box.bottom + below > bottom;
    if (high) globalThis.parentIFrame.scrollToOffset(0, Math.max(0, box.top - above));
    else if (low) {
      const by = Math.min(box.bottom + below - bottom, box.top - above - top);
      globalThis.parentIFrame.scrollToOffset(0, top + by);
    }
  }

  // Where the reader is, for the address of the page around.
  report(queryString, hash = "") {
    if (isFramed() && originAround() === HOST)
      globalThis.parent.postMessage({ queryString, hash }, HOST);
  }
}

// The origin of the page around; "" where the browser does not tell.
function originAround() {
  const [origin] = globalThis.location.ancestorOrigins ?? [];
  if (origin) return origin;
  return document.referrer ? new URL(document.referrer).origin : "";
}

const frame = new Frame(); // there is one window

export { frame, outOfSight, shiftOf };
