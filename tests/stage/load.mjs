// What the tests of the stage share: its scripts in a world without a document, as the page loads them.
import { readFileSync } from "node:fs";
import vm from "node:vm";

const folder = new URL("../../assets/stage/", import.meta.url);
export const files = JSON.parse(readFileSync(new URL("files.json", folder), "utf8"));
export const source = files.map((name) => readFileSync(new URL(name, folder), "utf8")).join("\n");
export const world = vm.createContext({ atob, Uint8Array });
vm.runInContext(source, world);
export const pure = world.D2Stage.pure;
export const plain = (x) => JSON.parse(JSON.stringify(x));      // the other world has its own Array and Object
export const b64 = (bytes) => Buffer.from(bytes).toString("base64");
