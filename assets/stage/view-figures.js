/* The Figures tab: the paper's figures on the current run, drawn by Plotly, which is loaded when
 * the tab is first opened and never sent again. */
import { POINTS, QUESTIONS, SIGMAS } from "./contract.js";
import { h } from "./dom.js";
import { dressed, NARROW, slim } from "./figure-layout.js";
import { download } from "./snapshot.js";
import { caption } from "./widgets.js";

const CONFIG = {
  responsive: true,
  displaylogo: false,
  displayModeBar: "hover",
  modeBarButtonsToRemove: ["toImage", "select2d", "lasso2d", "autoScale2d"],
};
const PICTURE = { width: 900, height: 380 }; // px, of a figure without a height of its own
const SIGMAS_LEAD =
  `Makes ${SIGMAS.length} short runs of this prompt that differ only in σ, the width of the ` +
  "certainty prior; 0 turns it off.";

// Can figures be asked for now? null: yes; else what to tell the reader.
function figuresWait(page) {
  if (page.offline) return "The figures need the running app; this page is a file.";
  if (!page.run.records.length) return "Run something first: the figures are drawn from its steps.";
  if (page.run.status === "running" && !page.run.paused)
    return "The figures come when the run has ended, or is paused.";
  return null;
}

let loading = null; // Plotly, once for all stages of a page

function plotly(url) {
  if (globalThis.Plotly) return Promise.resolve(globalThis.Plotly);
  loading ??= loadPlotly(url).catch((error) => {
    loading = null;
    throw error;
  });
  return loading;
}

const loadPlotly = (src) =>
  new Promise((done, fail) => {
    const script = h("script", "", { src, async: true });
    script.onload = () => {
      if (globalThis.Plotly) done(globalThis.Plotly);
      else fail(new Error("the drawing library is broken"));
    };
    script.onerror = () => {
      script.remove();
      fail(new Error("the drawing library (Plotly) could not be loaded"));
    };
    document.head.append(script);
  });

async function saveFigure({ key, figure }, dark, format) {
  const { layout, data } = figure,
    { width } = PICTURE,
    height = layout.height ?? layout.template?.layout?.height ?? PICTURE.height,
    options = { format, width, height, scale: format === "png" ? 2 : 1 };
  await globalThis.Plotly.downloadImage(
    { data, layout: { ...dressed(layout, dark, true), width, height } },
    { ...options, filename: `d2cache-${key}` },
  );
}

// One figure with its title, caption and buttons; fail(text) reports one that could not be saved.
class FigureCard {
  constructor(page, figure, fail) {
    this.page = page;
    this.figure = figure; // {key, title, caption, figure: {data, layout}, csv}
    this.fail = fail;
    this.drawnFor = "";
    this.build();
  }

  build() {
    const { title, caption: words } = this.figure;
    this.plot = h("div", "d2-plot", { role: "group", "aria-label": `${title}. ${words}` });
    const heading = h("h3", "d2-title", { textContent: title });
    this.el = h(
      "section",
      "d2-figure",
      { "aria-label": title },
      h("div", "d2-head", {}, heading, this.makeTools()),
      caption(words),
      this.plot,
    );
  }

  makeTools() {
    const { figure, page } = this,
      csv = () =>
        download(new Blob([figure.csv], { type: "text/csv" }), `d2cache-${figure.key}.csv`);
    return h(
      "div",
      "d2-figure-save",
      {},
      this.makeButton("PNG", () => saveFigure(figure, page.dark, "png")),
      this.makeButton("SVG", () => saveFigure(figure, page.dark, "svg")),
      this.makeButton("CSV", csv),
    );
  }

  makeButton(label, save) {
    const { title } = this.figure;
    return h("button", "d2-text", {
      type: "button",
      textContent: label,
      "aria-label": `${title}: save as ${label}`,
      onclick: async () => {
        try {
          await save();
        } catch (error) {
          this.fail(`${title} was not saved: ${error.message}.`);
        }
      },
    });
  }

  // Only drawn again when the theme has changed, or it is narrow now: a zoom of the reader stays.
  draw(narrow) {
    const { dark } = this.page,
      key = `${dark}|${narrow}`;
    if (this.drawnFor === key) return;
    this.drawnFor = key;
    const { data } = this.figure.figure,
      { fontFamily } = getComputedStyle(this.el),
      layout = dressed(this.figure.figure.layout, dark, false, fontFamily),
      shown = narrow ? slim(data, layout) : { data, layout };
    globalThis.Plotly.react(this.plot, shown.data, shown.layout, CONFIG);
  }

  remove() {
    globalThis.Plotly?.purge(this.plot);
    this.el.remove();
  }
}

