/* Plays the runs of an exported page: each in a script tag of messages, one a line, that nothing
 * executes. Several are offered as buttons, and the address says which one is on. */
import { mount } from "./mount.js";

// options: those of mount, and view: what is shown at first, {at, tab, see, clock, pos}, counted
// from 0
function play({ view, ...options }) {
  const stories = [...document.querySelectorAll("script[data-story]")],
    buttons = [...document.querySelectorAll(".file-pick button")],
    words = document.querySelector(".file-words"),
    stage = mount(document.getElementById("stage"), { ...options, offline: true });

  function show(i) {
    for (const line of stories[i].textContent.trim().split("\n")) stage.receive(line);
    buttons.forEach((button, k) => button.setAttribute("aria-pressed", String(k === i)));
    if (words) words.textContent = stories[i].dataset.words;
  }

  function follow() {
    const named = stories.findIndex(({ dataset }) => dataset.story === location.hash.slice(1));
    show(Math.max(0, named));
  }

  buttons.forEach((button, i) =>
    button.addEventListener("click", () => {
      show(i);
      history.replaceState(null, "", `#${stories[i].dataset.story}`);
    }),
  );
  addEventListener("hashchange", follow);
  follow();
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
