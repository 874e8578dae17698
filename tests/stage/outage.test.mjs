// Run with: node --test tests/stage/outage.test.mjs
// A page that is loaded again: what it finds of the one before.
import { test } from "node:test";
import assert from "node:assert/strict";
import { pure } from "./load.mjs";

const link = (board) => [{ k: "link", board, query: "" }];

test("the messages of one board are kept, those of the board before are not", () => {
  const kept = new pure.Messages();
  kept.add("opening", []);
  kept.add("a0", link("a"));
  kept.add("a1", []);
  kept.add("a1", []); // Gradio repeats the last one
  kept.add("a2: another lane", link("a"));
  assert.deepEqual(kept.texts, ["a0", "a1", "a2: another lane"]);
  kept.add("b0", link("b"));
  assert.deepEqual(kept.texts, ["b0"]);
});

test("the opening that becomes the visitor's own keeps its lanes", () => {
  const kept = new pure.Messages();
  kept.add("opening", []);
  kept.add("renamed", [{ k: "keys", board: "stored", to: "mine", runs: {} }]);
  kept.add("a lane", link("mine"));
  assert.deepEqual(kept.texts, ["opening", "renamed", "a lane"]);
});

function withTab(search, does) {
  const store = new Map();
  globalThis.sessionStorage = {
    getItem: (key) => store.get(key) ?? null,
    setItem: (key, text) => store.set(key, text),
    removeItem: (key) => store.delete(key),
  };
  globalThis.location = { search };
  does(store);
  delete globalThis.sessionStorage;
  delete globalThis.location;
}

test("it is found once, at the same address, and never breaks the page", () => {
  withTab("?lane=d2", () => {
    pure.keepStage(["a0"], "typed");
    const { texts, prompt } = pure.takeStage();
    assert.deepEqual([texts, prompt], [["a0"], "typed"]);
    assert.equal(pure.takeStage(), null);
    pure.keepStage(["a0"], "typed");
    globalThis.location.search = "?lane=none";
    assert.equal(pure.takeStage(), null);
  });
  withTab("", (store) => {
    for (const text of ["{", "null", "[]", '{"search":""}', '{"search":"","texts":7}', "3"]) {
      store.set("d2-outage", text);
      assert.equal(pure.takeStage(), null, text);
    }
    pure.keepStage([], "");
    assert.equal(pure.takeStage(), null);
  });
  assert.equal(pure.takeStage(), null); // no storage at all
  pure.keepStage(["a0"], "");
});
