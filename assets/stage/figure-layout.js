/* Figures in the colours of the page, and in the layout of a phone. Pure: what Plotly draws, in and
 * out. */

const NARROW = 560; // px; below it a figure has the layout of a phone
const LINE = 34; // characters of an axis title on one line there
// Four panels, two by two: left and bottom edges, and sizes, as shares of the figure.
const PANELS = { left: [0.04, 0.54], bottom: [0.57, 0], width: 0.44, height: 0.38 };
const BAR = {
  orientation: "h",
  x: 0.5,
  xanchor: "center",
  y: 1.04,
  yanchor: "bottom",
  len: 0.9,
  thickness: 10,
};
const LEGEND = { orientation: "v", x: 0, xanchor: "left", y: 1.03, yanchor: "bottom" };

const axesOf = (layout) => Object.keys(layout).filter((key) => /^[xy]axis\d*$/.test(key));

// A text broken into lines, for a drawing that breaks none itself.
function broken(text, most) {
  const lines = [""];
  for (const word of text.split(" ")) {
    if (lines.at(-1) && lines.at(-1).length + word.length + 1 > most) lines.push("");
    lines[lines.length - 1] += (lines.at(-1) ? " " : "") + word;
  }
  return lines.join("<br>");
}

// A figure in the colours of the page: only what has to change, the rest stays as it was sent.
function dressed(layout, dark, solid, family = "system-ui, sans-serif") {
  const ink = dark ? "#e6e9ee" : "#1f2937",
    grid = dark ? "rgba(255,255,255,0.16)" : "rgba(0,0,0,0.12)",
    paper = dark ? "#10141b" : "#ffffff";
  const out = {
    ...layout,
    font: { ...layout.font, color: ink, family },
    paper_bgcolor: solid ? paper : "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
  };
  for (const key of axesOf(layout))
    out[key] = { ...layout[key], gridcolor: grid, automargin: true };
  if (solid) return { ...out, annotations: layout.annotations };
  return { ...out, title: { text: "" }, margin: { l: 60, r: 24, t: 34, b: 56 } };
}

// ---- the same for a phone: small letters, titles in lines, legends and colour bars underneath,
// panels two by two

const hasBar = (data) => data.some((trace) => trace.colorbar ?? trace.marker?.colorbar);

// How many lines the longest title of an x axis takes.
const titleLines = (layout) =>
  Math.max(
    1,
    ...Object.keys(layout)
      .filter((key) => key.startsWith("xaxis"))
      .map((key) => broken(layout[key].title?.text ?? "", LINE).split("<br>").length),
  );

// bare: beside a colour bar Plotly's own margins put the title of an x axis on the ticks
function slimAxis(axis, bare) {
  const text = axis.title?.text,
    out = { ...axis, nticks: 5, tickangle: 0 };
  if (bare) out.automargin = false;
  if (text) {
    const room = bare ? {} : { standoff: 6 };
    out.title = { ...axis.title, text: broken(text, LINE), ...room, font: { size: 11 } };
  }
  return out;
}

function slimTrace(trace) {
  const bar = (had) => ({
    ...had,
    ...BAR,
    title: { text: had.title?.text ?? had.title, side: "top" },
  });
  if (trace.colorbar) return { ...trace, colorbar: bar(trace.colorbar) };
  if (!trace.marker?.colorbar) return trace;
  return { ...trace, marker: { ...trace.marker, colorbar: bar(trace.marker.colorbar) } };
}

function slimHeight(data) {
  if (data.some((trace) => trace.type === "heatmap")) return 360;
  const named = data.filter((trace) => trace.name && trace.showlegend !== false).length;
  return 280 + 18 * (named > 1 ? named : 0);
}

// Changes `out`, of four panels side by side, to two by two.
function stackPanels(out) {
  const { left, bottom, width, height } = PANELS,
    title = out.yaxis.title;
  for (let i = 0; i < 4; i++) {
    const n = i ? i + 1 : "",
      x = left[i % 2],
      y = bottom[i >> 1],
      lower = i > 1,
      first = i % 2 === 0;
    out[`xaxis${n}`] = { ...out[`xaxis${n}`], domain: [x, x + width] };
    if (!lower) out[`xaxis${n}`].title = { text: "" };
    out[`yaxis${n}`] = { ...out[`yaxis${n}`], domain: [y, y + height] };
    if (first) Object.assign(out[`yaxis${n}`], { showticklabels: true, title });
  }
  out.height = 440;
  out.annotations = (out.annotations ?? []).map((one, i) =>
    i < 4 ? { ...one, ...panelTitle(i), font: { size: 11 } } : one,
  );
}

const panelTitle = (i) => ({
  x: PANELS.left[i % 2] + PANELS.width / 2,
  y: PANELS.bottom[i >> 1] + PANELS.height,
});

function slim(data, layout) {
  const axes = axesOf(layout),
    barred = hasBar(data);
  const out = {
    ...layout,
    font: { ...layout.font, size: 11 },
    margin: { l: 8, r: 12, t: 12, b: 36 + 14 * titleLines(layout) },
    legend: { ...layout.legend, ...LEGEND, font: { size: 11 } },
    height: slimHeight(data),
  };
  for (const key of axes) out[key] = slimAxis(layout[key], barred && key.startsWith("x"));
  if (axes.filter((key) => key.startsWith("x")).length === 4) stackPanels(out);
  return { data: data.map(slimTrace), layout: out };
}

export { NARROW, broken, dressed, slim };
