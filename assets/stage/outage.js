/* What is on the stage outlives a server that restarts: Gradio then loads the page again. */
const KEY = "d2-outage"; // in this tab alone

// The messages of one board, as they came.
class Messages {
  constructor() {
    this.texts = [];
    this.board = null;
  }

  // events: those of the text, where it has a link or other keys.
  add(text, events) {
    for (const ev of events) {
      if (ev.k === "keys") this.board = ev.to;
      if (ev.k !== "link" || ev.board === this.board) continue;
      this.board = ev.board;
      this.texts = [];
    }
    if (text && text !== this.texts.at(-1)) this.texts.push(text);
  }
}

// Keeps the messages and the prompt that is typed for the page that comes next in this tab.
function keepStage(texts, prompt) {
  try {
    const { search } = location; // of this page: another one has other runs
    sessionStorage.setItem(KEY, JSON.stringify({ texts, prompt, search }));
  } catch {
    // no storage here, or more than it takes: the address makes the runs again
  }
}

// What the last page in this tab kept at this address, {texts, prompt}, once; null: nothing.
function takeStage() {
  try {
    const kept = JSON.parse(sessionStorage.getItem(KEY));
    sessionStorage.removeItem(KEY);
    return kept?.search === location.search && kept.texts.length ? kept : null;
  } catch {
    return null;
  }
}

export { Messages, keepStage, takeStage };
