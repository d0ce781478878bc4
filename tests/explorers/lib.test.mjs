// Number formats, typed values and axes: node --test tests/explorers/
import assert from "node:assert";
import test from "node:test";
import {
  axis,
  bars,
  binary,
  bytes,
  disagreements,
  flop,
  num,
  plot,
  plural,
  powers,
  seconds,
  settle,
  table,
} from "../../dsarch/teaching/explorers/js/lib.js";

test("numbers are short and never odd", () => {
  assert.equal(num(70272, 15), "70,272");
  assert.equal(num(0.0176), "0.0176");
  assert.equal(num(1e-5), "10⁻⁵");
  assert.equal(num(3.3338e-5), "3.33 × 10⁻⁵");
  assert.equal(num(2e20), "2 × 10²⁰");
  assert.equal(num(0), "0");
  assert.equal(num(NaN), "–");
  assert.equal(num(Infinity), "–");
  assert.equal(num(1234.5), "1,235");
  assert.equal(bytes(999), "999 B");
  assert.equal(bytes(18_421_383_168), "18.4 GB");
  assert.equal(binary(2 ** 34 + 2 ** 30), "17 GiB");
  assert.equal(flop(2.68e9), "2.68 GFLOP");
  assert.equal(seconds(11.3e-6), "11.3 µs");
  assert.equal(seconds(2), "2 s");
  assert.equal(plural(1, "query", "queries"), "1 query");
  assert.equal(plural(2, "query", "queries"), "2 queries");
});

test("powers hold both ends once", () => {
  assert.deepEqual(powers(1, 8), [1, 2, 4, 8]);
  assert.deepEqual(powers(3, 9), [3, 4, 8, 9]);
  assert.deepEqual(powers(10, 1e4, 10), [10, 100, 1000, 10000]);
});

test("what was typed is used or corrected aloud", () => {
  const spec = { label: "Heads", min: 2, max: 100, value: 8 };
  assert.deepEqual(settle(spec, "12"), { value: 12, note: "" });
  const corrected = [
    ["", 8, /empty; 8 is used/],
    ["x", 8, /not a number/],
    ["-5", 2, /-5 is below 2/],
    ["1e9", 100, /above 100; 100 is used/],
    ["Infinity", 100, /that is above 100/],
    ["2.6", 3, /not a whole number; 3/],
  ];
  for (const [typed, value, note] of corrected) {
    const found = settle(spec, typed);
    assert.equal(found.value, value);
    assert.match(found.note, note);
    assert.match(found.note, /^Heads: /);
  }
  assert.equal(settle({ ...spec, even: true }, "7").value, 6);
  assert.equal(settle({ ...spec, real: true }, "7.5").value, 7.5);
});

test("a disagreement is found, in numbers, lists and words", () => {
  const formulas = {
    twice: (x) => 2 * x,
    pair: (x) => [x, x],
    word: () => "a",
  };
  const good = [
    ["twice", [3], 6.0000001],
    ["pair", [1], [1, 1]],
    ["word", [], "a"],
  ];
  assert.deepEqual(disagreements(formulas, good), []);
  const bad = [
    ["twice", [3], 6.0001],
    ["pair", [1], [1, 2]],
    ["pair", [1], [1]],
    ["word", [], "b"],
    ["twice", [NaN], 1],
  ];
  assert.deepEqual(disagreements(formulas, bad), bad);
});

test("axes put their ends on the edges", () => {
  const log = axis({ min: 1, max: 1000, log: true }, 0, 300);
  assert.deepEqual(log.ticks, [1, 10, 100, 1000]);
  assert.equal(Math.round(log.at(10)), 100);
  const linear = axis({ min: 0, max: 31 }, 0, 300);
  assert.deepEqual(linear.ticks, [0, 10, 20, 30]);
  assert.equal(linear.at(31), 300);
});

test("charts name themselves and escape words", () => {
  const items = [
    { name: "<b>", value: 1, text: "1" },
    { name: "c", value: 0, text: "0" },
  ];
  const drawn = bars({ width: 600, items, desc: 'a "name"' });
  assert.match(drawn, /aria-label="a &quot;name&quot;"/);
  assert.ok(!drawn.includes("<b>"));
  const lines = plot({
    width: 300,
    desc: "d",
    x: { min: 0, max: 1, label: "x" },
    y: { min: 0, max: 1, label: "y" },
    series: [
      {
        name: "s",
        points: [
          [0, 0],
          [2, 2],
        ],
      },
    ],
  });
  assert.doesNotMatch(lines, /NaN/);
  assert.match(table(["a"], [["<i>"]]), /&lt;i&gt;/);
});
