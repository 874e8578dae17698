/* A link to the stage as the first thing that Tab reaches: the controls before it are many. */
import { h } from "./dom.js";
import { frame } from "./frame.js";

const WORDS = "Skip to the stage";

// root: the stage; the link goes before everything else on the page.
function skipLink(root) {
  const link = h("a", "d2-skip", {
    href: `#${root.closest("[id]")?.id ?? ""}`,
    textContent: WORDS,
  });
  link.addEventListener("click", (e) => {
    e.preventDefault(); // an address with a # would be another view
    root.focus({ preventScroll: true });
    root.scrollIntoView({ block: "start" });
    frame.bringIntoView(root);
  });
  document.body.prepend(link);
  return link;
}

export { skipLink };
