// node ages.mjs RUNS.json: prints, for each run in the file, the ages that the page works out.
// The file: [{events, steps}], the events of a run and the steps to look at.
import { readFileSync } from "node:fs";
import vm from "node:vm";

const folder = new URL("../../assets/stage/", import.meta.url), files = JSON.parse(readFileSync(new URL("files.json", folder), "utf8"));
const world = vm.createContext({ atob, Uint8Array });
vm.runInContext(files.map((name) => readFileSync(new URL(name, folder), "utf8")).join("\n"), world);
const { pure } = world.D2Stage;

const told = JSON.parse(readFileSync(process.argv[2], "utf8")).map(({ events, steps }) => {
  const model = events.reduce(pure.applyEvent, pure.emptyModel());
  return steps.map((s) => pure.PARTS.map(({ bit }) => Array.from(pure.agesAt(model, s, bit))));
});
console.log(JSON.stringify(told));
