/* The lanes of a board compared, in sentences: who leads, and how a lane differs from the first.
 * Pure. */
import { differencesAt, firstDivergence, meets, momentText } from "./board.js";
import { plural } from "./numbers.js";

const listed = (names) =>
  names.length < 2 ? names.join("") : `${names.slice(0, -1).join(", ")} and ${names.at(-1)}`;

function whenWords(clock, moment) {
  if (clock === "step") return `Step ${Math.max(0, Math.round(moment)) + 1}`;
  return `${momentText(clock, moment)} ${clock === "ms" ? "after the start" : "spent"}`;
}

// Who leads at this moment, in a sentence.
function raceWords(board, race, moment) {
  if (board.lanes.length < 2) return "";
  const when = whenWords(board.clock, moment),
    { leads, over } = race;
  if (!leads.length) return `${when}: nothing is written yet.`;
  const who = `lane${leads.length > 1 ? "s" : ""} ${listed(leads.map((i) => i + 1))}`,
    all = leads.length === board.lanes.length,
    { finished, written } = race.lanes[leads[0]];
  if (over) {
    const end = momentText(board.clock, finished);
    return all
      ? `${when}: all lanes finished at ${end}.`
      : `${when}: ${who} finished first, at ${end}.`;
  }
  const tokens = plural(written, "token");
  if (all) return `${when}: level, ${tokens} each.`;
  return `${when}: ${who} ${leads.length > 1 ? "lead" : "leads"} with ${tokens}.`;
}

// How lane i differs from lane 1, in a sentence.
function differenceWords(board, i, steps) {
  if (!i) return "The other lanes are compared with this one.";
  const at = firstDivergence(board, i);
  if (at === null) {
    const running = board.lanes.some((lane) => lane.status === "running");
    return `Writes the same as lane 1${running ? " so far" : ""}.`;
  }
  const { tokens, order } = differencesAt(board, i, steps),
    differ = `${plural(tokens, "token")} ${tokens === 1 ? "differs" : "differ"} (≠)`,
    moved = `${order} ${order === 1 ? "was" : "were"} written at another step`;
  const here = meets(board, i, steps)
    ? `Here ${differ}, ${moved}`
    : "Here they have written no position in common";
  return `Leaves lane 1 at step ${at + 1}. ${here}.`;
}

// "12 of 32 positions written · leads": how far lane i is.
function progressWords(board, race, i) {
  const { written, of } = race.lanes[i],
    place = isAhead(board, race, i) ? (race.over ? " · first" : " · leads") : "";
  return `${written} of ${of} positions written${endWords(board.clock, race.lanes[i])}${place}`;
}

function endWords(clock, { finished, status }) {
  if (finished === null) return "";
  return status === "done" ? `, finished at ${momentText(clock, finished)}` : `, ${status}`;
}

// When all are level, nobody leads.
const isAhead = (board, race, i) =>
  race.leads.includes(i) && race.leads.length < board.lanes.length;

export { raceWords, differenceWords, isAhead, progressWords };
