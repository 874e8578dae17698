/* Colours: ramps that also read in grey, and what their ends mean. */
import { clamp } from "./numbers.js";

const WRITTEN_NOW = "#d55e00"; // what this step writes (also in stage.css)
const COMPUTED = "#f2b90f"; // computed in this step, whatever the reason (also in watch.css)
const MASKED_NOW = "#c2008f"; // what this step masks again (also in stage.css)

// Colour maps as a few anchors, evenly spaced, with steadily falling lightness, so that they also
// read in grey. "ink" maps start at the paper: on a dark page they are walked from the other end.
const RAMPS = {
  density: {
    ink: true,
    stops: ["#f4f7f8", "#d3e8e8", "#9fd0d3", "#62b1c0", "#378cad", "#2c6392", "#283c72", "#1d1c47"],
  },
  rollout: {
    ink: true,
    stops: ["#fdf5ee", "#fbdcc4", "#f6b394", "#e88376", "#c8546f", "#953a70", "#5f2a66", "#2d1a48"],
  },
  order: {
    ink: false,
    stops: ["#440154", "#46327e", "#365c8d", "#277f8e", "#1fa187", "#4ac16d", "#9bd93c"],
  },
  confidence: {
    ink: false,
    stops: [
      "#00224e",
      "#123570",
      "#3b496c",
      "#575d6d",
      "#707173",
      "#8a8678",
      "#a59c74",
      "#c3b369",
      "#e1cc55",
      "#fee838",
    ],
  },
};
const PAPER = {
  light: { reused: "#eef1f4", masked: "#e3e6ea" },
  dark: { reused: "#1b212c", masked: "#2d3440" },
};

// The colour bar of the rollout spans 1/16 .. 32 times the mean; what lies outside is clipped.
const MASS_LOG2 = [-4, 5];

const rgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
const mixed = (a, b, share) => a.map((c, k) => Math.round(c + (b[k] - c) * share));
const css = (c) => `rgb(${c[0]}, ${c[1]}, ${c[2]})`;

function colourAt(name, value, dark) {
  const { ink, stops } = RAMPS[name];
  const v = clamp(value, 0, 1);
  const along = !dark ? v : ink ? 1 - 0.85 * v : 0.15 + 0.85 * v; // dark: no white, no black
  const x = along * (stops.length - 1);
  const i = Math.min(Math.floor(x), stops.length - 2),
    a = rgb(stops[i]),
    b = rgb(stops[i + 1]);
  return mixed(a, b, x - i);
}

const massShade = (mass) => (Math.log2(mass) - MASS_LOG2[0]) / (MASS_LOG2[1] - MASS_LOG2[0]);

export {
  WRITTEN_NOW,
  COMPUTED,
  MASKED_NOW,
  RAMPS,
  PAPER,
  MASS_LOG2,
  rgb,
  mixed,
  css,
  colourAt,
  massShade,
};
