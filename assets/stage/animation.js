/* The run as a moving picture: one frame a step, drawn on a canvas, in one animated WebP.
 *
 * The browser encodes each frame; their container (RIFF, VP8X, ANIM, ANMF) is made here. */
import { lastMoment, momentText, stepAt } from "./board.js";
import { colourAt, css, MASKED_NOW, WRITTEN_NOW } from "./colours.js";
import { h } from "./dom.js";
import { cellData, drawnCell, isCell, outsideGrid } from "./grid.js";
import { percent } from "./numbers.js";
import { MAPS, tables } from "./pixels.js";
import { chipData, hitRateSoFar } from "./run.js";
import { partNames, promptText, tokenName, visible } from "./sentences.js";

// ---- pure: the container, after developers.google.com/speed/webp/docs/riff_container

const tagAt = (bytes, at) => String.fromCharCode(...bytes.subarray(at, at + 4));
const u24 = (bytes, at) => bytes[at] | (bytes[at + 1] << 8) | (bytes[at + 2] << 16);
const u32 = (bytes, at) => (u24(bytes, at) | (bytes[at + 3] << 24)) >>> 0;
const little = (value, size) =>
  Array.from({ length: size }, (_, i) => Math.floor(value / 256 ** i) & 255);
const letters = (text) => [...text].map((c) => c.charCodeAt(0));

// A still WebP -> its size and the chunks that hold its pixels: [ALPH] VP8, or VP8L.
function readWebp(bytes) {
  if (bytes.length < 20 || tagAt(bytes, 0) !== "RIFF" || tagAt(bytes, 8) !== "WEBP")
    throw new Error("a frame is no WebP picture");
  const end = Math.min(bytes.length, 8 + u32(bytes, 4)),
    parts = [];
  let width = 0,
    height = 0,
    alpha = false;
  for (let at = 12; at + 8 <= end;) {
    const tag = tagAt(bytes, at),
      size = u32(bytes, at + 4),
      from = at + 8;
    if (from + size > bytes.length) throw new Error("a frame is cut short");
    if (tag === "VP8 ") {
      width = (bytes[from + 6] | (bytes[from + 7] << 8)) & 0x3fff;
      height = (bytes[from + 8] | (bytes[from + 9] << 8)) & 0x3fff;
    }
    if (tag === "VP8L") {
      const bits = u32(bytes, from + 1);
      width = (bits & 0x3fff) + 1;
      height = ((bits >>> 14) & 0x3fff) + 1;
      alpha ||= Boolean((bits >>> 28) & 1);
    }
    if (tag === "ALPH") alpha = true;
    if (["VP8 ", "VP8L", "ALPH"].includes(tag)) parts.push(bytes.subarray(at, from + size));
    at = from + size + (size & 1);
  }
  if (!width || !height) throw new Error("a frame holds no picture");
  return { width, height, alpha, parts };
}

// A chunk, filled up to an even length.
function chunk(tag, ...bodies) {
  const size = bodies.reduce((n, b) => n + b.length, 0),
    out = new Uint8Array(8 + size + (size & 1));
  out.set(letters(tag));
  out.set(little(size, 4), 4);
  let at = 8;
  for (const body of bodies) {
    out.set(body, at);
    at += body.length;
  }
  return out;
}

const even = (part) => (part.length & 1 ? [part, [0]] : [part]);

// frames: [{bytes of a still WebP, ms}] -> an endless animation, each frame in place of the last.
function muxWebp(frames) {
  if (!frames.length) throw new Error("there is no frame to put together");
  const stills = frames.map(({ bytes }) => readWebp(bytes)),
    width = Math.max(...stills.map((s) => s.width)),
    height = Math.max(...stills.map((s) => s.height));
  const flags = 2 | (stills.some((s) => s.alpha) ? 16 : 0);
  const head = chunk("VP8X", [flags, 0, 0, 0], little(width - 1, 3), little(height - 1, 3)),
    anim = chunk("ANIM", [255, 255, 255, 255], [0, 0]);
  const bodies = stills.map((still, i) =>
    chunk(
      "ANMF",
      [0, 0, 0, 0, 0, 0],
      little(still.width - 1, 3),
      little(still.height - 1, 3),
      little(Math.min(Math.max(1, Math.round(frames[i].ms)), 2 ** 24 - 1), 3),
      [2],
      ...still.parts.flatMap(even),
    ),
  ); // 2: drawn as it is, not blended
  return chunk("RIFF", letters("WEBP"), head, anim, ...bodies);
}

