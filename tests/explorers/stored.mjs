// Checks the explorers that are stored in notebooks. Arguments: the
// notebooks; stdout: {count, problems}. Called by tests/test_explorers.py,
// or by hand: node tests/explorers/stored.mjs chapters/*.ipynb
import { readFileSync } from "node:fs";

const folder = new URL("../../dsarch/teaching/explorers/js/", import.meta.url);
const FOUND =
  /data-ds-widget="(\w+)"[^>]*>\n<script type="application\/json">(.*?)<\/script>/gs;
const problems = [];
let count = 0;
for (const path of process.argv.slice(2)) {
  for (const cell of JSON.parse(readFileSync(path)).cells) {
    for (const output of cell.outputs ?? []) {
      const html = [output.data?.["text/html"] ?? ""].flat().join("");
      for (const [, name, text] of html.matchAll(FOUND)) {
        count += 1;
        const widget = (await import(new URL(`${name}.js`, folder))).default;
        const wrong = widget.check(JSON.parse(text));
        if (wrong.length) problems.push([path, name, wrong]);
      }
    }
  }
}
console.log(JSON.stringify({ count, problems }));
