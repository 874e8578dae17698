// Run with: node --test tests/stage/export.test.mjs
// Taking a run along: the WebP container byte by byte, frames, captions, files, figures.
import { test } from "node:test";
import { gzipSync } from "node:zlib";
import assert from "node:assert/strict";
import { plain, pure } from "./load.mjs";

// ---- stills as an encoder makes them
const le = (value, size) => Array.from({ length: size }, (_, i) => (value >>> (8 * i)) & 255);
const text = (s) => [...s].map((c) => c.charCodeAt(0));
const chunk = (tag, body) => [
  ...text(tag),
  ...le(body.length, 4),
  ...body,
  ...(body.length % 2 ? [0] : []),
];
const riff = (...chunks) =>
  Uint8Array.from([
    ...text("RIFF"),
    ...le(4 + chunks.flat().length, 4),
    ...text("WEBP"),
    ...chunks.flat(),
  ]);
const vp8 = (w, h, filler = 5) =>
  chunk("VP8 ", [0x30, 1, 0, 0x9d, 1, 0x2a, ...le(w, 2), ...le(h, 2), ...Array(filler).fill(7)]);
const vp8l = (w, h, alpha = 0) =>
  chunk("VP8L", [0x2f, ...le(((w - 1) | ((h - 1) << 14) | (alpha << 28)) >>> 0, 4), 9, 9]);

// An independent reader of the container: a list of {tag, from, size}; nothing may be left over.
function chunksOf(bytes, from, end) {
  const view = new DataView(bytes.buffer, bytes.byteOffset),
    out = [];
  while (from < end) {
    const size = view.getUint32(from + 4, true);
    out.push({ tag: String.fromCharCode(...bytes.subarray(from, from + 4)), from: from + 8, size });
    from += 8 + size + (size % 2);
  }
  assert.equal(from, end);
  return out;
}
const get = (bytes, at, n) => bytes.subarray(at, at + n).reduceRight((sum, b) => sum * 256 + b, 0);

test("an animation is VP8X, ANIM and one ANMF a frame, with every size and time in its place", () => {
  const made = pure.muxWebp([
    { bytes: riff(vp8(300, 200)), ms: 40 },
    { bytes: riff(vp8(300, 200, 6)), ms: 2500 },
  ]);
  assert.equal(String.fromCharCode(...made.subarray(0, 4), ...made.subarray(8, 12)), "RIFFWEBP");
  assert.equal(get(made, 4, 4), made.length - 8);
  const all = chunksOf(made, 12, made.length);
  assert.deepEqual(
    all.map((c) => c.tag),
    ["VP8X", "ANIM", "ANMF", "ANMF"],
  );
  const [head, anim, ...frames] = all;
  assert.equal(head.size, 10);
  assert.equal(made[head.from], 2); // animated, opaque
  assert.deepEqual([get(made, head.from + 4, 3) + 1, get(made, head.from + 7, 3) + 1], [300, 200]);
  assert.deepEqual([anim.size, get(made, anim.from + 4, 2)], [6, 0]); // no end
  frames.forEach((f, i) => {
    assert.deepEqual([get(made, f.from, 3), get(made, f.from + 3, 3)], [0, 0]);
    assert.deepEqual(
      [get(made, f.from + 6, 3) + 1, get(made, f.from + 9, 3) + 1, get(made, f.from + 12, 3)],
      [300, 200, [40, 2500][i]],
    );
    assert.equal(made[f.from + 15], 2); // not blended with the frame before
    const inner = chunksOf(made, f.from + 16, f.from + f.size);
    assert.deepEqual(
      inner.map((c) => [c.tag, c.size]),
      [["VP8 ", 15 + i]],
    );
  });
});