// ---- pure: which moments are shown, and where the words are

const MOST_FRAMES = 128,
  HELD = 2500; // ms that the last frame stays

// The moments of the frames: one a step, or every n-th; at least the first and the last.
function frameMoments(board) {
  const last = lastMoment(board),
    by = board.clock === "step" ? 1 : last / MOST_FRAMES;
  const count = board.clock === "step" ? last + 1 : MOST_FRAMES,
    every = Math.max(1, Math.ceil(count / MOST_FRAMES)),
    out = [];
  for (let i = board.clock === "step" ? 0 : 1; i * by < last; i += every) out.push(i * by);
  return [...out, last];
}

// Boxes in lines: widths -> [x, line] of each, none beyond `room` unless it is alone there.
function flowed(widths, room, gap) {
  let x = 0,
    line = 0;
  return widths.map((w) => {
    if (x > 0 && x + w > room) {
      x = 0;
      line++;
    }
    const at = [x, line];
    x += w + gap;
    return at;
  });
}

// ---- the page

const WIDTH = 720,
  PAD = 18,
  CHIP = 22,
  MAP = 130,
  FONT = "13px system-ui, sans-serif";
const INK = {
  light: { paper: "#ffffff", ink: "#1f2937", quiet: "#5b6472", mask: "#e3e6ea", line: "#d5d9df" },
  dark: { paper: "#10141b", ink: "#e6e9ee", quiet: "#a3abb8", mask: "#2d3440", line: "#3a424f" },
};

const cut = (ctx, text, room) => {
  if (ctx.measureText(text).width <= room) return text;
  while (text && ctx.measureText(`${text}…`).width > room) text = text.slice(0, -1);
  return `${text}…`;
};

const TALL = CHIP + 3; // of a line
const CELL = 30, // wide
  GAP = 4; // between boxes

// The places of the cells of a grid, as [x, line]; what comes after it follows below.
function gridPlaces(run) {
  const { rows, columns, box } = run.grid,
    gaps = (n, size) => (size ? Math.floor(n / size) * GAP : 0),
    place = (i) => [
      (i % columns) * (CELL + 2) + gaps(i % columns, box[1]),
      Math.floor(i / columns) + gaps(Math.floor(i / columns), box[0]) / TALL,
    ];
  return Array.from({ length: rows * columns }, (_, i) => place(i));
}

// Where each answer position is in a film, and how wide: {places, widths, lines}.
function laidOut(run, widths) {
  const room = WIDTH - 2 * PAD;
  if (!run.grid) {
    const places = flowed(widths, room, 2);
    return { places, widths, lines: places.at(-1)[1] + 1 };
  }
  const cells = gridPlaces(run),
    first = run.grid.at - run.P,
    rest = outsideGrid(run).map((p) => p - run.P),
    below = cells.at(-1)[1] + 1,
    flow = flowed(
      rest.map((g) => widths[g]),
      room,
      2,
    ),
    places = [];
  cells.forEach((place, i) => (places[first + i] = place));
  rest.forEach((g, k) => (places[g] = [flow[k][0], flow[k][1] + below]));
  const wide = widths.map((width, g) => (rest.includes(g) ? width : CELL));
  return { places, widths: wide, lines: below + (rest.length ? flow.at(-1)[1] + 1 : 0) };
}

