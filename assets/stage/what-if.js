/* What if: change a token, refresh what is kept or turn a knob after the current step, and run on
 * from there as a new lane. */
import { POINTS, QUESTIONS } from "./contract.js";
import { h } from "./dom.js";
import { branchQuery, editKnobs, editWords, isEdit, refreshOf } from "./edits.js";
import { chipData, writeAt } from "./run.js";
import { placeOf, quoted } from "./sentences.js";
import { caption, pick } from "./widgets.js";

const KEEP = "keep",
  OTHER = "other",
  MASK = "mask";
const LEAD =
  "Change something after the current step and let the model run on from there. The new run " +
  "becomes a lane of its own, beside this one; this one stays as it is.";
const REFRESHES = [
  ["none", "nothing"],
  ["position", "this position"],
  ["prompt", "the prompt"],
  ["answer", "the answer"],
  ["all", "every position"],
];
const SWITCH = [
  ["1", "on"],
  ["0", "off"],
];

// What can be put at position p: what is there, what the model considered there, anything, a mask.
function tokensFor(run, step, p) {
  const now = chipData(run, p, step),
    seen = new Set(now.masked ? [] : [now.text]),
    list = [[KEEP, now.masked ? "leave it masked" : `leave ${quoted(now.text)}`]];
  for (const write of run.changes[p] || [])
    for (const text of [...(write.top || []).map(([t]) => t), write.text]) {
      if (text === null || text === undefined || seen.has(text)) continue;
      seen.add(text);
      list.push([`=${text}`, `write ${quoted(text)}`]);
    }
  list.push([OTHER, "write another token …"]);
  if (p >= run.P && !now.masked)
    list.push([MASK, writeAt(run, p, step)?.given ? "mask it" : "mask it again"]);
  return list;
}

const keyOf = (knob) => `${knob.kind}.${knob.name}`;

function knobOption(knob) {
  const value = knob.flag ? (knob.value ? "on" : "off") : knob.value;
  return [keyOf(knob), `${knob.kind}: ${knob.name.replaceAll("_", " ")} (now ${value})`];
}

const field = (label, ...kids) =>
  h("div", "d2-if", {}, h("span", "d2-if-label", { textContent: label }), ...kids);

class WhatIf {
  constructor(page) {
    this.page = page;
    this.p = 0; // the position that the tab shows
    this.token = KEEP;
    this.refresh = "none";
    this.knob = "";
    this.tokensKey = "";
    this.knobsFor = "";
    this.busy = false;
    this.before = null; // the runs on the board when a lane was asked for
    this.buildFields();
    this.build();
  }

  buildFields() {
    const changed = () => this.changed();
    const set = (name) => (v) => {
      this[name] = v;
      this.changed();
    };
    this.tokens = pick("Another token here", [[KEEP, "leave as it is"]], KEEP, set("token"));
    this.typed = h("input", "d2-field", {
      type: "text",
      "aria-label": "The token: its text, or # and its id",
      placeholder: "text, or #id",
      maxLength: 40,
      hidden: true,
      oninput: changed,
    });
    this.fresh = pick("Refresh", REFRESHES, this.refresh, set("refresh"));
    this.knobs = pick("Turn a knob", [["", "none"]], "", (v) => this.chooseKnob(v));
    this.number = h("input", "d2-field d2-short", {
      type: "number",
      step: "any",
      "aria-label": "Its new value",
      hidden: true,
      oninput: changed,
    });
    this.flag = pick("Its new value", SWITCH, "1", changed);
    this.flag.hidden = true;
  }

  build() {
    const { tokens, typed, fresh, knobs, number, flag } = this;
    this.status = h("p", "d2-more");
    this.trouble = h("p", "d2-note d2-alert", { role: "alert", hidden: true });
    this.go = h("button", "d2-button", {
      type: "button",
      disabled: true,
      onclick: () => this.start(),
    });
    this.el = h(
      "section",
      "d2-whatif",
      { "data-point": POINTS.whatif, "aria-label": "What if" },
      h("h3", "d2-title", { textContent: "What if …" }),
      caption(LEAD),
      h(
        "div",
        "d2-ifs",
        {},
        field("this token", tokens, typed),
        field("refresh", fresh),
        field("a knob", knobs, number, flag),
      ),
      h("div", "d2-if-go", {}, this.go, this.status),
      this.trouble,
    );
  }

  // ---- what is chosen

  changed() {
    this.typed.hidden = this.token !== OTHER;
    this.trouble.hidden = true;
    this.page.schedule();
  }

  chooseKnob(key) {
    this.knob = key;
    this.showKnob();
    this.changed();
  }

  chosenKnob() {
    return editKnobs(this.page.run.start).find((knob) => keyOf(knob) === this.knob);
  }

  showKnob() {
    const knob = this.chosenKnob();
    this.number.hidden = !knob || knob.flag;
    this.flag.hidden = !knob || !knob.flag;
    if (knob?.flag)
      this.flag.value = knob.value ? "0" : "1"; // the only other value
    else if (knob) this.number.value = knob.value;
  }