test("lossless stills keep their chunk and their transparency is told", () => {
  const made = pure.muxWebp([{ bytes: riff(vp8l(17, 5, 1)), ms: 10 }]);
  const [head, , frame] = chunksOf(made, 12, made.length);
  assert.equal(made[head.from], 2 | 16);
  assert.deepEqual([get(made, head.from + 4, 3) + 1, get(made, head.from + 7, 3) + 1], [17, 5]);
  assert.deepEqual(
    chunksOf(made, frame.from + 16, frame.from + frame.size).map((c) => [c.tag, c.size]),
    [["VP8L", 7]],
  );
  assert.equal(pure.muxWebp([{ bytes: riff(vp8l(16384, 1, 0)), ms: 10 }])[20], 2);
});

test("of an extended still only what holds pixels goes along: its own header, colours and notes do not", () => {
  const still = riff(
    chunk("VP8X", [16 | 8, 0, 0, 0, ...le(63, 3), ...le(47, 3)]),
    chunk("ICCP", [1, 2, 3]),
    chunk("ALPH", [0, 4, 5]),
    vp8(64, 48),
    chunk("EXIF", [1]),
  );
  assert.deepEqual(plain(pure.readWebp(still)).alpha, true);
  const made = pure.muxWebp([{ bytes: still, ms: 10 }]),
    [, , frame] = chunksOf(made, 12, made.length);
  assert.deepEqual(
    chunksOf(made, frame.from + 16, frame.from + frame.size).map((c) => c.tag),
    ["ALPH", "VP8 "],
  );
});

test("what is no picture is refused in words", () => {
  const good = riff(vp8(3, 3));
  for (const [bytes, says] of [
    [Uint8Array.from(text("GIF89a..............")), /no WebP/],
    [good.subarray(0, 26), /cut short/],
    [riff(chunk("EXIF", [1, 2])), /holds no picture/],
    [new Uint8Array(3), /no WebP/],
  ]) {
    assert.throws(() => pure.muxWebp([{ bytes, ms: 1 }]), says);
  }
  assert.throws(() => pure.muxWebp([]), /no frame/);
});

// ---- which moments
const boardOf = (steps, clock = "step", lanes = 1) => ({
  key: "k",
  lane: 0,
  clock,
  lanes: Array.from({ length: lanes }, (_, i) => {
    let run = pure.applyEvent(pure.emptyRun(), {
      k: "start",
      run: `r${i}`,
      T: 4,
      P: 2,
      G: 2,
      prompt: ["Q", ":"],
      policy: "d2",
      decoder: "confidence",
      model: "tiny",
    });
    for (let s = 0; s < steps * (i + 1); s++)
      run = pure.applyEvent(run, {
        k: "rec",
        run: `r${i}`,
        seq: s,
        s,
        ms: 10,
        rows: 1,
        w: [],
        y: "AAAAAQ==",
      });
    return run;
  }),
});

test("a frame a step; of long runs every n-th, and always the first and the last", () => {
  assert.deepEqual(plain(pure.frameMoments(boardOf(5))), [0, 1, 2, 3, 4]);
  assert.deepEqual(plain(pure.frameMoments(boardOf(1))), [0]);
  for (const steps of [128, 129, 300, 1000]) {
    const at = pure.frameMoments(boardOf(steps));
    assert.ok(at.length <= 129 && at.length > 60, `${steps}: ${at.length}`);
    assert.deepEqual([at[0], at.at(-1)], [0, steps - 1]);
    assert.ok(at.every((m, i) => Number.isInteger(m) && (i === 0 || m > at[i - 1])));
  }
});

test("on a clock of time the frames are evenly spaced to the end of the slowest lane", () => {
  const at = pure.frameMoments(boardOf(10, "ms", 2)),
    gaps = at.slice(1).map((m, i) => m - at[i]);
  assert.equal(at.at(-1), 200);
  assert.ok(at.length <= 129 && Math.max(...gaps) - Math.min(...gaps) < 1e-6);
});

test("boxes flow in lines and never lie on each other", () => {
  const widths = [30, 30, 30, 100, 10, 250, 10],
    at = plain(pure.flowed(widths, 100, 2));
  assert.deepEqual(at, [
    [0, 0],
    [32, 0],
    [64, 0],
    [0, 1],
    [0, 2],
    [0, 3],
    [0, 4],
  ]);
});

