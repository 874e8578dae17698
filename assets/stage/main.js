/* The page's one global, D2Stage: `open` for a stage that the address follows, `play` and
 * `playMany` for a file that plays its own runs, `mount` for a stage alone. */
import { open } from "./address.js";
import { playMany } from "./collection.js";
import { pageData } from "./dom.js";
import { mount } from "./mount.js";
import { play } from "./player.js";
import { skipLink } from "./skip.js";

const D2Stage = {
  stage: null, // the one that was opened or played last, for the other scripts of the page

  // options: those of mount; the page's data (lessons, glossary, presets) is added
  open(host, options) {
    D2Stage.stage = open(host, { ...pageData(), ...options });
    document.querySelector(".d2-skip")?.remove(); // of a stage before this one
    skipLink(D2Stage.stage.page.root);
    return D2Stage.stage;
  },
  play() {
    D2Stage.stage = play(pageData());
    return D2Stage.stage;
  },
  async playMany() {
    const [host, runs] = ["stage", "d2-runs"].map((id) => document.getElementById(id));
    D2Stage.stage = await playMany(host, runs.textContent, pageData());
    return D2Stage.stage;
  },
  mount,
};

export { D2Stage };
