// Evaluates formulas of the explorers. stdin: [[widget, formula, arguments]];
// stdout: the values in the same order. Called by tests/test_explorers.py.
import { readFileSync } from "node:fs";

const folder = new URL("../../dsarch/teaching/explorers/js/", import.meta.url);
const values = [];
for (const [widget, name, args] of JSON.parse(readFileSync(0))) {
  const { formulas } = (await import(new URL(`${widget}.js`, folder))).default;
  values.push(formulas[name](...args));
}
console.log(JSON.stringify(values));
