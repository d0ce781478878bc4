// A walk through real functions: formula, statement and values of each step.
// data: {steps: [{title, math, why, function, line, code, grids, say}],
// sources: {function: {file, source, first}}}; a grid is {name, rows,
// columns, cells, whole, marks}.
import { clamp, define, esc, fold, px, svg } from "./lib.js";

function softmax(scores) {
  const most = Math.max(...scores);
  const parts = scores.map((s) => Math.exp(s - most));
  const total = parts.reduce((a, b) => a + b, 0);
  return parts.map((p) => p / total);
}
const sigmoid = (u) => 1 / (1 + Math.exp(-u));

/** With what chance a draft is kept that was drawn with chance q. */
const keep = (p, q) => Math.min(1, p / q);

/** The clipped surrogate of one token. */
const gain = (ratio, advantage, low, high) =>
  Math.min(
    ratio * advantage,
    clamp(ratio, 1 - low, 1 + high) * advantage,
  );

const STYLE = `<style>
.walk { display: grid; grid-template-columns: minmax(0, 1fr); gap: .2rem 1.6rem; margin-top: .5rem; }
.walk.two { grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); }
.walk .values { grid-column: 1 / -1; }
.walk table { font-size: .8rem; } .walk :is(th, td) { padding: .22rem .28rem; }
.walk h4 { margin: .3rem 0 .1rem; font-size: 1.05rem; }
.walk p { margin: .5rem 0; }
.walk .tex { padding: .5rem 0; }
.walk math { font-size: 1.15em; color: var(--fg); }
.walk .where { color: var(--muted); font-size: .82rem; margin: .6rem 0 .2rem; }
pre.code { margin: 0; padding: .5rem .7rem; font: .82rem/1.5 "Source Code Pro", ui-monospace, monospace;
  background: var(--tint); border-radius: .35rem; white-space: pre-wrap; overflow-wrap: anywhere; tab-size: 4; }
pre.now { border-left: 3px solid var(--accent); border-radius: 0 .35rem .35rem 0; }
pre.all { white-space: pre; overflow-x: auto; overflow-wrap: normal; max-height: 26rem; overflow-y: auto; }
pre.all span { display: block; } pre.all .here { font-weight: 700; background: var(--bg); box-shadow: -3px 0 0 var(--accent); }
pre.code:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
.walk td { font-variant-numeric: tabular-nums; background: var(--heat); }
.walk td.best { outline: 2px solid var(--fg); outline-offset: -2px; font-weight: 700; }
.walk .whole { margin: .5rem 0 .2rem; }
</style>`;

const value = (cell) => Number(cell.replace("−", "-"));

/** The tint of a cell: one hue above zero, another one below. */
function heat(x, most) {
  if (!Number.isFinite(x) || !most) return "transparent";
  const part = px(30 * Math.min(1, Math.abs(x) / most));
  const hue = x < 0 ? "var(--c3)" : "var(--c0)";
  return `color-mix(in srgb, ${hue} ${part}%, transparent)`;
}

const largest = (rows) =>
  Math.max(...rows.flat().filter(Number.isFinite).map(Math.abs), 0);

function cellsOf({ name, rows, columns, cells, whole, marks }) {
  const most = largest(cells.map((row) => row.map(value)));
  const best = new Set(marks.map(([i, j]) => `${i},${j}`));
  const body = rows.map((row, i) => {
    const line = cells[i].map((cell, j) => {
      const kind = best.has(`${i},${j}`) ? ' class="best"' : "";
      return `<td${kind} style="--heat:${heat(value(cell), most)}">${esc(cell)}</td>`;
    });
    return `<tr><th scope="row">${esc(row)}</th>${line.join("")}</tr>`;
  });
  const total = whole.length ? whole[0].length : columns.length;
  const size = `${rows.length} × ${total}`;
  const part = whole.length ? `, the first ${columns.length} columns` : "";
  const caption = `${name}: ${size}${part}`;
  const head = ["", ...columns]
    .map((c) => (c ? `<th scope="col">${esc(c)}</th>` : "<td></td>"))
    .join("");
  return (
    `<div class="scroll" tabindex="0" role="group" aria-label="${esc(caption)}">` +
    `<table><caption>${esc(caption)}</caption><thead><tr>${head}</tr></thead>` +
    `<tbody>${body.join("")}</tbody></table></div>`
  );
}

/** All values as a strip of tinted cells, where the table shows a part. */
function strip({ name, rows, whole }, width) {
  if (!whole.length) return "";
  const most = largest(whole),
    wide = width / whole[0].length,
    high = clamp(wide, 5, 12);
  const cells = whole.flatMap((row, i) =>
    row.map(
      (x, j) =>
        `<rect x="${px(j * wide)}" y="${px(i * high)}" width="${px(wide)}" ` +
        `height="${px(high)}" style="fill:${x < 0 ? "var(--c3)" : "var(--c0)"};` +
        `opacity:${px((10 * Math.abs(x)) / (most || 1)) / 10}"/>`,
    ),
  );
  const said = `All ${rows.length} × ${whole[0].length} values of ${name}, tinted by size and sign`;
  return `<div class="whole">${svg(width, rows.length * high, said, cells.join(""))}</div>`;
}

/** The lines of a function, those of the statement marked. */
function whole({ source }, step) {
  const from = step.line,
    to = from + step.code.split("\n").length;
  const lines = source.split("\n").map((line, i) => {
    const here = i >= from && i < to;
    return `<span${here ? ' class="here"' : ""}>${esc(line) || " "}</span>`;
  });
  return (
    `<pre class="code all" tabindex="0" role="group" ` +
    `aria-label="Source of ${esc(step.function)}">${lines.join("")}</pre>`
  );
}

function controls({ steps }) {
  const max = steps.length;
  return [
    {
      kind: "steps",
      key: "step",
      label: "Step",
      unit: `of ${max}`,
      wide: true,
      min: 1,
      max,
      value: 1,
      interval: 4000,
    },
  ];
}

function view(s, { data, width }) {
  const step = data.steps[s.step - 1],
    { file } = data.sources[step.function];
  const two = width >= 540 ? " two" : "";
  const values = step.grids
    .map((grid) => cellsOf(grid) + strip(grid, width))
    .join("");
  const html =
    `${STYLE}<div class="walk${two}"><div><h4>${esc(step.title)}</h4>` +
    `<div class="tex scroll" tabindex="0" role="group" aria-label="Formula">${step.math}</div>` +
    `<p>${esc(step.why)}</p></div>` +
    `<div><p class="where">${esc(file)}, in ${esc(step.function)}</p>` +
    `<pre class="code now">${esc(step.code)}</pre></div>` +
    `<div class="values">${values}</div></div>` +
    fold(
      "The whole function",
      whole(data.sources[step.function], step),
    );
  const say = `Step ${s.step} of ${data.steps.length}, ${step.title}: ${step.say}`;
  return { html, say };
}

export const formulas = { softmax, sigmoid, keep, gain };
export default define({ formulas, controls, view });
