/* Plays a file of many runs: those of the lessons and, in some files, a choice of others. They come
 * packed in a tag, each lane once. The hash of the address says which run or card is shown, and a
 * file that is opened without one begins as the live page does. */
import { goTo, viewOf } from "./address.js";
import { TAB_KEYS } from "./contract.js";
import { frame } from "./frame.js";
import { mount } from "./mount.js";

const TOO_OLD = "This browser cannot unpack the runs of this file: open it in a newer one.";

// The runs of a file: base64 of gzipped JSON, {lanes: {key: [event]}, runs: {query: [[key, name]]}}.
async function unpacked(text) {
  const bytes = Uint8Array.from(atob(text.trim()), (c) => c.charCodeAt(0)),
    stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

// The message with the lanes of a query, as a server would send it. board: a key that is new.
function messageOf({ lanes, runs }, query, board) {
  const of = ([key, name], lane) => {
    const run = `${board}-${lane}`;
    return lanes[key].map((event) =>
      event.k === "start" ? { ...event, run, board, lane, name } : { ...event, run },
    );
  };
  return JSON.stringify({ events: [{ k: "link", board, query }, ...runs[query].flatMap(of)] });
}

// What the hash of an address opens: {lesson, card}, {name} of a choice, or nothing.
function asked(hash) {
  const text = decodeURIComponent(hash.slice(1));
  return /^[\w-]+$/.test(text) ? { name: text } : Object.fromEntries(new URLSearchParams(text));
}

// The choice of runs that a file may have; each option has a query, and words about its runs.
class Choice {
  constructor(onPick) {
    this.select = document.querySelector(".file-pick select");
    this.words = document.querySelector(".file-words");
    this.query = null; // of the runs that are shown
    this.select?.addEventListener("change", () => onPick(this.select.selectedOptions[0]));
  }

  get options() {
    return [...(this.select?.options ?? [])];
  }

  get current() {
    return this.options.find(({ dataset }) => dataset.query === this.query);
  }

  named(name) {
    return this.options.find(({ value }) => value === name);
  }

  // The runs of a card need not be among the options: the last one, hidden, stands for them.
  mark(query) {
    this.query = query;
    if (!this.select) return;
    (this.current ?? this.options.at(-1)).selected = true;
    this.words.textContent = this.current?.dataset.words ?? "";
  }
}

class Collection {
  // data: as `unpacked` has it; host, options: those of mount
  constructor(data, host, options) {
    this.data = data;
    this.sent = 0;
    this.choice = new Choice((option) => this.pick(option));
    const view = asked(location.hash),
      has = (query) => Object.hasOwn(data.runs, query),
      send = (query) => this.show(query);
    this.stage = mount(host, { ...options, view, offline: true, has, send });
    // where there is nothing to choose, the lessons are the way in, and they point at anything
    if (!this.choice.select) this.stage.page.depth.set(true);
    this.open(view);
    host.addEventListener("d2:state", () => this.write());
    addEventListener("hashchange", () => location.reload()); // not by `write`
  }

  open({ name, lesson }) {
    const option = this.choice.named(name);
    if (option) {
      this.pick(option);
      return;
    }
    this.show(Object.keys(this.data.runs)[0]);
    this.stage.reopen();
    const plays = !lesson && this.choice.select && this.stage.state().tab === TAB_KEYS[0];
    if (plays) this.stage.playSlowly();
  }

  // What a card asks for; it goes to its place by itself.
  show(query) {
    this.choice.mark(query);
    this.stage.receive(messageOf(this.data, query, `file-${(this.sent += 1)}`));
    this.write();
  }

  pick({ dataset }) {
    this.show(dataset.query);
    goTo(this.stage, viewOf(dataset.query) ?? {});
  }

  write() {
    const { lesson } = this.stage.state(),
      hash = `#${lesson ? new URLSearchParams(lesson) : (this.choice.current?.value ?? "")}`;
    if ((location.hash || "#") !== hash) history.replaceState(null, "", hash);
    frame.report("", hash);
  }
}

// host: where the stage is put; text: of the tag; options: those of mount. -> the stage
async function playMany(host, text, options) {
  if (!globalThis.DecompressionStream) {
    host.textContent = TOO_OLD;
    return null;
  }
  return new Collection(await unpacked(text), host, options).stage;
}

export { messageOf, playMany, unpacked };
