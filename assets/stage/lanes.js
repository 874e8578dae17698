/* The lanes of the board in one row: which one is shown, and where each leaves the first. */
import { firstDivergence } from "./board.js";
import { POINTS } from "./contract.js";
import { h } from "./dom.js";

// The note beside the name of a lane.
function laneNote(board, i) {
  const run = board.lanes[i],
    { branch } = run;
  if (branch) {
    const what = branch.says || "what if";
    return `${what} (left lane ${branch.lane + 1} at step ${branch.step + 1})`;
  }
  if (i === 0) return board.lanes.length > 1 ? "the others are compared with it" : "";
  if (firstDivergence(board, i) !== null) return "";
  return run.records.length || run.status !== "running"
    ? "same as lane 1 so far"
    : "about to start";
}

class Lanes {
  constructor(page) {
    this.page = page;
    this.chips = [];
    this.builtFor = "";
    this.el = h("div", "d2-lanes", {
      role: "group",
      "aria-label": "Lanes",
      "data-point": POINTS.lanes,
    });
  }

  build(board) {
    this.chips = board.lanes.map((run, i) => this.makeChip(run, i));
    this.el.classList.toggle("d2-lanes-many", this.chips.length > 4);
    this.el.replaceChildren(...this.chips.map((chip) => chip.el));
  }

  makeChip(run, i) {
    const { page } = this,
      note = h("span", "d2-lane-note");
    const pick = h(
      "button",
      "d2-lane-pick",
      { type: "button", title: `Show lane ${i + 1} (${i + 1})`, onclick: () => page.setLane(i) },
      h("b", "d2-badge", { textContent: i + 1 }),
      h("span", "d2-lane-name", { textContent: run.name, title: run.name }),
      note,
    );
    const jump = h("button", "d2-lane-jump", {
      type: "button",
      hidden: true,
      "aria-label": `Where lane ${i + 1} leaves lane 1`,
      onclick: () => page.gotoIn(i, firstDivergence(page.board, i)),
    });
    return { pick, note, jump, el: h("span", "d2-lane-chip", {}, pick, jump) };
  }

  paint() {
    const { board } = this.page,
      key = board.lanes.map((run) => `${run.key} ${run.name}`).join("|");
    if (this.builtFor !== key) {
      this.builtFor = key;
      this.build(board);
    }
    this.chips.forEach((chip, i) => this.paintChip(chip, board, i));
  }

  paintChip({ pick, note, jump }, board, i) {
    const at = firstDivergence(board, i);
    pick.setAttribute("aria-pressed", String(i === board.lane));
    note.textContent = note.title = laneNote(board, i);
    jump.hidden = at === null;
    if (at === null) return;
    jump.textContent = `≠ from step ${at + 1}`;
    jump.title =
      jump.ariaLabel = `From step ${at + 1} on, lane ${i + 1} differs from lane 1: go there`;
  }
}

export { Lanes };
