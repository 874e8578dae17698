/* Plays the runs of an exported page, which are in a script tag of messages, one a line, that
 * nothing executes. */
import { mount } from "./mount.js";

// options: those of mount, and view: what is shown at first, {at, tab, see, clock, pos}, counted
// from 0
function play({ view, ...options }) {
  const runs = document.querySelector("script[data-runs]").textContent.trim().split("\n"),
    stage = mount(document.getElementById("stage"), { ...options, offline: true });
  for (const line of runs) stage.receive(line);
  goThere(stage, view ?? {});
  return stage;
}

function goThere(stage, { at, tab, see, clock, pos }) {
  if (see !== undefined) stage.setLane(see);
  if (clock !== undefined) stage.setClock(clock);
  if (tab !== undefined) stage.show(tab);
  if (pos !== undefined) stage.select(pos);
  if (at !== undefined) requestAnimationFrame(() => stage.goto(at));
}

export { play };
