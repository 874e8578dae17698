"""Measure the page's speed as a visitor sees it: python -m analysis.tools.page_targets [PART...]

Starts `python app.py`, drives it in a Chromium on the same machine, and prints each measurement
beside its target. Machines differ, and the server and the browser share their cores here.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

import d2cache
from analysis.page import export
from analysis.tools import browser
from d2cache import command

PARTS = ("open", "runs", "board", "export")
STORY = "Tell a story about a brave fox named Max who finds a key in the forest."
WATCH = """() => {
  const sent = new Map(), receive = D2Stage.stage.receive;
  window.paints = [];
  D2Stage.stage.receive = (text) => {   // when the server sent the record with this number
    const {at, events} = JSON.parse(text);
    for (const e of events) if (e.k === 'rec') sent.set(e.run + e.seq, at);
    return receive(text);
  };
  document.querySelector('.stage-host').addEventListener('d2:paint', (e) => {
    const state = D2Stage.stage.state(), at = sent.get(state.run + (state.painted - 1));
    const now = performance.now();
    window.paints.push({at: now, lag: performance.timeOrigin + now - at, ...state});
  });
}"""


# Made-up runs of `steps` steps each, sent to the stage in the messages that a server would send.
FEED = """async ({P, G, steps, lanes}) => {
  const T = P + G, WORDS = [' the', ' key', ' fox', ' in', ' a', ' box', '.', ' said'];
  let seed = 7;
  const rand = (n) => { seed = (seed * 1103515245 + 12345) & 0x7fffffff; return seed % n; };
  const b64 = (bytes) => {
    let out = '';
    for (let i = 0; i < bytes.length; i++) out += String.fromCharCode(bytes[i]);
    return btoa(out);
  };
  const plane = (n, f) => b64(Uint8Array.from({length: n}, (_, i) => f(i)));
  const send = (events) => D2Stage.stage.receive(JSON.stringify({at: 0, events}));
  const names = ['none', 'd2', 'prefix', 'dllm', 'elastic', 'sparse'];
  const prompt = Array.from({length: P}, () => WORDS[rand(WORDS.length)]), orders = [];
  for (let lane = 0; lane < lanes; lane++) {
    const order = Array.from({length: G}, (_, g) => g);      // all the same for a while, then not
    for (let g = G >> 3; lane && g < G; g++) {
      const k = Math.min(G - 1, g + rand(24));
      [order[g], order[k]] = [order[k], order[g]];
    }
    orders.push(order);
    send([{k: 'start', run: `made-${lane}`, T, P, G, layers: 8, by_layer: false, model: 'tiny',
      policy: names[lane], decoder: 'confidence', block_length: 0, sigma: 10, prompt, mask: 1,
      knobs: {policy: {}, decoder: {sigma: 10}}, rollout: lane === 1, stored: false,
      eos: ['<|endoftext|>'], steps, board: `made-${P}`, lane, name: names[lane], branch: null,
      truth: false}]);
  }
  for (let s = 0; s < steps; s += 16) {
    for (let lane = 0; lane < lanes; lane++) {
      const events = [];
      for (let i = s; i < Math.min(steps, s + 16); i++) {
        const from = Math.floor(i * G / steps), to = Math.floor((i + 1) * G / steps), w = [];
        for (const g of orders[lane].slice(from, to)) {
          const text = g % 11 < 9 ? WORDS[g % 8] : WORDS[(g + lane) % 8];
          w.push([P + g, text, 0.5, WORDS.slice(0, 5).map((t) => [t, 0.2])]);
        }
        const y = plane(T, (p) => (i % 32 === 0 ? 1 : lane && (p * 7 + i) % 9 < 2 ? 4 << lane : 0));
        events.push({k: 'rec', run: `made-${lane}`, seq: i, s: i, ms: 20 + 5 * lane, rows: T / 4,
          out: 0, w, m: [], c: plane(G, (g) => (g * 5 + i) % 255), y, a: null,
          d: plane(G, (g) => (g + i) % 255),
          r: lane === 1 ? plane(T, (p) => 64 + (p * 3 + i) % 128) : null},
          {k: 'totals', run: `made-${lane}`, s: i, tokens: to, seconds: i / 40, tps: 40,
          hit_rate: 0.7, flops: 1e9 * (i + 1) * (lane ? 0.4 : 1), flops_none: 1e9 * (i + 1)});
      }
      send(events);
    }
    await new Promise(requestAnimationFrame);
  }
  for (let lane = 0; lane < lanes; lane++) {
    send([{k: 'end', run: `made-${lane}`, status: 'done', note: ''}]);
  }
}"""

STEP = """(to) => new Promise((done) => {
  const range = document.querySelector('.d2-range');
  range.value = to;
  range.dispatchEvent(new Event('input', {bubbles: true}));
  requestAnimationFrame(() => requestAnimationFrame(() => requestAnimationFrame(done)));
})"""


def main(argv=None) -> int:
    return command.guarded("page_targets", lambda: measure(argv))


def measure(argv) -> None:
    parser = command.Parser(
        prog="python -m analysis.tools.page_targets", description=__doc__.split("\n\n")[1]
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"default: {', '.join(PARTS)}")
    args = parser.parse_args(argv)
    unknown = [part for part in args.parts if part not in PARTS]
    if unknown:
        parser.error(f"there is no part {unknown[0]!r}; choose from {', '.join(PARTS)}")
    parts = args.parts or PARTS
    found = measure_page(parts) | (exported() if "export" in parts else {})
    for name, (value, target) in found.items():
        print(f"{name:62} {value:10.1f}   target {target}")
    print(json.dumps({name: value for name, (value, _) in found.items()}))


def measure_page(parts) -> dict:
    """The parts that need a browser: what was measured -> (value, target)."""
    found: dict[str, tuple[float, str]] = {}
    log = Path(tempfile.mkdtemp()) / "log"
    with sync_playwright() as playwright, browser.server(log) as (url, started):
        chrome = playwright.chromium.launch(executable_path=browser.chromium(), args=browser.FLAGS)
        page = new_page(chrome, url)
        if "runs" in parts:
            found["page usable, s after start"] = (time.perf_counter() - started, "<= 8")
        page.wait_for_timeout(6000)  # the model loads after the page has opened
        if "open" in parts:
            page.context.close()
            found |= opening(chrome, url)
            page = new_page(chrome, url)
        if "runs" in parts:
            found |= all_runs(page)
        page.context.close()
        if "board" in parts:
            for prompt, answer in ((256, 256), (0, 512)):
                found |= board(chrome, url, prompt, answer)
        chrome.close()
    return found


def all_runs(page) -> dict:
    """Live runs: painting, scrubbing, the size of the stream."""
    found = {}
    for policy in ("d2", "none"):
        browser.choose(page, "policy", policy)
        found |= {f"{k} ({policy})": v for k, v in one_run(page, STORY, 96).items()}
    median, late = scrub(page)
    found["scrub, ms to the painted step, median"] = (median, "<= 17")
    found["scrub, ms to the painted step, 95th percentile"] = (late, "<= 17")
    found["payload at T = 512, bytes a step"] = (payload(page), "<= 4096")
    return found | {f"{k} (512 + 128)": v for k, v in long_prompt(page).items()}


def new_page(chrome, url: str):
    """The page in a new browser context, with the stored run on its stage."""
    page = chrome.new_context(viewport={"width": 1400, "height": 950}).new_page()
    page.goto(url)
    page.wait_for_function("globalThis.D2Stage?.stage && D2Stage.stage.state().steps > 0")
    return page


def opening(chrome, url: str) -> dict:
    """Milliseconds from the navigation to the frame that shows the stored run, nothing cached:
    the median of five; and the processor time of the page's own work in it."""
    took, own = [], []
    for _ in range(5):
        context = chrome.new_context(viewport={"width": 1400, "height": 950})
        page = context.new_page()
        page.add_init_script(
            """document.addEventListener('d2:paint', (e) => {
            if (e.detail.seq >= 0) window.shown ??= performance.now(); }, true);"""
        )
        session = context.new_cdp_session(page)
        session.send("Performance.enable", {"timeDomain": "threadTicks"})
        page.goto(url)
        page.wait_for_function("window.shown !== undefined")
        metrics = session.send("Performance.getMetrics")["metrics"]
        own.append(1000 * next(m["value"] for m in metrics if m["name"] == "TaskDuration"))
        took.append(page.evaluate("window.shown"))
        context.close()
    return {
        "opening to the first painted stage, ms": (statistics.median(took), "<= 1000"),
        "opening, the page's own work, ms": (statistics.median(own), "-"),
    }


