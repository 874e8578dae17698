/* Plays the lessons of a file: their runs come packed in a tag, each lane once, and a card is shown
 * what its query asks for. The hash of the address says which card is open. */
import { mount } from "./mount.js";

const TOO_OLD = "This browser cannot unpack the runs of this file: open it in a newer one.";

// The runs of a file: base64 of gzipped JSON, {lanes: {key: [event]}, runs: {query: [[key, name]]}}.
async function unpacked(text) {
  const bytes = Uint8Array.from(atob(text.trim()), (c) => c.charCodeAt(0)),
    stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

// The message with the lanes of a query, as a server would send it. board: a key that is new.
function messageOf({ lanes, runs }, query, board) {
  const of = ([key, name], lane) => {
    const run = `${board}-${lane}`;
    return lanes[key].map((event) =>
      event.k === "start" ? { ...event, run, board, lane, name } : { ...event, run },
    );
  };
  return JSON.stringify({ events: [{ k: "link", board, query }, ...runs[query].flatMap(of)] });
}

// host: where the stage is put; text: of the tag; options: those of mount. -> the stage
async function playLessons(host, text, options) {
  let sent = 0;
  if (!globalThis.DecompressionStream) {
    host.textContent = TOO_OLD;
    return null;
  }
  const data = await unpacked(text),
    view = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  const show = (query) => stage.receive(messageOf(data, query, `file-${(sent += 1)}`));
  const has = (query) => Object.hasOwn(data.runs, query);
  const stage = mount(host, { ...options, view, offline: true, has, send: show });
  stage.page.depth.set(true); // its lessons are the way in, and point at anything
  host.addEventListener("d2:state", ({ detail }) => {
    const card = detail.lesson ? `#${new URLSearchParams(detail.lesson)}` : "#";
    if (location.hash !== card) history.replaceState(null, "", card);
  });
  show(Object.keys(data.runs)[0]);
  return stage;
}

export { messageOf, playLessons, unpacked };
