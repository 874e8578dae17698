// What the tests of the stage share: its modules, as one namespace, in a world without a document.
import { readdirSync, readFileSync } from "node:fs";

const folder = new URL("../../assets/stage/", import.meta.url);
export const files = readdirSync(folder).filter((name) => name.endsWith(".js"));
export const source = files.map((name) => readFileSync(new URL(name, folder), "utf8")).join("\n");
export const pure = Object.assign(
  {},
  ...(await Promise.all(files.map((name) => import(new URL(name, folder))))),
);
export const plain = (x) => JSON.parse(JSON.stringify(x));
export const b64 = (bytes) => Buffer.from(bytes).toString("base64");
