/* In a frame that is as high as its page, as a Space is shown: the page around it scrolls, so the
 * window is no screen there. This module tells the rest which part of the page can be seen, keeps
 * sticky elements in sight, scrolls the page around, and reports the address to it.
 *
 * The page around is asked through parentIFrame, which iframe-resizer's script makes; Gradio loads
 * it in a frame. Without it the frame scrolls by itself and the window is the screen. */
import { clamp } from "./numbers.js";

const HOST = "https://huggingface.co"; // takes the address of a Space
const LOOK = 250, // ms between two looks for parentIFrame, which is loaded by and by
  LOOKS = 240;

// ---- pure

// What the page around says (iframe-resizer's page info) -> how much of the frame is out of sight
// above and below, in px.
function outOfSight(info, height) {
  const top = info.scrollTop - info.offsetTop,
    seen = info.clientHeight;
  return {
    above: clamp(top, 0, Math.max(0, height - 1)),
    below: clamp(height - top - seen, 0, Math.max(0, height - 1)),
  };
}

// How far an element at `top` that sticks at `offset` below the edge of the screen is moved down;
// it stays within its parent. All in px from the top of the page.
const shiftOf = ({ top, height, end }, edge, offset) =>
  clamp(edge + offset - top, 0, Math.max(0, end - height - top));

// ---- the page

const isFramed = () => globalThis.parent !== globalThis;

class Frame {
  constructor() {
    this.above = this.below = 0;
    this.info = null;
    this.sticky = new Map(); // element -> how far it is moved down
    this.looks = 0;
    this.listeners = new Set();
  }

  // Asks the page around, once it can be asked.
  follow() {
    if (this.info || !isFramed() || this.following) return;
    this.following = true;
    this.look();
  }

  look() {
    if (globalThis.parentIFrame) {
      globalThis.parentIFrame.getPageInfo((info) => this.take(info));
      addEventListener("resize", () => this.info && this.take(this.info));
    } else if (this.looks++ < LOOKS) setTimeout(() => this.look(), LOOK);
  }

  take(info) {
    this.info = info;
    Object.assign(this, outOfSight(info, innerHeight));
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
    if (!this.info) {
      Object.assign(el.style, {
        scrollMarginTop: `${above}px`,
        scrollMarginBottom: `${below}px`,
      });
      const fits = el.offsetHeight <= innerHeight - above - below;
      el.scrollIntoView({ block: fits ? "nearest" : "start", inline: "nearest", behavior });
      return;
    }
    const box = el.getBoundingClientRect(),
      { top, bottom } = this.seen,
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
