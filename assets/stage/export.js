/* The Export menu: the page, a picture, an animation, the trace, a notebook cell, the link. */
import { animation } from "./animation.js";
import { EXPORTS, QUESTIONS } from "./contract.js";
import { h } from "./dom.js";
import { decodePlane } from "./numbers.js";
import { forOthers } from "./own-words.js";
import { download, fileName, picture } from "./snapshot.js";

// ---- pure

// {name, text} or {name, b64} -> the bytes or text of a file, and its kind.
function fileOf({ name, text, b64 }) {
  const kinds = { html: "text/html", py: "text/x-python", csv: "text/csv" },
    kind = kinds[String(name).split(".").at(-1)] ?? "application/octet-stream";
  return { name: String(name), kind, body: b64 === undefined ? String(text) : decodePlane(b64) };
}

// Where the reader is, as an exported page takes it: what has its default value is left out.
function viewToKeep({ live, step, tab, lane, clock, selected }) {
  const view = { tab, clock };
  if (!live && step >= 0) view.at = step;
  if (lane) view.see = lane;
  if (selected !== null) view.pos = selected;
  return view;
}

// ---- the page

const OFFLINE = "This page is a file: keep it or pass it on.";
const NOTHING = "Nothing to export yet: run something first.";
const ITEMS = [
  { key: "html", label: "Page (HTML)", says: "one file that plays this offline", server: true },
  { key: "png", label: "Picture (PNG)", says: "what is shown now" },
  { key: "webp", label: "Animation (WebP)", says: "all steps as a moving picture" },
  {
    key: "trace",
    label: "Trace (file)",
    says: "all numbers of this run; Load trace opens it again",
    server: true,
  },
  {
    key: "notebook",
    label: "Notebook cell",
    says: "Python that makes this run again, to paste",
    server: true,
  },
  { key: "link", label: "Copy link", says: "an address that opens this", server: true },
];

// The elements of the menu; start(key) is called when an item is chosen.
function build(id, start) {
  const button = h("button", "d2-export-button", {
    type: "button",
    textContent: "Export",
    "aria-expanded": "false",
    "aria-controls": id,
  });
  const cancel = h("button", "d2-text", { type: "button", textContent: "cancel", hidden: true });
  const field = h("textarea", "d2-export-field", {
    readOnly: true,
    rows: 8,
    hidden: true,
    spellcheck: false,
    "aria-label": "Text to copy",
  });
  const items = ITEMS.map((item) => ({ item, el: itemOf(item, start) }));
  const said = h("p", "d2-export-said", { role: "status" }),
    offline = h("p", "d2-export-said", { textContent: OFFLINE, hidden: true });
  const kids = [...items.map((x) => x.el), offline, said, cancel, field];
  const panel = h("div", "d2-export-panel", { id, hidden: true }, ...kids);
  const el = h("div", "d2-export", {}, button, panel);
  return { el, button, panel, items, offline, said, cancel, field };
}

function itemOf(item, start) {
  return h(
    "button",
    "d2-export-item",
    { type: "button", onclick: () => start(item.key) },
    h("b", "", { textContent: item.label }),
    h("span", "", { textContent: item.says }),
  );
}

const saved = (blob, name) => {
  download(blob, name);
  return `Saved as ${name}.`;
};

// An error as one sentence.
function failure(error) {
  const [text] = String(error?.message || error).split("\n");
  return `That did not work: ${text.replace(/\.$/, "")}.`;
}

class ExportMenu {
  constructor(host, page) {
    Object.assign(
      this,
      build(`${page.uid ?? "d2"}-export`, (key) => this.start(key)),
    );
    this.page = page;
    this.off = new AbortController();
    this.busy = null; // aborts what is being made
    host.append(this.el);
    const { signal } = this.off;
    this.button.addEventListener("click", () => this.open(this.panel.hidden), { signal });
    this.cancel.addEventListener("click", () => this.busy?.abort(), { signal });
    this.el.addEventListener("keydown", (e) => this.onKey(e), { signal });
    document.addEventListener("pointerdown", (e) => this.onOutside(e), { signal });
  }