def board(chrome, url: str, prompt: int, answer: int, lanes=4, steps=512) -> dict:
    """Scrubbing a full board, tab by tab, and the memory of its renderer."""
    page = new_page(chrome, url)
    page.evaluate(FEED, {"P": prompt, "G": answer, "steps": steps, "lanes": lanes})
    page.wait_for_function("D2Stage.stage.state().status === 'done'")
    size, found = f"{lanes} x {steps} x {prompt}+{answer}", {}
    for tab in ("compare", "stage", "cache", "token"):
        page.evaluate("tab => { D2Stage.stage.setLane(1); D2Stage.stage.show(tab); }", tab)
        page.wait_for_timeout(600)
        for how, jump in (("steps", 1), ("jumps", 37)):
            page.evaluate("D2Stage.stage.goto(0)")
            page.wait_for_timeout(400)
            late = work(page, steps, jump)
            target = "<= 16.7" if jump == 1 else "-"  # a far jump is drawn over several frames
            found[f"{size}, {tab}, {how}: script + layout, p95 ms"] = (late, target)
    for name, key in (("private", ("Private_Clean", "Private_Dirty")), ("resident", ("Rss",))):
        target = "<= 300" if name == "private" else "-"
        found[f"{size}: renderer, {name} MB"] = (memory(page, key), target)
    page.context.close()
    return found


