// The stage's component: Gradio runs this when it is on the page, with element, props, server,
// trigger and watch. D2Stage and the page's data come with the page's head.
let sent = 0;
const stage = D2Stage.open(element.querySelector(".stage-host"), {
  plotly: "gradio_api/plotly.min.js",
  ask: async (name, given) => {
    const got = await server.ask(JSON.stringify([name, given || {}]));
    if (got.error) throw new Error(got.error);
    return got;
  },
  send: (query) => trigger("submit", { query, number: (sent += 1) }),
});
if (props.value) stage.receive(props.value);
watch("value", () => {
  if (props.value) stage.receive(props.value);
});
