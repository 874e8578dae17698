/* Which part of the window is on the screen. In a frame that is as high as its page, the page around
 * scrolls and need not say so; an IntersectionObserver sees through all frames around, whatever their
 * origins. It speaks only when the share of an element that can be seen passes a threshold. So
 * strips down the window wake it while an edge of the screen passes over them; then the whole
 * window is asked for, again with each frame until it rests. */
import { h } from "./dom.js";

const STRIPS = 32,
  STEPS = 16; // in which a strip comes into sight

// Calls told({ top, bottom }), in px of the window, now and whenever this changes.
function watchSight(told) {
  const strips = Array.from({ length: STRIPS }, () => h("div")),
    all = h("div", "d2-sight", { ariaHidden: "true" }, ...strips);
  let was = {};
  const whole = new IntersectionObserver((entries) => {
    const { isIntersecting, intersectionRect } = entries.at(-1),
      { top, bottom } = intersectionRect;
    if (!isIntersecting || (top === was.top && bottom === was.bottom)) return;
    told((was = { top, bottom }));
    ask();
  });
  const ask = () => {
    whole.unobserve(all);
    whole.observe(all); // it always answers the first time
  };
  const threshold = Array.from({ length: STEPS + 1 }, (_, i) => i / STEPS),
    edges = new IntersectionObserver(ask, { threshold });
  document.body.append(all);
  for (const strip of strips) edges.observe(strip);
  addEventListener("resize", () => {
    was = {}; // what is below it may have changed
    ask();
  });
}

export { watchSight };