def work(page, steps: int, jump: int, times: int = 120) -> float:
    """Milliseconds of script, style and layout per step of the scrubber: the 95th percentile, in
    processor time, so that other work of the machine hardly matters."""
    session, parts = page.context.new_cdp_session(page), ("Script", "Layout", "RecalcStyle")
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    session.send("Runtime.evaluate", {"expression": f"window.toStep = {STEP}"})

    def spent() -> float:
        metrics = session.send("Performance.getMetrics")["metrics"]
        return sum(m["value"] for m in metrics if m["name"].removesuffix("Duration") in parts)

    took = []
    for i in range(times):
        before = spent()
        step = {"expression": f"toStep({i * jump % steps})", "awaitPromise": True}
        session.send("Runtime.evaluate", step)
        took.append(1000 * (spent() - before))
    session.detach()
    return sorted(took)[int(0.95 * times)]


def memory(page, kinds: tuple[str, ...]) -> float:
    """Megabytes of the largest renderer process: the sum of these lines of its smaps_rollup."""
    session = page.context.browser.new_browser_cdp_session()
    most = 0.0
    for process in session.send("SystemInfo.getProcessInfo")["processInfo"]:
        if process["type"] == "renderer":
            lines = Path(f"/proc/{process['id']}/smaps_rollup").read_text().splitlines()
            sizes = [int(x.split()[1]) for x in lines if x.partition(":")[0] in kinds]
            most = max(most, sum(sizes) / 1024)
    session.detach()
    return most


def exported() -> dict:
    """The size of an exported run, 128 steps and 256 positions; the larger of two policies."""
    model = d2cache.load("tiny", device="cpu")
    ids = model.encode("Kate has a red hat. " * 60)[-128:]
    sizes = []
    for policy in ("d2", "dllm"):
        steps = d2cache.generate(model, ids, policy, gen_length=128)
        trace = d2cache.Trace.record(steps)
        assert trace.tokens.shape == (129, 256), trace.tokens.shape
        text = export.page(export.lanes([trace]), "A run")
        sizes.append(len(text.encode()) / 1e3)
    return {"exported page, 128 steps x 256 positions, kB": (max(sizes), "<= 1000")}


