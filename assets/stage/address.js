/* The page's address describes what is on the stage: opening it recreates exactly this view.
 *
 * The server sends the half that makes the runs (a link event); this file adds what is shown,
 * keeps the address up to date, and goes where a link points as soon as the steps are there. */
import { CLOCKS, RUN_WORDS, TAB_KEYS, VIEW_WORDS } from "./contract.js";
import { frame } from "./frame.js";
import { mount } from "./mount.js";
import { keepStage, Messages, takeStage } from "./outage.js";
import { ownWords } from "./own-words.js";
import { MAPS } from "./pixels.js";

// The view that a query asks for; null when it asks for none.
function viewOf(query) {
  const given = new URLSearchParams(query),
    view = {};
  for (const [name, word] of Object.entries(VIEW_WORDS))
    if (given.has(word)) view[name] = given.get(word);
  return Object.keys(view).length ? view : null;
}

// Whether a query asks for more than a view: a run, a stored run, a branch. Words that are not the
// page's own are left alone.
const asksForRuns = (query) =>
  [...new URLSearchParams(query).keys()].some((word) => Object.hasOwn(RUN_WORDS, word));

// Whether what the page opens with plays by itself: nothing else is asked for, save to teach with it.
// A Space's frame and the sites that pass a link on add words of their own.
const playsAtOnce = (query) =>
  !asksForRuns(query) && (viewOf(query) === null || Boolean(viewOf(query).teach));

// The runs' query with the view on screen; what has its default value is left out. A card of a
// lesson says both by itself.
function addressOf(query, state) {
  if (state.lesson) return new URLSearchParams(state.lesson).toString();
  const rest = new URLSearchParams(query);
  for (const word of [...rest.keys()]) if (!Object.hasOwn(RUN_WORDS, word)) rest.delete(word);
  const view = {
    tab: state.tab === TAB_KEYS[0] ? "" : state.tab,
    at: state.live ? "" : state.step + 1,
    see: state.lane ? state.lane + 1 : "",
    clock: state.clock === CLOCKS[0] ? "" : state.clock,
    map: state.map === MAPS[0].key ? "" : state.map,
    pos: state.selected == null ? "" : state.selected + 1,
    teach: state.teach ? 1 : "",
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

// Goes where a view points. Numbers are counted from 1.
function goTo(stage, { tab, see, clock, map, pos, at, teach }) {
  if (see) stage.setLane(Number(see) - 1);
  if (clock) stage.setClock(clock);
  if (map) stage.setMap(map);
  if (tab) stage.show(tab);
  if (pos) stage.select(Number(pos) - 1);
  if (at) stage.goto(Number(at) - 1);
  if (teach) stage.setTeach(teach === "1");
}

// The events of a message that names a board's link or keys; of others none is of interest here.
const linksIn = (text) => (/"k":"(link|keys)"/.test(text ?? "") ? JSON.parse(text).events : []);

const PAUSE = 300; // ms; browsers bound how often an address may change

class LinkedStage {
  // options: those of mount
  constructor(host, options) {
    this.options = options;
    this.own = ownWords(location.search);
    this.query = null; // of the runs on the stage; null: nothing was made yet
    this.wanted = viewOf(location.search); // where a link points, until the steps are there
    this.board = asksForRuns(location.search) ? "" : null; // of the link; null: any will do
    this.timer = 0;
    this.plays = playsAtOnce(location.search);
    this.opening = null; // what the page opens with, kept back
    const send = (text) => this.send(text);
    this.stage = mount(host, { ...options, send, view: this.wanted || {} });
    host.addEventListener("d2:state", () => this.writeSoon());
    host.addEventListener("d2:paint", () => this.look());
    this.messages = new Messages();
    addEventListener("pagehide", () => this.leave());
    this.kept = takeStage();
    for (const text of this.kept?.texts ?? []) this.stage.receive(text);
  }

  // A page that is loaded again because its server restarted shows what this one did.
  leave() {
    const { page } = this.stage;
    if (page.away || this.stage.state().status === "running")
      keepStage(this.messages.texts, this.options.prompt?.());
  }

  // The first message is what the page opens with, and takes the place of nothing that was kept.
  goesOn(text) {
    const { kept } = this;
    if (!kept) return false;
    if (this.opening === null) {
      this.opening = text;
      if (kept.prompt) this.options.type?.(kept.prompt);
      for (const one of kept.texts) this.messages.add(one, linksIn(one));
      return true;
    }
    this.kept = null;
    return false;
  }

  send(text) {
    this.wanted = viewOf(text);
    if (asksForRuns(text)) {
      this.board = ""; // that of the link event to come
      return this.options.send(text);
    }
    this.board = null;
    this.look();
    return undefined;
  }

  receive(text) {
    const events = linksIn(text);
    if (this.goesOn(text)) return;
    this.messages.add(text, events);
    for (const event of events.filter((e) => e.k === "link")) {
      this.query = event.query;
      if (this.board === "") this.board = event.board;
    }
    if (this.keepsBack(text, events)) return;
    const opening = !events.length && !this.stage.state().run;
    this.stage.receive(text);
    if (opening) this.stage.reopen();
    if (this.plays && this.stage.state().tab === TAB_KEYS[0]) this.stage.playSlowly();
    this.plays = false;
    this.writeSoon();
  }

  // What the page opens with is not what a link asks for, which may have to wait: it is shown only
  // where that is refused.
  keepsBack(text, links) {
    if (this.board !== "" || links.length || this.stage.state().run) return false;
    if (!text?.includes('"k":"refused"')) {
      this.opening = text;
      return true;
    }
    this.board = null;
    if (this.opening) {
      this.stage.receive(this.opening);
      this.stage.reopen();
    }
    return false;
  }

  // Goes where the link points, as soon as the steps have come.
  look() {
    const state = this.stage.state();
    if (!this.wanted || !state.run || (this.board !== null && state.board !== this.board)) return;
    const { see, at } = this.wanted;
    if (see && Number(see) > state.lanes) return; // its lane has not started
    if (at && state.status === "running" && state.steps < Number(at)) return;
    const view = this.wanted;
    this.wanted = null;
    goTo(this.stage, view);
  }

  writeSoon() {
    this.timer ||= setTimeout(() => this.write(), PAUSE);
  }

  write() {
    this.timer = 0;
    const state = this.stage.state();
    // what the page opens with has an address once the reader has looked inside; a link that waits
    // keeps its own
    const waits = !state.inside || asksForRuns(location.search);
    if (this.query === null && !state.lesson && waits) return;
    const own = new URLSearchParams(this.own).toString(),
      text = this.query === "" && !state.lesson ? "" : addressOf(this.query ?? "", state),
      search = [text, own].filter(Boolean).join("&");
    frame.report(text, location.hash);
    if (`?${search}` !== location.search)
      history.replaceState(history.state, "", search ? `?${search}` : location.pathname);
  }
}

// Mounts the stage and ties it to the address. Options as mount's.
function open(host, options) {
  const linked = new LinkedStage(host, options);
  return {
    ...linked.stage,
    receive: (text) => linked.receive(text),
    send: (query) => linked.send(query),
  };
}

export { open, viewOf, asksForRuns, playsAtOnce, addressOf, goTo };