// One lane of the film: the place of each token, the same in every step, and its map.
function planLane(ctx, run) {
  ctx.font = FONT;
  const last = run.records.length - 1,
    widths = [];
  for (let p = run.P; p < run.T; p++) {
    const d = chipData(run, p, last),
      text = d.eos ? "end" : visible(d.text);
    widths.push(
      d.write || d.state === "prompt"
        ? Math.min(WIDTH - 2 * PAD, Math.ceil(ctx.measureText(text).width) + 6)
        : 14,
    );
  }
  const laid = laidOut(run, widths);
  const map = h("canvas");
  map.width = run.T;
  map.height = Math.max(1, run.records.length);
  const height = 26 + laid.lines * TALL + 12 + MAP + 22;
  return { run, ...laid, map, drawn: 0, height };
}

// The text of a chip, in its box: {left, y, w}.
function drawText(ctx, d, { left, y, w }, ink) {
  if (!d.write) return;
  ctx.fillStyle = d.eos ? ink.quiet : ink.ink;
  ctx.fillText(cut(ctx, d.eos ? "end" : visible(d.text), w), left + 3, y + CHIP / 2 - 1);
}

// What cell i of a board holds, as on the page: what is given in bold, walls dark.
function drawCell(ctx, run, cell, { left, y, w }, ink) {
  const { text, look } = drawnCell(run.grid, tokenName(run, cell.text || " "));
  ctx.fillStyle = ink.ink;
  if (look === "wall") {
    ctx.globalAlpha = 0.68;
    ctx.fillRect(left, y, w, CHIP - (cell.write ? 3 : 0));
    ctx.globalAlpha = 1;
  }
  ctx.font = cell.given === null ? FONT : `700 ${FONT}`;
  ctx.textAlign = "center";
  ctx.fillText(cut(ctx, text, w), left + w / 2, y + CHIP / 2 - 1);
  ctx.textAlign = "left";
  ctx.font = FONT;
}

function drawChips(ctx, { run, widths, places }, step, top, dark, ink) {
  ctx.textBaseline = "middle";
  for (let p = run.P; p < run.T; p++) {
    const d = chipData(run, p, step),
      [x, line] = places[p - run.P],
      w = widths[p - run.P],
      [left, y] = [PAD + x, top + line * TALL];
    ctx.fillStyle = d.write
      ? css(colourAt("order", d.write.s / Math.max(1, run.expected - 1), dark))
      : ink.mask;
    if (d.state === "prompt") {
      // given, after a mask
      ctx.fillStyle = ink.quiet;
      ctx.fillText(cut(ctx, visible(d.text), w), left + 3, y + CHIP / 2 - 1);
      continue;
    }
    ctx.globalAlpha = d.write ? 0.18 : 1;
    ctx.fillRect(left, y, w, CHIP);
    ctx.globalAlpha = 1;
    if (d.write) ctx.fillRect(left, y + CHIP - 3, w, 3);
    if (isCell(run.grid, p))
      drawCell(ctx, run, cellData(run, p - run.grid.at, step), { left, y, w }, ink);
    else drawText(ctx, d, { left, y, w }, ink);
    if (d.state === "now" || d.state === "again") {
      ctx.lineWidth = 2;
      ctx.strokeStyle = d.state === "now" ? WRITTEN_NOW : MASKED_NOW;
      ctx.strokeRect(left + 1, y + 1, w - 2, CHIP - 2);
    }
  }
}

// The cache map up to this step; a row once drawn stays.
function drawMap(ctx, lane, step, top, colours, ink) {
  const { run, map } = lane,
    target = map.getContext("2d"),
    row = new ImageData(run.T, 1),
    pixels = new Uint32Array(row.data.buffer);
  for (; lane.drawn <= step; lane.drawn++) {
    pixels.fill(0);
    if (run.records[lane.drawn]) MAPS[0].row(pixels, run.records[lane.drawn], run, colours);
    target.putImageData(row, 0, lane.drawn);
  }
  const width = WIDTH - 2 * PAD,
    count = run.records.length,
    tall = (MAP * (step + 1)) / count,
    edge = PAD + (width * run.P) / run.T;
  ctx.fillStyle = ink.mask;
  ctx.globalAlpha = 0.35;
  ctx.fillRect(PAD, top, width, MAP);
  ctx.globalAlpha = 1;
  ctx.imageSmoothingEnabled = run.T > 2 * width;
  if (step >= 0) ctx.drawImage(map, 0, 0, run.T, step + 1, PAD, top, width, tall);
  ctx.fillStyle = ink.ink;
  ctx.fillRect(PAD, top + tall - 1, width, 2);
  ctx.fillStyle = ink.quiet;
  ctx.fillRect(edge, top, 1, MAP);
  const [before, after] = partNames(run);
  if (run.P) ctx.fillText(before, PAD, top + MAP + 11);
  ctx.textAlign = "right";
  ctx.fillText(
    `${after} · one row per step: coloured is recomputed, grey is reused`,
    WIDTH - PAD,
    top + MAP + 11,
  );
  ctx.textAlign = "left";
}

