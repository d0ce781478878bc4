// Draws explorers in many states. stdin: {widget, data, rounds, seed};
// stdout: what is wrong in them. A state is made of what a reader can type
// or choose, the silly included. Called by tests/test_explorers.py.
import { readFileSync } from "node:fs";

const folder = new URL("../../dsarch/teaching/explorers/js/", import.meta.url);
const { settle } = await import(new URL("lib.js", folder));
const { widget, data, rounds, seed } = JSON.parse(readFileSync(0));
const { controls, change, view, check } = (
  await import(new URL(`${widget}.js`, folder))
).default;

let state = seed;
function random() {
  state = (state * 1664525 + 1013904223) % 2 ** 32;
  return state / 2 ** 32;
}
const one = (list) => list[Math.floor(random() * list.length)];
const SILLY = ["", "-5", "0", "1e99", "-1e99", "abc", "1.5", "Infinity", "NaN"];

function choose(spec) {
  if (spec.kind === "hidden") return spec.value;
  if (spec.options) return one(spec.options)[0];
  const between = spec.min * (spec.max / (spec.min || 1)) ** random();
  const whole = spec.real ? between : Math.round(between);
  const typed = one([spec.min, spec.max, whole, whole, one(SILLY)]);
  return settle(spec, typed).value;
}

const specs = controls(data);
const problems = check(data).map((c) => `check ${JSON.stringify(c)}`);
for (let round = 0; round < rounds; round += 1) {
  let s = Object.fromEntries(specs.map((spec) => [spec.key, spec.value]));
  for (const spec of specs) {
    s[spec.key] = choose(spec);
    s = change(s, spec.key, data);
  }
  const width = one([240, 300, 500, 700]);
  const { html, say } = view(s, { data, width });
  const shown = html + say;
  const bad = shown.match(/NaN|Infinity|undefined|null|\[object/);
  if (bad) problems.push(`${bad[0]} with ${JSON.stringify(s)}`);
  if (!say) problems.push(`silent with ${JSON.stringify(s)}`);
}
console.log(JSON.stringify(problems));
