/* The Figures tab: the paper's figures on the run in view, drawn by Plotly, which is loaded when the
 * tab is first opened and never sent again. */
import { POINTS, QUESTIONS, SIGMAS } from "./contract.js";
import { h } from "./dom.js";
import { worded } from "./glossary.js";
import { download } from "./snapshot.js";

// ---- pure

const NARROW = 560; // px; below it a figure has the layout of a phone
const LINE = 34; // characters of an axis title on one line there

// Words broken into lines, for a drawing that breaks none itself.
function broken(text, most) {
  const lines = [""];
  for (const word of text.split(" ")) {
    if (lines.at(-1) && lines.at(-1).length + word.length + 1 > most) lines.push("");
    lines[lines.length - 1] += (lines.at(-1) ? " " : "") + word;
  }
  return lines.join("<br>");
}

// A figure in the colours of the page: only what has to change, the rest stays as it was sent.
function dressed(layout, dark, solid) {
  const ink = dark ? "#e6e9ee" : "#1f2937",
    grid = dark ? "rgba(255,255,255,0.16)" : "rgba(0,0,0,0.12)",
    paper = dark ? "#10141b" : "#ffffff";
  const out = {
    ...layout,
    font: { ...layout.font, color: ink, family: "system-ui, sans-serif" },
    paper_bgcolor: solid ? paper : "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
  };
  for (const key of Object.keys(layout))
    if (/^[xy]axis\d*$/.test(key)) out[key] = { ...layout[key], gridcolor: grid, automargin: true };
  if (solid) return { ...out, annotations: layout.annotations };
  return { ...out, title: { text: "" }, margin: { l: 60, r: 24, t: 34, b: 56 } };
}

// The same for a phone: small letters, titles in lines, legends and colour bars underneath, panels two by two.
function slim(data, layout) {
  const lines = Math.max(
    1,
    ...Object.keys(layout)
      .filter((key) => key.startsWith("xaxis"))
      .map((key) => broken(layout[key].title?.text ?? "", LINE).split("<br>").length),
  );
  const out = {
      ...layout,
      font: { ...layout.font, size: 11 },
      margin: { l: 8, r: 12, t: 12, b: 36 + 14 * lines },
    },
    axes = Object.keys(layout).filter((key) => /^[xy]axis\d*$/.test(key));
  const named = data.filter((trace) => trace.name && trace.showlegend !== false).length,
    panels = axes.filter((key) => key.startsWith("x")).length;
  const barred = data.some((trace) => trace.colorbar ?? trace.marker?.colorbar);
  for (const key of axes) {
    const axis = layout[key],
      text = axis.title?.text;
    const bare = barred && key.startsWith("x"); // beside a colour bar Plotly's own margins put the title on the ticks
    out[key] = {
      ...axis,
      nticks: 5,
      tickangle: 0,
      ...(bare ? { automargin: false } : {}),
      ...(text
        ? {
            title: {
              ...axis.title,
              text: broken(text, LINE),
              ...(bare ? {} : { standoff: 6 }),
              font: { size: 11 },
            },
          }
        : {}),
    };
  }
  const rows = named > 1 ? named : 0,
    square = data.some((trace) => trace.type === "heatmap");
  const bar = {
    orientation: "h",
    x: 0.5,
    xanchor: "center",
    y: 1.04,
    yanchor: "bottom",
    len: 0.9,
    thickness: 10,
  };
  const traces = data.map((trace) => {
    const slimmed = (had) => ({
      ...had,
      ...bar,
      title: { text: had.title?.text ?? had.title, side: "top" },
    });
    if (trace.colorbar) return { ...trace, colorbar: slimmed(trace.colorbar) };
    return trace.marker?.colorbar
      ? { ...trace, marker: { ...trace.marker, colorbar: slimmed(trace.marker.colorbar) } }
      : trace;
  });
  out.legend = {
    ...layout.legend,
    orientation: "v",
    x: 0,
    xanchor: "left",
    y: 1.03,
    yanchor: "bottom",
    font: { size: 11 },
  };
  out.height = square ? 360 : 280 + 18 * rows;
  if (panels === 4) {
    const from = [0.04, 0.54],
      low = [0.57, 0];
    out.height = 440;
    for (let i = 0; i < 4; i++) {
      const n = i ? i + 1 : "",
        x = from[i % 2],
        y = low[i >> 1];
      out[`xaxis${n}`] = {
        ...out[`xaxis${n}`],
        domain: [x, x + 0.44],
        ...(i < 2 ? { title: { text: "" } } : {}),
      };
      out[`yaxis${n}`] = {
        ...out[`yaxis${n}`],
        domain: [y, y + 0.38],
        ...(i % 2 ? {} : { showticklabels: true, title: out.yaxis.title }),
      };
    }
    out.annotations = (layout.annotations ?? []).map((one, i) =>
      i < 4 ? { ...one, x: from[i % 2] + 0.22, y: low[i >> 1] + 0.38, font: { size: 11 } } : one,
    );
  }
  return { data: traces, layout: out };
}