class FiguresView {
  constructor(host, page) {
    this.page = page;
    this.host = host;
    this.cards = { [QUESTIONS.figures]: [], [QUESTIONS.sigmas]: [] };
    this.askedFor = ""; // the run and its steps
    this.token = 0; // of the question whose answer is awaited
    this.busy = false;
    this.build();
    this.sizes = new ResizeObserver(() => page.schedule());
    this.sizes.observe(host);
  }

  build() {
    this.status = h("p", "d2-note", { role: "status" });
    this.again = h("button", "d2-text d2-figures-again", {
      type: "button",
      textContent: "draw them again",
      hidden: true,
      onclick: () => this.askAgain(),
    });
    this.lists = {
      [QUESTIONS.figures]: h("div", "d2-figures"),
      [QUESTIONS.sigmas]: h("div", "d2-figures"),
    };
    this.orders = this.buildOrders();
    const point = { "data-point": POINTS["figures-tab"] },
      list = this.lists[QUESTIONS.figures];
    this.host.append(h("div", "d2-figures-all", point, this.status, this.again, list, this.orders));
  }

  buildOrders() {
    this.sigmas = h("button", "d2-text", {
      type: "button",
      textContent: `compare the decode order under σ = ${SIGMAS.join(", ")}`,
      onclick: () => {
        if (!this.busy) this.load(QUESTIONS.sigmas);
      },
    });
    return h(
      "section",
      "d2-figure",
      { hidden: true },
      h("h3", "d2-title", { textContent: "How much does the certainty prior steer?" }),
      h("p", "d2-more", { textContent: SIGMAS_LEAD }),
      this.sigmas,
      this.lists[QUESTIONS.sigmas],
    );
  }

  key() {
    return `${this.page.run.key}|${this.page.run.records.length}`;
  }

  say(text, bad = false) {
    this.status.textContent = text;
    this.status.hidden = !text;
    this.status.classList.toggle("d2-alert", bad);
  }

  askAgain() {
    this.again.hidden = true;
    this.askedFor = "";
    this.page.schedule();
  }

  // ---- loading

  // name: of the question, QUESTIONS.figures or QUESTIONS.sigmas
  async load(name) {
    const mine = ++this.token,
      key = this.key();
    this.setBusy(true);
    this.say(
      name === QUESTIONS.sigmas
        ? `Making ${SIGMAS.length} short runs …`
        : "Drawing the figures of this run …",
    );
    try {
      const figures = await this.fetch(name);
      if (mine !== this.token || this.key() !== key) return; // the reader has gone on
      this.take(name, figures);
      this.say("");
    } catch (error) {
      if (mine === this.token) this.showProblem(error);
    } finally {
      if (mine === this.token) {
        this.setBusy(false);
        this.page.schedule();
      }
    }
  }

  async fetch(name) {
    const { page } = this,
      [, got] = await Promise.all([
        plotly(page.options.plotly ?? "plotly.min.js"),
        page.ask(name, { run: page.run.key }),
      ]);
    return got.figures;
  }

  take(name, figures) {
    this.clear(name);
    const fail = (text) => this.say(text, true);
    this.cards[name] = figures.map((figure) => new FigureCard(this.page, figure, fail));
    this.lists[name].append(...this.cards[name].map((card) => card.el));
    this.draw();
  }

  showProblem(error) {
    this.say(`No figures: ${String(error?.message || error).split("\n")[0]}.`, true);
    this.again.hidden = false;
  }

  setBusy(busy) {
    this.busy = busy;
    this.sigmas.disabled = this.again.disabled = busy;
  }

  clear(name) {
    for (const card of this.cards[name]) card.remove();
    this.cards[name] = [];
  }

  clearAll() {
    Object.keys(this.cards).forEach((name) => this.clear(name));
  }

  // ---- painting

  paint() {
    const wait = figuresWait(this.page),
      another = this.page.run.key !== this.askedFor.split("|")[0];
    if (globalThis.Plotly) this.draw();
    this.orders.hidden = Boolean(wait);
    if (wait) this.wait(wait, another);
    else if (this.askedFor !== this.key()) this.start(another);
  }

  draw() {
    if (!this.host.clientWidth) return;
    const narrow = this.host.clientWidth < NARROW;
    for (const card of Object.values(this.cards).flat()) card.draw(narrow);
  }

  // another: the figures are of another run, and not to be taken for this one's
  wait(text, another) {
    if (!this.busy) this.say(text);
    if (!another) return;
    this.token++;
    this.setBusy(false);
    this.clearAll();
    this.askedFor = "";
  }

  start(another) {
    if (another) this.clearAll();
    this.askedFor = this.key();
    this.again.hidden = true;
    this.load(QUESTIONS.figures);
  }

  destroy() {
    this.token++;
    this.sizes.disconnect();
    this.clearAll();
  }
}

const tab = {
  key: "figures",
  title: "Figures",
  mount: (host, page) => new FiguresView(host, page),
};

export { figuresWait, tab };
