/* The Export menu: the page, a picture, an animation, the trace, a notebook cell, the link. */
import { animation } from "./animation.js";
import { EXPORTS, QUESTIONS } from "./contract.js";
import { h } from "./dom.js";
import { decodePlane } from "./numbers.js";
import { download, fileName, picture } from "./snapshot.js";

// ---- pure

// {name, text} or {name, b64} -> the bytes or text of a file, and its kind.
function fileOf({ name, text, b64 }) {
  const kinds = { html: "text/html", py: "text/x-python", csv: "text/csv" },
    kind = kinds[String(name).split(".").at(-1)] ?? "application/octet-stream";
  return { name: String(name), kind, body: b64 === undefined ? String(text) : decodePlane(b64) };
}

// ---- the page

const ITEMS = [
  { key: "html", label: "Page (HTML)", says: "one file that plays this offline", server: true },
  { key: "png", label: "Picture (PNG)", says: "what is on view now" },
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

function mountExport(host, page) {
  const off = new AbortController(),
    on = (target, type, fn) => target.addEventListener(type, fn, { signal: off.signal });
  const id = `${page.uid ?? "d2"}-export`,
    said = h("p", "d2-export-said", { role: "status" });
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
  const items = ITEMS.map((item) => ({
    item,
    el: h(
      "button",
      "d2-export-item",
      { type: "button", onclick: () => start(item.key) },
      h("b", "", { textContent: item.label }),
      h("span", "", { textContent: item.says }),
    ),
  }));
  const offline = h("p", "d2-export-said", {
    textContent: "This page is a file: keep it or pass it on.",
    hidden: true,
  });
  const panel = h(
    "div",
    "d2-export-panel",
    { id, hidden: true },
    ...items.map((x) => x.el),
    offline,
    said,
    cancel,
    field,
  );
  const el = h("div", "d2-export", {}, button, panel);
  let busy = null; // of what is being made
  host.append(el);

  function open(wanted) {
    panel.hidden = !wanted;
    button.setAttribute("aria-expanded", String(wanted));
    if (!wanted) return;
    for (const { item, el: one } of items) one.hidden = Boolean(item.server && page.offline);
    offline.hidden = !page.offline;
    field.hidden = true;
    if (!busy)
      said.textContent = page.run.records.length
        ? ""
        : "Nothing to export yet: run something first.";
    mark();
  }

  function mark() {
    for (const { el: one } of items) one.disabled = Boolean(busy) || !page.run.records.length;
  }

  on(button, "click", () => open(panel.hidden));
  on(document, "pointerdown", (e) => {
    if (!panel.hidden && !busy && !el.contains(e.target)) open(false);
  });
  on(el, "keydown", (e) => {
    if (e.key === "Escape" && !panel.hidden) {
      e.stopPropagation();
      open(false);
      button.focus();
    }
    if (e.key === "ArrowDown" || e.key === "ArrowUp") step(e);
  });
  on(cancel, "click", () => busy?.abort());

  // Arrow keys walk the menu; they must not move the clock of the stage.
  function step(e) {
    const shown = items.map((x) => x.el).filter((x) => !x.hidden && !x.disabled),
      i = shown.indexOf(document.activeElement);
    e.preventDefault();
    e.stopPropagation();
    if (panel.hidden) open(true);
    shown[
      (i + (e.key === "ArrowDown" ? 1 : shown.length - (i < 0 ? 0 : 1))) % shown.length
    ]?.focus();
  }

  async function start(key) {
    if (busy) return;
    const mine = (busy = new AbortController()),
      had = document.activeElement;
    field.hidden = true;
    said.textContent = "Making it …";
    cancel.hidden = key !== "webp";
    mark();
    try {
      said.textContent = await MAKE[key](mine.signal);
    } catch (error) {
      said.textContent =
        `That did not work: ${String(error?.message || error).split("\n")[0]}.`.replace(
          /\.\.$/,
          ".",
        );
    }
    busy = null;
    cancel.hidden = true;
    mark();
    if (!panel.hidden && el.contains(had)) had.focus(); // a disabled button loses it
  }

  const fetched = async (what) =>
    fileOf(await page.ask(QUESTIONS.export, { what, run: page.run.key }));
  const kept = ({ name, kind, body }) => {
    download(new Blob([body], { type: kind }), name);
    return `Saved as ${name}.`;
  };

  async function copied(text, what) {
    try {
      await navigator.clipboard.writeText(text);
      return `${what} is copied.`;
    } catch {
      // no permission, or no safe address
      field.hidden = false;
      field.value = text;
      field.select();
      return `Copy ${what.toLowerCase()} from the field below.`;
    }
  }

  const MAKE = {
    html: async () => kept(await fetched(EXPORTS.html)),
    trace: async () => kept(await fetched(EXPORTS.trace)),
    notebook: async () => copied((await fetched(EXPORTS.notebook)).body, "The cell"),
    link: () => copied(location.href, "The link"),
    async png() {
      const { blob, name } = await picture(page);
      download(blob, name);
      return `Saved as ${name}.`;
    },
    async webp(signal) {
      const made = await animation(
        page,
        (share) => {
          if (!signal.aborted)
            said.textContent = `Drawing: ${Math.round(100 * share)} % of the steps.`;
        },
        signal,
      );
      if (!made) return "Cancelled.";
      const name = fileName(page.run, page.run.records.length - 1, "webp");
      download(made.blob, name);
      return `Saved as ${name}: ${made.frames} frames, ${(made.blob.size / 1e6).toFixed(1)} MB.`;
    },
  };

  return {
    el,
    open,
    destroy() {
      busy?.abort();
      off.abort();
      el.remove();
    },
  };
}

// At the end of the row of tabs, unless the stage has a place for it.
function place(page) {
  const own = page.root.querySelector(".d2-export-host"),
    bar = page.root.querySelector(".d2-tabbar");
  if (own || !bar) return mountExport(own ?? page.root, page);
  const row = h("div", "d2-tabrow"),
    host = h("div", "d2-export-host");
  bar.replaceWith(row);
  row.append(bar, host);
  return mountExport(host, page);
}

export { fileOf, mountExport, place as part };
