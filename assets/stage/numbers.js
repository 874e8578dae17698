/* Numbers: planes from base64, codes to values, values to text. */
import { CONFIDENCE, DENSITY, DIVERGENCE, DRIFT, LAST_CODE, ROLLOUT } from "./contract.js";

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

// Codes of the planes -> values, on the scales of the contract.
const share = (scale, code) => (code - scale.zero) / (LAST_CODE - scale.zero);
const power = (scale, code) => 2 ** ((code - scale.one) / scale.doubling);
const confidence = (code) => (code ? share(CONFIDENCE, code) : null); // 0: no prediction was made
const density = (code) => share(DENSITY, code);
const rolloutMass = (code) => power(ROLLOUT, code); // the mean over the canvas is 1
const drift = (code) => (code ? power(DRIFT, code) : 0); // 1 - cosine: 0 the same, 2 the opposite
const divergence = (code) => (code ? power(DIVERGENCE, code) : 0); // nats; 0: none or unknown
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
