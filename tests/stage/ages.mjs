// node ages.mjs RUNS.json: prints, for each run in the file, the ages that the page works out.
// The file: [{events, steps}], the events of a run and the steps to look at.
import { readFileSync } from "node:fs";
import { pure } from "./load.mjs";

const told = JSON.parse(readFileSync(process.argv[2], "utf8")).map(({ events, steps }) => {
  const run = events.reduce(pure.applyEvent, pure.emptyRun());
  return steps.map((s) => pure.PARTS.map(({ bit }) => Array.from(pure.agesAt(run, s, bit))));
});
console.log(JSON.stringify(told));