// Can figures be asked for now? null: yes; else what to tell the reader.
function figuresWait(page) {
  if (page.offline)
    return "These figures need the running app: this page is a file. The other tabs work here.";
  if (!page.run.records.length) return "Run something first: the figures are drawn from its steps.";
  if (page.run.status === "running" && !page.run.paused)
    return "The figures come when the run has ended, or is paused.";
  return null;
}

// ---- the page

let loading = null; // Plotly, once for all stages of a page

function plotly(url) {
  if (globalThis.Plotly) return Promise.resolve(globalThis.Plotly);
  loading ??= new Promise((done, fail) => {
    const script = h("script", "", { src: url, async: true });
    script.onload = () =>
      globalThis.Plotly
        ? done(globalThis.Plotly)
        : fail(new Error("the drawing library is broken"));
    script.onerror = () => {
      loading = null;
      script.remove();
      fail(new Error("the drawing library (Plotly) could not be loaded"));
    };
    document.head.append(script);
  });
  return loading;
}

function mountFigures(host, page) {
  const said = h("p", "d2-note", { role: "status" }),
    list = h("div", "d2-figures"),
    more = h("div", "d2-figures");
  const again = h("button", "d2-text d2-figures-again", {
    type: "button",
    textContent: "draw them again",
    hidden: true,
  });
  const sigmas = h("button", "d2-text", {
    type: "button",
    textContent: `compare the decode order under σ = ${SIGMAS.join(", ")}`,
  });
  const orders = h(
    "section",
    "d2-figure",
    { hidden: true },
    h("h4", "d2-title", { textContent: "How much does the certainty prior steer?" }),
    h("p", "d2-more", {
      textContent: `Makes ${SIGMAS.length} short runs of this prompt that differ in σ alone, the width of the certainty prior; 0 turns it off.`,
    }),
    sigmas,
    more,
  );
  host.append(
    h("div", "d2-figures-all", { "data-point": POINTS["figures-tab"] }, said, again, list, orders),
  );
  let asked = "",
    drawn = [],
    token = 0,
    busy = false;

  const keyOf = () => `${page.run.key}|${page.run.records.length}`;
  const tell = (text, bad) => {
    said.textContent = text;
    said.hidden = !text;
    said.classList.toggle("d2-alert", Boolean(bad));
  };

  async function save(Plotly, one, format) {
    const width = 900,
      height = one.figure.layout.height ?? one.figure.layout.template?.layout?.height ?? 380;
    await Plotly.downloadImage(
      {
        data: one.figure.data,
        layout: { ...dressed(one.figure.layout, page.dark, true), width, height },
      },
      { format, width, height, scale: format === "png" ? 2 : 1, filename: `d2cache-${one.key}` },
    );
  }

  function card(Plotly, one) {
    const plot = h("div", "d2-plot", {
      role: "group",
      "aria-label": `${one.title}. ${one.caption}`,
    });
    const button = (label, does) =>
      h("button", "d2-text", {
        type: "button",
        textContent: label,
        "aria-label": `${one.title}: save as ${label}`,
        onclick: async () => {
          try {
            await does();
          } catch (error) {
            tell(`${one.title} was not saved: ${error.message}.`, true);
          }
        },
      });
    const caption = h("p", "d2-more");
    caption.append(...worded(one.caption));
    const tools = h(
      "div",
      "d2-figure-save",
      {},
      button("PNG", () => save(Plotly, one, "png")),
      button("SVG", () => save(Plotly, one, "svg")),
      button("CSV", () =>
        download(new Blob([one.csv], { type: "text/csv" }), `d2cache-${one.key}.csv`),
      ),
    );
    return {
      one,
      plot,
      looks: null,
      el: h(
        "section",
        "d2-figure",
        { "aria-label": one.title },
        h("div", "d2-head", {}, h("h4", "d2-title", { textContent: one.title }), tools),
        caption,
        plot,
      ),
    };
  }

  // Only drawn anew when the theme has changed, or the page is a phone's now; a zoom of the reader stays.
  function draw(Plotly) {
    if (!host.clientWidth) return;
    const narrow = host.clientWidth < NARROW,
      looks = `${page.dark}|${narrow}`;
    for (const x of drawn) {
      if (x.looks === looks) continue;
      x.looks = looks;
      const layout = dressed(x.one.figure.layout, page.dark, false),
        { data } = x.one.figure,
        shown = narrow ? slim(data, layout) : { data, layout };
      Plotly.react(x.plot, shown.data, shown.layout, {
        responsive: true,
        displaylogo: false,
        displayModeBar: "hover",
        modeBarButtonsToRemove: ["toImage", "select2d", "lasso2d", "autoScale2d"],
      });
    }
  }

  function clear(from) {
    for (const x of drawn.filter((d) => d.where === from)) {
      globalThis.Plotly?.purge(x.plot);
      x.el.remove();
    }
    drawn = drawn.filter((d) => d.where !== from);
  }

  async function load(name, where) {
    const mine = ++token,
      key = keyOf();
    busy = true;
    tell(
      name === QUESTIONS.sigmas
        ? `Making ${SIGMAS.length} short runs …`
        : "Drawing the figures of this run …",
    );
    sigmas.disabled = again.disabled = true;
    try {
      const [Plotly, got] = await Promise.all([
        plotly(page.plotly ?? page.options?.plotly ?? "plotly.min.js"),
        page.ask(name, { run: page.run.key }),
      ]);
      if (mine !== token || keyOf() !== key) return; // the reader has gone on to another run
      clear(where);
      const cards = got.figures.map((one) => ({ ...card(Plotly, one), where }));
      where.append(...cards.map((x) => x.el));
      drawn.push(...cards);
      draw(Plotly);
      tell("");
    } catch (error) {
      if (mine === token)
        tell(`No figures: ${String(error?.message || error).split("\n")[0]}.`, true);
      again.hidden = mine !== token;
    } finally {
      if (mine === token) {
        busy = false;
        sigmas.disabled = again.disabled = false;
        page.schedule();
      }
    }
  }

  sigmas.onclick = () => {
    if (!busy) load(QUESTIONS.sigmas, more);
  };
  again.onclick = () => {
    again.hidden = true;
    asked = "";
    page.schedule();
  };

  function paint() {
    const wait = figuresWait(page),
      key = keyOf();
    if (drawn.length && globalThis.Plotly) draw(globalThis.Plotly);
    orders.hidden = Boolean(wait);
    if (wait) {
      if (!busy) tell(wait);
      if (page.run.key !== asked.split("|")[0]) {
        token++;
        busy = false;
        sigmas.disabled = false;
        [list, more].forEach(clear);
        asked = "";
      } // of another run: not to be taken for this one's
      return;
    }
    if (asked === key) return;
    if (page.run.key !== asked.split("|")[0]) [list, more].forEach(clear);
    asked = key;
    again.hidden = true;
    load(QUESTIONS.figures, list);
  }

  const sizes = new ResizeObserver(() => page.schedule());
  sizes.observe(host);
  return {
    paint,
    destroy() {
      token++;
      sizes.disconnect();
      [list, more].forEach(clear);
    },
  };
}

const tab = { key: "figures", title: "Figures", mount: mountFigures };

export { broken, dressed, slim, figuresWait, tab };