  newValue(knob) {
    if (knob.flag) return this.flag.value === "1";
    return this.number.value === "" ? NaN : Number(this.number.value);
  }

  // The edit as the server takes it; tokens: [[position, id]], empty while no id is known.
  edit(tokens = []) {
    const { page, refresh, p } = this,
      knob = this.chosenKnob(),
      value = knob && this.newValue(knob),
      turned = knob && knob.value !== value ? { [knob.kind]: { [knob.name]: value } } : {};
    return { step: page.step, tokens, refresh: refreshOf(page.run, refresh, p), ...turned };
  }

  // The token in the edit without its id, which only the server knows: for the sentence about it.
  sketch() {
    return this.edit(this.wantsToken() ? [[this.p, 0]] : []);
  }

  text() {
    return this.token === OTHER ? this.typed.value : this.token.slice(1);
  }

  wantsToken() {
    return this.token === MASK || (this.token !== KEEP && this.text() !== "");
  }

  async tokenId() {
    const { run } = this.page,
      text = this.text();
    if (this.token === MASK) {
      if (Number.isInteger(run.start.mask)) return run.start.mask;
      return (await this.page.ask(QUESTIONS.token, { run: run.key, mask: true })).id;
    }
    if (this.token === OTHER && /^#\d+$/.test(text.trim())) return Number(text.trim().slice(1));
    return (await this.page.ask(QUESTIONS.token, { run: run.key, text })).id;
  }

  // ---- the new lane

  async start() {
    if (this.busy) return;
    this.busy = true;
    this.trouble.hidden = true;
    this.page.schedule();
    try {
      await this.send(this.page.run.key, this.p);
    } catch (error) {
      this.ended(String(error?.message || error));
    }
    this.page.schedule();
  }

  async send(run, p) {
    const wanted = this.edit(),
      tokens = this.wantsToken() ? [[p, await this.tokenId()]] : [];
    this.before = new Set(this.page.board.lanes.map((lane) => lane.key));
    this.page.board.refused = "";
    await this.page.send(branchQuery(run, { ...wanted, tokens }));
  }

  // The lane is there, or will not come: the button can be used again.
  ended(problem = "") {
    this.busy = false;
    this.before = null;
    this.trouble.textContent = problem;
    this.trouble.hidden = !problem;
    this.page.schedule();
  }

  // Whether the lane that was asked for has come, or was refused.
  watch() {
    if (!this.before) return;
    const { board } = this.page,
      at = board.lanes.findIndex((lane) => !this.before.has(lane.key));
    if (at < 0) {
      if (board.refused) this.ended(board.refused);
      return;
    }
    this.ended();
    this.page.showLane(at);
  }

  // ---- what it shows

  paint(p) {
    const { page } = this;
    this.p = p;
    this.watch();
    this.offerTokens();
    this.offerKnobs();
    const obstacle = this.obstacle();
    this.go.textContent =
      page.step < 0 ? "Run on as a new lane" : `Run on from step ${page.step + 1} as a new lane`;
    this.go.disabled = Boolean(obstacle) || this.busy;
    this.fresh.options[1].textContent = `this position (${placeOf(page.run, p)})`;
    this.status.textContent = this.busy ? "Starting …" : obstacle || this.summary();
  }

  offerTokens() {
    const { run, step } = this.page,
      list = tokensFor(run, step, this.p),
      place = JSON.stringify([run.key, this.p]),
      key = JSON.stringify([run.key, this.p, list]);
    if (key === this.tokensKey) return;
    const moved = !this.tokensKey.startsWith(place.slice(0, -1));
    if (moved || !list.some(([v]) => v === this.token)) this.token = KEEP;
    this.tokensKey = key;
    this.tokens.fill(list, this.token);
    this.changed();
  }

  offerKnobs() {
    const { run } = this.page;
    if (this.knobsFor === run.key) return;
    this.knobsFor = run.key;
    this.knob = "";
    this.knobs.fill([["", "none"], ...editKnobs(run.start).map(knobOption)], "");
    this.showKnob();
  }

  // Why there can be no new lane now; "": there can.
  obstacle() {
    const { offline, run, step } = this.page;
    if (offline) return "What if needs the running app; this page only replays recorded runs.";
    if (step < 0) return "Wait for the first step.";
    if (run.status === "done" && step === run.records.length - 1)
      return "The run ends here. Go back to an earlier step to change something.";
    if (!this.wantsToken() && !isEdit(this.edit())) return "Choose at least one change.";
    return "";
  }

  summary() {
    const { run } = this.page,
      sketch = this.sketch(),
      names = { [this.p]: this.token === MASK ? null : this.text() },
      partial = (sketch.tokens.length || sketch.refresh) && sketch.refresh !== "all",
      whole =
        run.start.by_layer && partial
          ? " This policy decides layer by layer: it then refreshes every position."
          : "";
    return editWords(run, sketch, names) + whole;
  }
}

export { WhatIf };
