// The stage's component: Gradio runs this when it is on the page, with element, props, server,
// trigger and watch. D2Stage and the page's data come with the page's head.
let sent = 0;
const typed = () => document.querySelector("#prompt textarea");
const stage = D2Stage.open(element.querySelector(".stage-host"), {
  plotly: "gradio_api/plotly.min.js",
  ask: async (name, given) => {
    const got = await server.ask(JSON.stringify([name, given || {}]));
    if (got.error) throw new Error(got.error);
    return got;
  },
  send: (query) => trigger("submit", { query, number: (sent += 1) }),
  press: (name) => document.getElementById(name)?.click(),
  prompt: () => typed()?.value,
  type: keepTyped,
});
// What was typed, also after the page has filled in what its address says, until the reader does
// something.
function keepTyped(text) {
  const put = () => {
    const box = typed();
    if (!box || box.value === text) return;
    box.value = text;
    box.dispatchEvent(new Event("input", { bubbles: true }));
  };
  put();
  const watching = setInterval(put, 100),
    stop = () => clearInterval(watching);
  for (const done of ["pointerdown", "keydown"])
    addEventListener(done, stop, { capture: true, once: true });
  setTimeout(stop, 20000);
}
// Gradio opens the page again as soon as the server is back; until then, what is shown stays.
const AWAY =
  "The server cannot be reached. What is shown stays; the page goes on when the server is back.";
async function look() {
  if (document.hidden) return;
  let away = AWAY;
  try {
    if ((await fetch("gradio_api/app_id", { cache: "no-store" })).ok) away = "";
  } catch {
    // as when it answers with a fault
  }
  stage.setAway(away);
}
const looking = setInterval(() => (element.isConnected ? look() : clearInterval(looking)), 4000);
if (props.value) stage.receive(props.value);
watch("value", () => {
  if (props.value) stage.receive(props.value);
});
