/* The page's address says what is on the stage: opening it again makes or shows just that.
 *
 * The server tells the half that makes the runs (a link event); this file adds what is looked at,
 * keeps the address up to date, and goes where a link points as soon as the steps are there. */
import { CLOCKS, TAB_KEYS, VIEW_WORDS } from "./contract.js";
import { mount } from "./mount.js";

// What a query says to look at; null when it says nothing of it.
function viewOf(query) {
  const given = new URLSearchParams(query),
    view = {};
  for (const [name, word] of Object.entries(VIEW_WORDS))
    if (given.has(word)) view[name] = given.get(word);
  return Object.keys(view).length ? view : null;
}

// Whether a query asks for more than looking: a run, a stored run, a branch.
const asksForRuns = (query) =>
  [...new URLSearchParams(query).keys()].some(
    (word) => !Object.values(VIEW_WORDS).includes(word) && !word.startsWith("__"),
  );

// The runs' query with what is looked at now; what stands at its usual value is left out.
function addressOf(query, state) {
  const rest = new URLSearchParams(query);
  for (const word of Object.values(VIEW_WORDS)) rest.delete(word);
  const view = {
    tab: state.tab === TAB_KEYS[0] ? "" : state.tab,
    at: state.live ? "" : state.step + 1,
    see: state.lane ? state.lane + 1 : "",
    clock: state.clock === CLOCKS[0] ? "" : state.clock,
    pos: state.selected == null ? "" : state.selected + 1,
  };
  for (const [name, value] of Object.entries(view)) if (value) rest.set(VIEW_WORDS[name], value);
  // readable: what need not be escaped is not
  return rest
    .toString()
    .replace(/%2C/g, ",")
    .replace(/%2F/g, "/")
    .replace(/%7E/g, "~")
    .replace(/%3D/g, "=");
}

// Mounts the stage and ties it to the address. Options as mount's.
function open(host, options) {
  const own = [...new URLSearchParams(location.search)].filter(([name]) => name.startsWith("__")); // Gradio's
  let query = null,
    wanted = viewOf(location.search),
    board = asksForRuns(location.search) ? "" : null; // null: any board will do
  let timer = 0;

  function send(text) {
    wanted = viewOf(text);
    if (!asksForRuns(text)) {
      board = null;
      look();
      return undefined;
    }
    board = ""; // that of the link event to come
    return options.send(text);
  }

  const stage = mount(host, { ...options, send, view: wanted || {} });

  // Go where the link points, as far as the steps have come.
  function look() {
    const state = stage.state();
    if (!wanted || !state.run || (board !== null && state.board !== board)) return;
    const { tab, see, clock, pos, at } = wanted;
    if (see && Number(see) > state.lanes) return; // its lane has not started
    if (at && state.status === "running" && state.steps < Number(at)) return;
    wanted = null;
    if (see) stage.setLane(Number(see) - 1);
    if (clock) stage.setClock(clock);
    if (tab) stage.show(tab);
    if (pos) stage.select(Number(pos) - 1);
    if (at) stage.goto(Number(at) - 1);
  }

  function write() {
    timer = 0;
    if (query === null) return; // nothing was made yet: the address is what it was opened with
    const all = new URLSearchParams(own).toString(),
      text = query ? addressOf(query, stage.state()) : "";
    const search = [text, all].filter(Boolean).join("&");
    if (`?${search}` !== location.search)
      history.replaceState(history.state, "", search ? `?${search}` : location.pathname);
  }

  function receive(text) {
    for (const ev of text && text.includes('"k":"link"') ? JSON.parse(text).events : []) {
      if (ev.k !== "link") continue;
      query = ev.query;
      if (board === "") board = ev.board;
    }
    stage.receive(text);
    later();
  }

  function later() {
    timer ||= setTimeout(write, 300);
  } // browsers bound how often an address may change
  host.addEventListener("d2:state", later);
  host.addEventListener("d2:paint", look);
  return { ...stage, receive, send };
}

export { open, viewOf, asksForRuns, addressOf };