def fill(page, label: str, value: str):
    box = page.get_by_label(f"number input for {label}")
    if not box.is_visible():
        page.get_by_text("Canvas", exact=True).click()
    box.fill(value)
    box.press("Enter")


def one_run(page, prompt: str, masks: int, least: int = 25) -> dict:
    """A run to the last mask: first paint, painted steps per second, lag behind the server."""
    page.locator("#prompt textarea").fill(prompt)
    fill(page, "answer length", str(masks))
    if page.get_by_label("stop at the end token").is_checked():
        page.get_by_label("stop at the end token").uncheck()
    page.evaluate(WATCH)
    old = page.evaluate("D2Stage.stage.state().run")
    page.evaluate("window.clicked = performance.now()")
    page.click("#run")
    page.wait_for_function(
        "run => D2Stage.stage.state().run !== run && D2Stage.stage.state().status === 'done'",
        arg=old,
    )
    paints = [p for p in page.evaluate("window.paints") if p["run"] != old and p["painted"] > 0]
    clicked = page.evaluate("window.clicked")
    seconds = (paints[-1]["at"] - paints[0]["at"]) / 1000
    # a record that is painted again has no lag
    lags = [
        b["lag"]
        for a, b in zip(paints, paints[1:], strict=False)
        if b["lag"] and b["painted"] > a["painted"]
    ]
    return {
        "click to first painted step, ms": (paints[0]["at"] - clicked, "<= 300"),
        "painted steps/s": (paints[-1]["painted"] / seconds, f">= {least}" if least else "-"),
        "paints/s": (len(paints) / seconds, "-"),
        "lag from server to paint, median ms": (statistics.median(lags), "<= 50"),
    }


def long_prompt(page) -> dict:
    """The same with a prompt of 512 tokens and 128 masks, where the model sets the pace."""
    words = "Kate has a red hat. " * 200
    model = d2cache.load("tiny", device="cpu")
    while len(model.encode(words)) > 512:
        words = words[: -len("Kate has a red hat. ")]
    browser.choose(page, "policy", "d2")
    found = one_run(page, words, 128, least=0)
    found["click to first painted step, ms"] = (found["click to first painted step, ms"][0], "-")
    late = work(page, 128, 1)
    found["script + layout of a step, p95 ms"] = (late, "<= 16.7")
    return found


def scrub(page) -> list[float]:
    """Milliseconds from a jump of the scrubber to the frame that shows it: median, 95th percentile.

    The jumps are long; a frame of the display is 16.7 ms, and each jump begins just after one.
    """
    return page.evaluate(
        """async () => {
        const range = document.querySelector('.d2-range'), took = [];
        for (let i = 0; i < 96; i++) {
          await new Promise(requestAnimationFrame);
          const begin = performance.now();
          range.value = (i * 37) % 96;
          range.dispatchEvent(new Event('input', {bubbles: true}));
          await new Promise((done) => element().addEventListener('d2:paint', done, {once: true}));
          took.push(performance.now() - begin);
        }
        function element() { return document.querySelector('.stage-host'); }
        took.sort((a, b) => a - b);
        return [0.5, 0.95].map((share) => took[Math.floor(took.length * share)]);
        }"""
    )


def payload(page) -> float:
    """Streamed bytes per step for a canvas of about 512 positions."""
    session = page.context.new_cdp_session(page)
    session.send("Network.enable")
    sizes = []
    session.on("Network.dataReceived", lambda e: sizes.append(e["dataLength"]))
    words = "Kate has a red hat. " * 42
    page.locator("#prompt textarea").fill(words + STORY)
    fill(page, "answer length", "256")
    old = page.evaluate("D2Stage.stage.state().run")
    browser.choose(page, "policy", "d2")
    page.click("#run")
    page.wait_for_function("run => D2Stage.stage.state().run !== run", arg=old, timeout=60000)
    sizes.clear()
    first = page.evaluate("D2Stage.stage.state().received")
    page.wait_for_function("D2Stage.stage.state().status === 'done'", timeout=120000)
    steps = page.evaluate("D2Stage.stage.state().received") - first
    return sum(sizes) / steps


if __name__ == "__main__":
    sys.exit(main())
