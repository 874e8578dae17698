/* The tabs below the transport, in the order of the list in views.js. */
import { POINTS } from "./contract.js";
import { h } from "./dom.js";
import { TABS } from "./views.js";

function makeTabs(page, { uid, onShow }) {
  const bar = h("div", "d2-tabbar", {
      role: "tablist",
      "aria-label": "Views",
      "data-point": POINTS.tabs,
    }),
    panels = h("div", "d2-panels");
  let shown = null;
  const tabs = TABS.map((spec) => {
    const button = h("button", "d2-tab", {
      type: "button",
      role: "tab",
      id: `${uid}-tab-${spec.key}`,
      textContent: spec.title,
      "data-point": POINTS[`${spec.key}-tab`],
      "aria-selected": "false",
      "aria-controls": `${uid}-panel-${spec.key}`,
      tabIndex: -1,
      onclick: () => onShow(spec.key),
    });
    const host = h("div", `d2-panel d2-panel-${spec.key}`, {
      role: "tabpanel",
      id: `${uid}-panel-${spec.key}`,
      "aria-labelledby": button.id,
      hidden: true,
    });
    bar.append(button);
    panels.append(host);
    return { spec, button, host, view: null };
  });

  bar.addEventListener("keydown", (e) => {
    const i = tabs.findIndex((tab) => tab.button === e.target),
      n = tabs.length;
    const to = { ArrowRight: (i + 1) % n, ArrowLeft: (i + n - 1) % n, Home: 0, End: n - 1 }[e.key];
    if (i < 0 || to === undefined) return;
    e.preventDefault(); // the stage's own arrows move the clock
    onShow(tabs[to].spec.key);
    tabs[to].button.focus();
  });

  // Shows a tab, made on first use. False when there is none of that name.
  function show(key) {
    const to = tabs.find((tab) => tab.spec.key === key);
    if (!to) return false;
    for (const tab of tabs) {
      const on = tab === to;
      tab.button.setAttribute("aria-selected", String(on));
      tab.button.tabIndex = on ? 0 : -1;
      tab.host.hidden = !on;
    }
    if (shown !== to)
      // on a phone it may be out of sight
      bar.scrollLeft = to.button.offsetLeft - (bar.clientWidth - to.button.offsetWidth) / 2;
    shown = to;
    return true;
  }

  // A view that fails must not break the others.
  function guarded(tab, what) {
    try {
      what();
    } catch (error) {
      console.error(error);
      tab.view = { paint() {}, destroy() {} };
      tab.host.replaceChildren(
        h("p", "d2-note d2-alert", {
          role: "alert",
          textContent:
            `This view failed (${error.message}). The other tabs go on; reload the page to try ` +
            "again.",
        }),
      );
    }
  }

  function paint() {
    if (!shown) return;
    guarded(shown, () => {
      shown.view ??= shown.spec.mount(shown.host, page);
      shown.view.paint();
    });
  }

  const drawAll = () => {
    if (shown?.view?.drawAll) guarded(shown, () => shown.view.drawAll());
  };
  const destroy = () => {
    for (const tab of tabs) tab.view?.destroy?.();
  };
  return {
    bar,
    panels,
    show,
    paint,
    drawAll,
    destroy,
    get key() {
      return shown?.spec.key ?? null;
    },
  };
}

export { makeTabs };