  open(wanted) {
    this.panel.hidden = !wanted;
    this.button.setAttribute("aria-expanded", String(wanted));
    if (!wanted) return;
    for (const { item, el } of this.items) el.hidden = Boolean(item.server && this.page.offline);
    this.offline.hidden = !this.page.offline;
    this.field.hidden = true;
    if (!this.busy) this.said.textContent = this.page.run.records.length ? "" : NOTHING;
    this.mark();
  }

  mark() {
    const off = Boolean(this.busy) || !this.page.run.records.length;
    for (const { el } of this.items) el.disabled = off;
  }

  onOutside(e) {
    if (!this.panel.hidden && !this.busy && !this.el.contains(e.target)) this.open(false);
  }

  onKey(e) {
    if (e.key === "Escape" && !this.panel.hidden) {
      e.stopPropagation();
      this.open(false);
      this.button.focus();
    }
    if (e.key === "ArrowDown" || e.key === "ArrowUp") this.walk(e);
  }

  // Arrow keys walk the menu; they must not move the clock of the stage.
  walk(e) {
    const shown = this.items.map((x) => x.el).filter((x) => !x.hidden && !x.disabled),
      i = shown.indexOf(document.activeElement),
      by = e.key === "ArrowDown" ? 1 : shown.length - (i < 0 ? 0 : 1);
    e.preventDefault();
    e.stopPropagation();
    if (this.panel.hidden) this.open(true);
    shown[(i + by) % shown.length]?.focus();
  }

  async start(key) {
    if (this.busy) return;
    const mine = (this.busy = new AbortController()),
      had = document.activeElement;
    this.field.hidden = true;
    this.said.textContent = "Making it …";
    this.cancel.hidden = key !== "webp";
    this.mark();
    try {
      this.said.textContent = await this[key](mine.signal);
    } catch (error) {
      this.said.textContent = failure(error);
    }
    this.busy = null;
    this.cancel.hidden = true;
    this.mark();
    if (!this.panel.hidden && this.el.contains(had)) had.focus(); // a disabled button loses it
  }

  // ---- one method for each item of the menu; each returns what to say

  async html() {
    const { live, step, tab, lane, board, selected } = this.page,
      view = viewToKeep({ live, step, tab, lane, clock: board.clock, selected });
    return this.kept(EXPORTS.html, { view });
  }

  async trace() {
    return this.kept(EXPORTS.trace);
  }

  async notebook() {
    return this.copied((await this.fetched(EXPORTS.notebook)).body, "The cell");
  }

  link() {
    return this.copied(forOthers(location.href), "The link");
  }

  async png() {
    const { blob, name } = await picture(this.page);
    return saved(blob, name);
  }

  async webp(signal) {
    const drawn = (share) => {
      if (signal.aborted) return;
      this.said.textContent = `Drawing: ${Math.round(100 * share)} % of the steps.`;
    };
    const made = await animation(this.page, drawn, signal);
    if (!made) return "Cancelled.";
    const { run } = this.page,
      name = fileName(run, run.records.length - 1, "webp");
    download(made.blob, name);
    return `Saved as ${name}: ${made.frames} frames, ${(made.blob.size / 1e6).toFixed(1)} MB.`;
  }

  async fetched(what, more = {}) {
    const run = this.page.run.key;
    return fileOf(await this.page.ask(QUESTIONS.export, { what, run, ...more }));
  }

  async kept(what, more) {
    const { name, kind, body } = await this.fetched(what, more);
    return saved(new Blob([body], { type: kind }), name);
  }

  async copied(text, what) {
    try {
      await navigator.clipboard.writeText(text);
      return `${what} is copied.`;
    } catch {
      // no permission, or no safe address
      this.field.hidden = false;
      this.field.value = text;
      this.field.select();
      return `Copy ${what.toLowerCase()} from the field below.`;
    }
  }

  destroy() {
    this.busy?.abort();
    this.off.abort();
    this.el.remove();
  }
}

// At the end of the row of tabs, unless the stage has a place for it.
function place(page) {
  const own = page.root.querySelector(".d2-export-host"),
    bar = page.root.querySelector(".d2-tabbar");
  if (own || !bar) return new ExportMenu(own ?? page.root, page);
  const row = h("div", "d2-tabrow"),
    host = h("div", "d2-export-host");
  bar.replaceWith(row);
  row.append(bar, host);
  return new ExportMenu(host, page);
}

export { fileOf, viewToKeep, place as part };
