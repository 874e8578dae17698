/* What if: change a token, refresh what is kept or turn a knob after the step on view, and run on from there as a new lane. */
import { POINTS, QUESTIONS } from "./contract.js";
import { h } from "./dom.js";
import { branchQuery, editKnobs, editWords, isEdit, refreshOf } from "./edits.js";
import { chipData } from "./run.js";
import { placeOf, quoted } from "./sentences.js";
import { paragraph, pick } from "./widgets.js";

const KEEP = "keep",
  OTHER = "other",
  MASK = "mask";
const PATIENCE = 6000; // ms; a lane that was refused never comes, and the page says why elsewhere

function makeWhatIf(page) {
  let p = 0,
    token = KEEP,
    refresh = "none",
    knob = "",
    offered = "",
    knobsFor = "",
    busy = false,
    before = null,
    timer = 0; // before: the runs on the board when a lane was asked for
  const said = h("p", "d2-more"),
    trouble = h("p", "d2-note d2-alert", { role: "alert", hidden: true });
  const tokens = pick("Another token here", [[KEEP, "leave as it is"]], KEEP, (v) => {
    token = v;
    change();
  });
  const typed = h("input", "d2-field", {
    type: "text",
    "aria-label": "The token: its text, or # and its id",
    placeholder: "text, or #id",
    maxLength: 40,
    hidden: true,
    oninput: change,
  });
  const fresh = pick(
    "Refresh",
    [
      ["none", "nothing"],
      ["position", "this position"],
      ["prompt", "the prompt"],
      ["answer", "the answer"],
      ["all", "every position"],
    ],
    refresh,
    (v) => {
      refresh = v;
      change();
    },
  );
  const knobs = pick("Turn a knob", [["", "none"]], "", (v) => {
    knob = v;
    showKnob();
    change();
  });
  const number = h("input", "d2-field d2-short", {
    type: "number",
    step: "any",
    "aria-label": "Its new value",
    hidden: true,
    oninput: change,
  });
  const flag = pick(
    "Its new value",
    [
      ["1", "on"],
      ["0", "off"],
    ],
    "1",
    change,
  );
  flag.hidden = true;
  const go = h("button", "d2-button", { type: "button", disabled: true, onclick: start });
  const field = (label, ...kids) =>
    h("div", "d2-if", {}, h("span", "d2-if-label", { textContent: label }), ...kids);
  const el = h(
    "section",
    "d2-whatif",
    { "data-point": POINTS.whatif, "aria-label": "What if" },
    h("h4", "d2-title", { textContent: "What if …" }),
    paragraph(
      "d2-more",
      "Change something after the step on view and let the model run on from there. The new run becomes a lane of its own, beside this one; this one stays as it is.",
    ),
    h(
      "div",
      "d2-ifs",
      {},
      field("this token", tokens, typed),
      field("refresh", fresh),
      field("a knob", knobs, number, flag),
    ),
    h("div", "d2-if-go", {}, go, said),
    trouble,
  );

  const chosenKnob = () => editKnobs(page.run.start).find((k) => `${k.kind}.${k.name}` === knob);

  function showKnob() {
    const k = chosenKnob();
    number.hidden = !k || k.flag;
    flag.hidden = !k || !k.flag;
    if (k?.flag)
      flag.value = k.value ? "0" : "1"; // the other one: there is no third
    else if (k) number.value = k.value;
  }

  // The edit but for a token's id, which the server knows; a token that is not told yet counts as one.
  function edit(ids = []) {
    const k = chosenKnob(),
      value = k && (k.flag ? flag.value === "1" : number.value === "" ? NaN : Number(number.value));
    const turned = k && k.value !== value ? { [k.kind]: { [k.name]: value } } : {};
    return { step: page.step, tokens: ids, refresh: refreshOf(page.run, refresh, p), ...turned };
  }

  const text = () => (token === OTHER ? typed.value : token.slice(1));
  const wantsToken = () => token === MASK || (token !== KEEP && text() !== "");

  function offer() {
    const { run, step } = page,
      now = chipData(run, p, step),
      seen = new Set(now.masked ? [] : [now.text]),
      list = [[KEEP, now.masked ? "leave it masked" : `leave ${quoted(now.text)}`]];
    for (const write of run.changes[p] || [])
      for (const option of [...(write.top || []).map(([t]) => t), write.text]) {
        if (option !== null && option !== undefined && !seen.has(option)) {
          seen.add(option);
          list.push([`=${option}`, `write ${quoted(option)}`]);
        }
      }
    list.push([OTHER, "write another token …"]);
    if (p >= run.P && !now.masked) list.push([MASK, "mask it again"]);
    const key = JSON.stringify([run.key, p, list]);
    if (key === offered) return;
    if (
      !offered.startsWith(JSON.stringify([run.key, p]).slice(0, -1)) ||
      !list.some(([v]) => v === token)
    )
      token = KEEP;
    offered = key;
    tokens.fill(list, token);
    change();
  }

  function offerKnobs() {
    const key = `${page.run.key}`;
    if (knobsFor === key) return;
    knobsFor = key;
    knob = "";
    knobs.fill(
      [
        ["", "none"],
        ...editKnobs(page.run.start).map((k) => [
          `${k.kind}.${k.name}`,
          `${k.kind}: ${k.name.replaceAll("_", " ")} (now ${k.flag ? (k.value ? "on" : "off") : k.value})`,
        ]),
      ],
      "",
    );
    showKnob();
  }

  function change() {
    typed.hidden = token !== OTHER;
    trouble.hidden = true;
    page.schedule();
  }

  async function tokenId() {
    const { run } = page;
    if (token === MASK)
      return Number.isInteger(run.start.mask)
        ? run.start.mask
        : (await page.ask(QUESTIONS.token, { run: run.key, mask: true })).id;
    const id =
      token === OTHER && /^#\d+$/.test(text().trim()) ? Number(text().trim().slice(1)) : null;
    return id ?? (await page.ask(QUESTIONS.token, { run: run.key, text: text() })).id;
  }

  async function start() {
    if (busy) return;
    busy = true;
    trouble.hidden = true;
    const { run } = page,
      at = p;
    page.schedule();
    try {
      const wanted = edit(),
        ids = wantsToken() ? [[at, await tokenId()]] : [];
      before = new Set(page.board.lanes.map((lane) => lane.key));
      timer = setTimeout(
        () =>
          ended(
            "No new lane has come yet. If it was refused, the line under the buttons at the left says why.",
          ),
        PATIENCE,
      );
      await page.send(branchQuery(run.key, { ...wanted, tokens: ids }));
    } catch (error) {
      ended(String(error?.message || error));
    }
    page.schedule();
  }

  // The lane is there, or will not come: the button can be used again.
  function ended(problem = "") {
    clearTimeout(timer);
    busy = false;
    before = null;
    trouble.textContent = problem;
    trouble.hidden = !problem;
    page.schedule();
  }

  function reason() {
    const { run, step } = page;
    if (page.offline) return "What if needs the running app; this page only replays what was run.";
    if (step < 0) return "Wait for the first step.";
    if (run.status === "done" && step === run.records.length - 1)
      return "The run ends here. Go back to an earlier step to change something.";
    if (!wantsToken() && !isEdit(edit())) return "Choose at least one change.";
    return "";
  }

  // place: the position that the token tab shows
  function paint(place) {
    p = place;
    if (before && page.board.lanes.some((lane) => !before.has(lane.key))) ended();
    offer();
    offerKnobs();
    const why = reason(),
      names = { [p]: token === MASK ? null : text() };
    go.textContent =
      page.step < 0 ? "Run on as a new lane" : `Run on from step ${page.step + 1} as a new lane`;
    go.disabled = Boolean(why) || busy;
    fresh.options[1].textContent = `this position (${placeOf(page.run, p)})`;
    const unmade = { ...edit(), tokens: wantsToken() ? [[p, 0]] : [] };
    const whole =
      page.run.start.by_layer &&
      (unmade.tokens.length || unmade.refresh) &&
      unmade.refresh !== "all"
        ? " This policy decides layer by layer: it then refreshes every position."
        : "";
    said.textContent = busy ? "Starting …" : why || editWords(page.run, unmade, names) + whole;
  }

  return { el, paint, destroy: () => clearTimeout(timer) };
}

export { makeWhatIf };
