/* The tabs below the transport, in the order of the list in views.js. */
import { POINTS } from "./contract.js";
import { h } from "./dom.js";
import { TABS } from "./views.js";

const failure = (error) =>
  `This view failed (${error.message}). The other tabs still work; reload the page to try again.`;

class Tabs {
  constructor(page, { uid }) {
    this.page = page;
    this.shown = null;
    this.bar = h("div", "d2-tabbar", {
      role: "tablist",
      "aria-label": "Views",
      "data-point": POINTS.tabs,
    });
    this.panels = h("div", "d2-panels");
    this.tabs = TABS.map((spec) => this.build(spec, uid));
    this.bar.append(...this.tabs.map((tab) => tab.button));
    this.panels.append(...this.tabs.map((tab) => tab.host));
    this.bar.addEventListener("keydown", (e) => this.walk(e));
  }

  build(spec, uid) {
    const button = h("button", "d2-tab", {
      type: "button",
      role: "tab",
      id: `${uid}-tab-${spec.key}`,
      textContent: spec.title,
      "data-point": POINTS[`${spec.key}-tab`],
      "aria-selected": "false",
      "aria-controls": `${uid}-panel-${spec.key}`,
      tabIndex: -1,
      onclick: () => this.page.show(spec.key),
    });
    const host = h("div", `d2-panel d2-panel-${spec.key}`, {
      role: "tabpanel",
      id: `${uid}-panel-${spec.key}`,
      "aria-labelledby": button.id,
      hidden: true,
    });
    host.append(h("h2", "d2-sr", { textContent: spec.title }));
    return { spec, button, host, view: null };
  }

  // Arrow keys walk the tabs.
  walk(e) {
    const i = this.tabs.findIndex((tab) => tab.button === e.target),
      n = this.tabs.length;
    const to = { ArrowRight: (i + 1) % n, ArrowLeft: (i + n - 1) % n, Home: 0, End: n - 1 }[e.key];
    if (i < 0 || to === undefined) return;
    e.preventDefault(); // the stage's own arrows move the clock
    this.page.show(this.tabs[to].spec.key);
    this.tabs[to].button.focus();
  }

  get key() {
    return this.shown?.spec.key ?? null;
  }

  // Shows a tab; false when there is none of that name.
  show(key) {
    const to = this.tabs.find((tab) => tab.spec.key === key);
    if (!to) return false;
    for (const { button, host } of this.tabs) {
      const on = button === to.button;
      button.setAttribute("aria-selected", String(on));
      button.tabIndex = on ? 0 : -1;
      host.hidden = !on;
    }
    if (this.shown !== to) this.scrollTo(to.button);
    this.shown = to;
    return true;
  }

  // On a phone it may be out of sight.
  scrollTo(button) {
    const { bar } = this;
    bar.scrollLeft = button.offsetLeft - (bar.clientWidth - button.offsetWidth) / 2;
  }

  // A view is made when it is painted first.
  paint() {
    const { shown, page } = this;
    if (!shown) return;
    this.guard(shown, () => {
      shown.view ??= shown.spec.mount(shown.host, page);
      shown.view.paint();
    });
  }

  drawAll() {
    const { shown } = this;
    if (shown?.view?.drawAll) this.guard(shown, () => shown.view.drawAll());
  }

  // A view that fails must not break the others.
  guard(tab, what) {
    try {
      what();
    } catch (error) {
      console.error(error);
      tab.view = { paint() {} };
      const note = { role: "alert", textContent: failure(error) };
      tab.host.replaceChildren(h("p", "d2-note d2-alert", note));
    }
  }

  destroy() {
    for (const tab of this.tabs) tab.view?.destroy?.();
  }
}

export { Tabs };