// ---- pictures and files
test("the caption names the prompt, who made it and the step, of every lane", () => {
  const [prompt, first, second] = pure.pictureCaption(boardOf(3, "step", 2), [1, -1]);
  assert.equal(prompt, "Q:");
  assert.match(first, /^1: policy d2 · decoder confidence · model tiny · step 2 of 3$/);
  assert.match(second, /^2: .*before the first step$/);
  assert.ok(!pure.pictureCaption(boardOf(3), [2])[1].startsWith("1:"));
});

test("text for XML keeps every character that XML can hold, and no other", () => {
  assert.equal(pure.inXml("a\tb\nc <é😀>"), "a\tb\nc <é😀>");
  assert.equal(pure.inXml("\u0000x\u001f\ud83dy\uffff"), "\ufffdx\ufffd\ufffdy\ufffd");
});

test("only variables of the surroundings are borrowed", () => {
  assert.deepEqual(
    plain(
      pure.borrowed("a { color: var(--body, #fff); b: var(--d2-ink); c: var( --x-y) var(--body) }"),
    ),
    ["--body", "--x-y"],
  );
});

test("files: text or bytes, and a name that no policy can break", () => {
  assert.deepEqual(plain(pure.fileOf({ name: "a.html", text: "<p>" })), {
    name: "a.html",
    kind: "text/html",
    body: "<p>",
  });
  const { body, kind } = pure.fileOf({ name: "a.safetensors", b64: "AP8=" });
  assert.deepEqual([[...body], kind], [[0, 255], "application/octet-stream"]);
  assert.equal(pure.fileName({ start: { policy: "d2/../x" } }, 4, "png"), "d2cache-d2x-step-5.png");
});

test("a file of lessons gives each query its lanes, on a board of their own", async () => {
  const told = [
      { k: "start", run: "x", policy: "d2", lane: 0 },
      { k: "end", run: "x" },
    ],
    data = {
      lanes: { x: told },
      runs: {
        "lane=d2&lane=d2": [
          ["x", "d2 1"],
          ["x", "d2 2"],
        ],
      },
    },
    packed = gzipSync(JSON.stringify(data)).toString("base64");
  assert.deepEqual(await pure.unpacked(`\n${packed}\n`), data);
  const { events } = JSON.parse(pure.messageOf(data, "lane=d2&lane=d2", "b1"));
  assert.deepEqual(events[0], { k: "link", board: "b1", query: "lane=d2&lane=d2" });
  assert.deepEqual(
    events.slice(1).map((e) => [e.k, e.run, e.board, e.lane, e.name]),
    [
      ["start", "b1-0", "b1", 0, "d2 1"],
      ["end", "b1-0", undefined, undefined, undefined],
      ["start", "b1-1", "b1", 1, "d2 2"],
      ["end", "b1-1", undefined, undefined, undefined],
    ],
  );
});

test("a page that is kept opens where its reader is; what follows the run has no step", () => {
  const at = { live: false, step: 4, tab: "cache", lane: 1, clock: "ms", selected: 0 };
  assert.deepEqual(plain(pure.viewToKeep(at)), {
    tab: "cache",
    clock: "ms",
    at: 4,
    see: 1,
    pos: 0,
  });
  assert.deepEqual(plain(pure.viewToKeep({ ...at, live: true, lane: 0, selected: null })), {
    tab: "cache",
    clock: "ms",
  });
});

test("of a frame in a page, what is out of sight above and below, and how far the clock moves", () => {
  const seen = { top: 440, bottom: 1140 };
  assert.deepEqual(plain(pure.outOfSight(seen, 2000)), { above: 440, below: 860 });
  assert.deepEqual(plain(pure.outOfSight({ top: 0, bottom: 300 }, 300)), { above: 0, below: 0 });
  const place = { top: 200, height: 50, end: 900 };
  assert.equal(pure.shiftOf(place, 100, 0), 0, "in sight where it is");
  assert.equal(pure.shiftOf(place, 440, 10), 250);
  assert.equal(pure.shiftOf(place, 5000, 0), 650, "it stays in its parent");
});
