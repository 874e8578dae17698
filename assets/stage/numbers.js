/* Numbers: planes out of base64, codes to values, values to text. */

function decodePlane(b64) {
  if (b64 == null) return null;
  const raw = atob(b64),
    out = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) out[i] = raw.charCodeAt(i);
  return out;
}

// Pairs of (value, count) -> the values themselves, `size` of them.
function unpack(pairs, size) {
  const out = new Uint8Array(size);
  for (let i = 0, at = 0; i < pairs.length; at += pairs[i + 1], i += 2)
    out.fill(pairs[i], at, at + pairs[i + 1]);
  return out;
}

const confidence = (u8) => (u8 ? (u8 - 1) / 254 : null); // 0: the model made no prediction here
const density = (u8) => u8 / 255;
const rolloutMass = (u8) => 2 ** (u8 / 16 - 8); // the mean over the canvas is 1
const drift = (u8) => (u8 ? 2 ** ((u8 - 255) / 16 + 1) : 0); // 1 - cosine: 0 the same, 2 the opposite
const divergence = (u8) => (u8 ? 2 ** ((u8 - 255) / 16 + 4) : 0); // KL in nats; 0: none, or no prediction
const clamp = (x, lo, hi) => Math.min(hi, Math.max(lo, x));
const fixed = (x, digits) => (Number.isFinite(x) ? x.toFixed(digits) : "–");
const percent = (x) =>
  Number.isFinite(x) ? `${(100 * x).toFixed(x > 0.995 || x < 0.1 ? 1 : 0)} %` : "–";
const plural = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;
const amount = (x) => Number(x.toFixed(1)); // a count, or a mean of counts
const short = (x) => String(Number(Number(x).toFixed(2)));

export {
  decodePlane,
  unpack,
  drift,
  divergence,
  confidence,
  density,
  rolloutMass,
  clamp,
  fixed,
  percent,
  plural,
  amount,
  short,
};
