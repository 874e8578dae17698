/* Maps with more cells than there are pixels: neighbouring cells are put together so that none is
 * lost, and a marked cell among unmarked ones stays marked. */
import { PAPER, rgb } from "./colours.js";
import { h } from "./dom.js";

// ---- pure

// How far a 32-bit pixel is from the ground; a transparent one, without data, is nearest.
function farFrom(pixel, [r, g, b]) {
  if (pixel >>> 24 === 0) return -1;
  const at = (shift) => (pixel >>> shift) & 255;
  return (at(0) - r) ** 2 + (at(8) - g) ** 2 + (at(16) - b) ** 2;
}

// Pixels of cols by rows in groups of kx by ky: of each group the one that is farthest from the
// ground, which is the largest value of a ramp that starts there.
function pooled(pixels, cols, rows, kx, ky, ground) {
  const wide = Math.ceil(cols / kx),
    out = new Uint32Array(wide * Math.ceil(rows / ky)),
    far = new Float64Array(out.length).fill(-2);
  for (let y = 0; y < rows; y++)
    for (let x = 0; x < cols; x++) {
      const to = Math.floor(y / ky) * wide + Math.floor(x / kx),
        pixel = pixels[y * cols + x],
        is = farFrom(pixel, ground);
      if (is > far[to]) [far[to], out[to]] = [is, pixel];
    }
  return out;
}

// ---- the page

// Draws cols by rows pixels of a store, from x0 on, over width by height pixels of a canvas.
function drawPooled(canvas, store, { x0 = 0, cols, rows }, width, height) {
  const ctx = canvas.getContext("2d"),
    [kx, ky] = [Math.ceil(cols / width), Math.ceil(rows / height)];
  ctx.imageSmoothingEnabled = false;
  if (kx <= 1 && ky <= 1) {
    ctx.drawImage(store, x0, 0, cols, rows, 0, 0, width, height);
    return;
  }
  const ground = rgb(PAPER[canvas.closest(".d2-dark") ? "dark" : "light"].reused),
    { data } = store.getContext("2d").getImageData(x0, 0, cols, rows),
    size = { width: Math.ceil(cols / kx), height: Math.ceil(rows / ky) },
    image = new ImageData(size.width, size.height),
    between = h("canvas", "", size);
  new Uint32Array(image.data.buffer).set(
    pooled(new Uint32Array(data.buffer), cols, rows, kx, ky, ground),
  );
  between.getContext("2d").putImageData(image, 0, 0);
  // the last group may be smaller than the others, and is cut off as much
  const [w, ht] = [(width * size.width * kx) / cols, (height * size.height * ky) / rows];
  ctx.drawImage(between, 0, 0, size.width, size.height, 0, 0, w, ht);
}

export { drawPooled, pooled };
