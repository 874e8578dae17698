/* What the lanes of a finished board came to, as a table: right or wrong, the answer, time, work. */
import { h } from "./dom.js";
import { fixed, percent } from "./numbers.js";

const HEADS = ["lane", "answer", "time", "FLOPs vs no cache", "tokens equal to lane 1"];

function verdictOf({ right }) {
  if (right === null) return h("span", "d2-quiet", { textContent: "not known" });
  const cls = right ? "d2-right" : "d2-wrong";
  return h("b", cls, { textContent: right ? "✓ right" : "✗ wrong" });
}

const cell = (...kids) => h("td", "", {}, ...kids);

function rowOf(row, i) {
  const lane = h("th", "", { scope: "row" }, h("b", "d2-badge", { textContent: i + 1 }), row.name),
    equal = row.equal === null ? "–" : percent(row.equal);
  return h(
    "tr",
    "",
    {},
    lane,
    cell(verdictOf(row)),
    cell(row.answer),
    cell(`${fixed(row.seconds, 2)} s`),
    cell(`${fixed(row.flops, 2)}×`),
    cell(equal),
  );
}

// The table of a board's results, in the order of its lanes; null: there are none yet.
function resultsTable({ lanes, results }) {
  const rows = lanes.map((run) => results.find((row) => row.run === run.key));
  if (!results.length || rows.some((row) => !row)) return null;
  const heads = HEADS.map((textContent) => h("th", "", { scope: "col", textContent }));
  heads[1].colSpan = 2;
  return h(
    "table",
    "d2-results",
    { "aria-label": "Results of the lanes" },
    h("thead", "", {}, h("tr", "", {}, ...heads)),
    h("tbody", "", {}, ...rows.map(rowOf)),
  );
}

export { resultsTable };