// The frames of a board, one after the other; yields {canvas, ms}. It is always the same canvas.
function* filmed(page) {
  const { board, dark } = page,
    ink = INK[dark ? "dark" : "light"],
    scale = 1.25,
    moments = frameMoments(board);
  const canvas = h("canvas"),
    ctx = canvas.getContext("2d", { alpha: false });
  const lanes = board.lanes.map((run) => planLane(ctx, run)),
    colours = board.lanes.map((run) => tables(dark, run.expected));
  const each = Math.max(60, Math.min(250, 12_000 / moments.length));
  const timed = board.clock === "step" ? 0 : 20; // room for a line that tells the time
  canvas.width = WIDTH * scale;
  canvas.height = Math.round(
    (PAD + timed + 26 + lanes.reduce((n, lane) => n + lane.height + 8, 0)) * scale,
  );
  for (const [k, moment] of moments.entries()) {
    ctx.setTransform(scale, 0, 0, scale, 0, 0);
    ctx.fillStyle = ink.paper;
    ctx.fillRect(0, 0, WIDTH, canvas.height);
    ctx.textBaseline = "middle";
    ctx.font = FONT;
    ctx.fillStyle = ink.quiet;
    ctx.fillText(cut(ctx, promptText(board.lanes[0]), WIDTH - 2 * PAD), PAD, PAD + 4);
    if (timed) ctx.fillText(`at ${momentText(board.clock, moment)}`, PAD, PAD + 24);
    let top = PAD + timed + 18;
    for (const [i, lane] of lanes.entries()) {
      const { run } = lane,
        step = stepAt(board, i, moment),
        rate = hitRateSoFar(run, step),
        reused = rate === null ? "" : ` · ${percent(rate)} from the cache so far`,
        said = `step ${step + 1} of ${run.records.length}${reused}`;
      ctx.font = `600 ${FONT}`;
      ctx.fillStyle = ink.ink;
      ctx.fillText(cut(ctx, run.name || run.start.policy, 300), PAD, top + 10);
      ctx.font = FONT;
      ctx.textAlign = "right";
      ctx.fillText(said, WIDTH - PAD, top + 10);
      ctx.textAlign = "left";
      drawChips(ctx, lane, step, top + 26, dark, ink);
      drawMap(ctx, lane, step, top + lane.height - MAP - 22, colours[i], ink);
      top += lane.height + 8;
    }
    yield { canvas, ms: k === moments.length - 1 ? HELD : each, part: (k + 1) / moments.length };
  }
}

const NO_WEBP = "this browser cannot write WebP pictures; Chrome, Edge and Firefox can";

// The animation as a blob. progress(share from 0 to 1); a signal that is aborted ends it with null.
async function animation(page, progress = () => {}, signal = null) {
  const frames = [];
  for (const { canvas, ms, part } of filmed(page)) {
    if (signal?.aborted) return null;
    const blob = await new Promise((done) => canvas.toBlob(done, "image/webp", 0.7));
    if (!blob || blob.type !== "image/webp") throw new Error(NO_WEBP);
    frames.push({ bytes: new Uint8Array(await blob.arrayBuffer()), ms });
    progress(part);
    await new Promise((done) => setTimeout(done, 0)); // the page goes first
  }
  return signal?.aborted
    ? null
    : { blob: new Blob([muxWebp(frames)], { type: "image/webp" }), frames: frames.length };
}

export { readWebp, muxWebp, frameMoments, flowed, laidOut, animation };
