// Run with: node --test tests/stage/address.test.mjs
// The address: does it say what is looked at, and is it read the same way?
import { test } from "node:test";
import assert from "node:assert/strict";
import { plain, pure } from "./load.mjs";

const usual = { tab: "watch", live: true, step: 4, lane: 0, clock: "step", selected: null };

test("what has its default value is left out", () => {
  assert.equal(
    pure.addressOf("prompt=a%20b&lane=none&lane=d2,current_k=8/margin", usual),
    "prompt=a+b&lane=none&lane=d2,current_k=8/margin",
  );
});

test("what is looked at is added, counted from 1 as on screen, and read back", () => {
  const text = pure.addressOf("lane=d2&tab=old&at=99", {
    tab: "cache",
    live: false,
    step: 4,
    lane: 1,
    clock: "ms",
    selected: 7,
  });
  assert.deepEqual(plain(pure.viewOf(text)), {
    tab: "cache",
    at: "5",
    see: "2",
    clock: "ms",
    pos: "8",
  });
  assert.deepEqual(new URLSearchParams(text).getAll("lane"), ["d2"]);
});

test("a card of a lesson is all that the address says: it makes the runs and the view again", () => {
  const lesson = { lesson: "two-stages", card: 3 };
  const text = pure.addressOf("prompt=a&lane=none", { ...usual, tab: "cache", lesson });
  assert.equal(text, "lesson=two-stages&card=3");
  assert.equal(pure.asksForRuns(text), false);
  assert.deepEqual(plain(pure.viewOf(text)), { lesson: "two-stages", card: "3" });
});

test("a prompt survives whatever is in it", () => {
  const prompt = "a&b=c, ~ / % + ü\n[x]?";
  const text = pure.addressOf(new URLSearchParams({ prompt }).toString(), {
    ...usual,
    selected: 0,
  });
  assert.equal(new URLSearchParams(text).get("prompt"), prompt);
  assert.equal(new URLSearchParams(text).get("pos"), "1");
});

test("looking is told from asking for a run", () => {
  assert.equal(pure.viewOf("?lane=d2&__theme=dark"), null);
  assert.equal(pure.asksForRuns("?tab=cache&at=3&__theme=dark"), false);
  for (const q of ["lane=d2", "trace=x&tab=cache", "seed=1", "branch=a~3"])
    assert.equal(pure.asksForRuns(q), true);
});

test("the opening plays unless the address asks for something; what others add to it does not", () => {
  for (const q of ["", "?__theme=light", "?utm_source=mail&__sign=abc", "?teach=1"])
    assert.equal(pure.playsAtOnce(q), true, q);
  for (const q of ["?lane=d2", "?tab=cache&__theme=light", "?trace=x&teach=1", "?lesson=masks"])
    assert.equal(pure.playsAtOnce(q), false, q);
});

test("an address for others is without the words of the frame", () => {
  const href = "https://a-b.hf.space/?__theme=dark&lane=d2,k=8&__sign=secret&at=3#x";
  assert.equal(pure.forOthers(href), "https://a-b.hf.space/?lane=d2%2Ck%3D8&at=3#x");
  assert.equal(pure.forOthers("https://a.b/?lane=d2,k=8"), "https://a.b/?lane=d2,k=8");
});
