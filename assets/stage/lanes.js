/* The lanes of the board in one row: which one is in hand, and where each leaves the first. */
import { firstDivergence } from "./board.js";
import { POINTS } from "./contract.js";
import { h } from "./dom.js";

// What a lane says of itself, beside its name.
function laneNote(board, i) {
  const run = board.lanes[i],
    at = firstDivergence(board, i);
  if (i === 0) return board.lanes.length > 1 ? "the others are compared with it" : "";
  if (at !== null) return "";
  return run.records.length || run.status !== "running"
    ? "same as lane 1 so far"
    : "about to start";
}

function makeLanes(page) {
  const el = h("div", "d2-lanes", {
    role: "group",
    "aria-label": "Lanes",
    "data-point": POINTS.lanes,
  });
  let shown = "",
    chips = [];

  function build(board) {
    chips = board.lanes.map((run, i) => {
      const name = h("span", "d2-lane-name", { textContent: run.name }),
        note = h("span", "d2-lane-note");
      const pick = h(
        "button",
        "d2-lane-pick",
        { type: "button", title: `Show lane ${i + 1} (${i + 1})`, onclick: () => page.setLane(i) },
        h("b", "d2-badge", { textContent: i + 1 }),
        name,
        note,
      );
      const jump = h("button", "d2-lane-jump", {
        type: "button",
        hidden: true,
        "aria-label": `Where lane ${i + 1} leaves lane 1`,
        onclick: () => page.gotoIn(i, firstDivergence(page.board, i)),
      });
      return { pick, note, jump, el: h("span", "d2-lane-chip", {}, pick, jump) };
    });
    el.classList.toggle("d2-lanes-many", chips.length > 4);
    el.replaceChildren(...chips.map((chip) => chip.el));
  }

  function paint() {
    const { board } = page,
      is = board.lanes.map((run) => `${run.key} ${run.name}`).join("|");
    if (shown !== is) {
      shown = is;
      build(board);
    }
    chips.forEach(({ pick, note, jump }, i) => {
      const { branch } = board.lanes[i],
        at = firstDivergence(board, i),
        said = laneNote(board, i);
      pick.setAttribute("aria-pressed", String(i === board.lane));
      note.textContent = branch
        ? `${branch.says || "what if"} (left lane ${branch.lane + 1} at step ${branch.step + 1})`
        : said;
      note.title = note.textContent;
      jump.hidden = at === null;
      if (at !== null) {
        jump.textContent = `≠ from step ${at + 1}`;
        jump.title =
          jump.ariaLabel = `From step ${at + 1} on, lane ${i + 1} differs from lane 1: go there`;
      }
    });
  }

  return { el, paint };
}

export { makeLanes };
