// What all explorers share: number formats, drawing and the check of formulas.
// Everything here returns text or numbers and touches no page, so Node can
// test it; host.js puts the results on the page.

// ---- numbers ----
export const clamp = (x, low, high) => Math.min(Math.max(x, low), high);

/** `x` with `digits` significant digits and thousands separators. */
export function num(x, digits = 3) {
  if (!Number.isFinite(x)) return "–";
  const size = Math.abs(x);
  if (size !== 0 && (size >= 1e15 || size < 1e-4)) {
    const [head, power] = x.toExponential(digits - 1).split("e");
    const ten = `10${raised(+power)}`;
    return Number(head) === 1 ? ten : `${Number(head)} × ${ten}`;
  }
  const whole = Number.isInteger(x) || size >= 10 ** (digits - 1);
  return whole
    ? Math.round(x).toLocaleString("en")
    : Number(x.toPrecision(digits)).toLocaleString("en", {
        maximumSignificantDigits: digits,
      });
}

/** A power as superscript digits. */
export const raised = (n) =>
  [...String(n)].map((c) => (c === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[+c])).join("");

function scaled(x, units, base, digits) {
  if (!Number.isFinite(x)) return "–";
  let i = 0;
  while (Math.abs(x) >= base && i < units.length - 1) {
    x /= base;
    i += 1;
  }
  return `${num(x, i ? digits : 6)} ${units[i]}`;
}
export const bytes = (x, digits = 3) =>
  scaled(x, ["B", "kB", "MB", "GB", "TB", "PB", "EB"], 1000, digits);
export const binary = (x, digits = 3) =>
  scaled(x, ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"], 1024, digits);
export const flop = (x, digits = 3) =>
  scaled(x, ["", "K", "M", "G", "T", "P", "E"], 1000, digits) + "FLOP";
export const times = (x) => `${num(x, 3)}×`;
export function seconds(x, digits = 3) {
  if (!Number.isFinite(x)) return "–";
  const units = [
    ["s", 1],
    ["ms", 1e-3],
    ["µs", 1e-6],
    ["ns", 1e-9],
  ];
  const [unit, size] = units.find(([, s]) => x >= s) ?? units[3];
  return `${num(x / size, digits)} ${unit}`;
}
export const plural = (n, one, many = one + "s") =>
  `${num(n, 15)} ${n === 1 ? one : many}`;

/** The powers of `base` from `low` to `high`, both ends included. */
export function powers(low, high, base = 2) {
  const list = [low];
  const start = Math.floor(Math.log(low) / Math.log(base) + 1e-9) + 1;
  for (let v = base ** start; v < high; v *= base) list.push(v);
  return [...list, high];
}

// ---- what the reader typed ----
/** The value used for `text`, and a sentence if it is another one. */
export function settle(spec, text) {
  const { min, max, label } = spec;
  const typed = String(text).trim();
  const x = Number(typed);
  const say = (why, value) => ({
    value,
    note: `${label}: ${why}; ${num(value, 15)} is used.`,
  });
  if (typed === "") return say("empty", spec.value);
  if (Number.isNaN(x)) return say("that is not a number", spec.value);
  if (x < min) return say(`${num(x, 6)} is below ${num(min, 15)}`, min);
  if (x > max) {
    const shown = Number.isFinite(x) ? num(x, 6) : "that";
    return say(`${shown} is above ${num(max, 15)}`, max);
  }
  if (!spec.real && !Number.isInteger(x)) {
    return say(`${num(x, 6)} is not a whole number`, Math.round(x));
  }
  if (spec.even && x % 2)
    return say(`${x} is odd, but pairs are needed`, x - 1);
  return { value: x, note: "" };
}

/** The formulas that differ from the values which Python put in the data. */
export function disagreements(formulas, checks = []) {
  return checks.filter(
    ([name, args, want]) => !same(formulas[name](...args), want),
  );
}
function same(a, b) {
  if (Array.isArray(b)) {
    return a.length === b.length && b.every((x, i) => same(a[i], x));
  }
  if (typeof b !== "number") return a === b;
  return Math.abs(a - b) <= 1e-6 * Math.abs(b) + 1e-12;
}

/** An explorer from its parts; see the docstring of the Python package. */
export function define(parts) {
  const widget = { formulas: {}, change: (state) => state, ...parts };
  widget.check ??= (data) => disagreements(widget.formulas, data.checks);
  widget.render = ({ data, el }) => mount({ ...widget, data, el });
  return widget;
}

// ---- text for the page ----
const ESCAPES = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" };
export const esc = (x) => String(x).replace(/[&<>"]/g, (c) => ESCAPES[c]);

/** Large figures with a line of explanation each. */
export const tiles = (items) =>
  `<dl class="tiles">${items
    .map(
      ({ name, value, note = "" }) =>
        `<div><dt>${esc(name)}</dt><dd>${esc(value)}` +
        `<small>${esc(note)}</small></dd></div>`,
    )
    .join("")}</dl>`;

/** A table; `strong` is the index of the row that stands out. */
export function table(head, rows, { caption = "", strong = -1 } = {}) {
  const cells = (row) =>
    row
      .map((c, i) =>
        i ? `<td>${esc(c)}</td>` : `<th scope="row">${esc(c)}</th>`,
      )
      .join("");
  return (
    `<div class="scroll" tabindex="0" role="region" aria-label="${esc(caption)}">` +
    `<table><caption>${esc(caption)}</caption><thead><tr>` +
    head.map((c) => `<th scope="col">${esc(c)}</th>`).join("") +
    "</tr></thead><tbody>" +
    rows
      .map(
        (r, i) =>
          `<tr${i === strong ? ' class="strong"' : ""}>${cells(r)}</tr>`,
      )
      .join("") +
    "</tbody></table></div>"
  );
}
export const heading = (text, note = "") =>
  `<h4>${esc(text)}${note ? ` <small>${esc(note)}</small>` : ""}</h4>`;
export const fold = (title, body) =>
  `<details data-key="${esc(title)}"><summary>${esc(title)}</summary>${body}</details>`;

/** A button in the figure that changes the state by `patch`. */
export const pick = ({ patch, key, on, label, text, kind = "", extra = "" }) =>
  `<button type="button" class="pick ${kind}" data-key="${esc(key)}"` +
  ` data-set="${esc(JSON.stringify(patch))}" aria-pressed="${!!on}"` +
  ` aria-label="${esc(label)}" tabindex="${on ? 0 : -1}" ${extra}>${text}</button>`;

// ---- drawing ----
const MARKS = {
  circle: (x, y, r) => `<circle cx="${x}" cy="${y}" r="${r}"/>`,
  square: (x, y, r) =>
    `<rect x="${x - r}" y="${y - r}" width="${2 * r}" height="${2 * r}"/>`,
  triangle: (x, y, r) =>
    `<path d="M${x} ${y - 1.3 * r}l${1.2 * r} ${2.2 * r}h${-2.4 * r}z"/>`,
  diamond: (x, y, r) =>
    `<path d="M${x} ${y - 1.4 * r}l${1.4 * r} ${1.4 * r}l${-1.4 * r} ` +
    `${1.4 * r}l${-1.4 * r} ${-1.4 * r}z"/>`,
};
export const SHAPES = Object.keys(MARKS);
export const px = (x) => Math.round(x * 10) / 10;

/** A mark of series `i`: colour and shape both tell it apart. */
export const mark = (i, x, y, r = 4.5) =>
  `<g class="s${i % 6} mark">${MARKS[SHAPES[i % 4]](px(x), px(y), r)}</g>`;

export const svg = (width, height, desc, body) =>
  `<svg viewBox="0 0 ${px(width)} ${px(height)}" width="${px(width)}" ` +
  `height="${px(height)}" role="img" aria-label="${esc(desc)}">${body}</svg>`;

export const text = (x, y, words, { anchor = "start", kind = "" } = {}) =>
  `<text x="${px(x)}" y="${px(y)}" text-anchor="${anchor}" class="${kind}">` +
  `${esc(words)}</text>`;

/** Positions on an axis: `at(value)` in pixels, `ticks` that are readable. */
export function axis({ min, max, log = false }, from, to, room = 64) {
  const f = log ? Math.log10 : (x) => x;
  const span = f(max) - f(min) || 1;
  const at = (x) => from + ((f(x) - f(min)) / span) * (to - from);
  const wanted = Math.max(2, Math.floor(Math.abs(to - from) / room));
  return {
    at,
    ticks: log ? decades(min, max, wanted) : steps(min, max, wanted),
  };
}
function decades(min, max, wanted) {
  const low = Math.ceil(Math.log10(min) - 1e-9);
  const high = Math.floor(Math.log10(max) + 1e-9);
  const stride = Math.max(1, Math.ceil((high - low) / wanted));
  const list = [];
  for (let p = low; p <= high; p += stride) list.push(10 ** p);
  return list;
}
function steps(min, max, wanted) {
  const raw = (max - min) / wanted || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find((m) => m * power >= raw) * power;
  const list = [];
  for (let v = Math.ceil(min / step); v * step <= max + step / 1e6; v += 1) {
    list.push(v * step);
  }
  return list;
}

/** Names of the series with their marks, above a plot or beside it. */
export const legend = (names) =>
  `<ul class="legend">${names
    .map(
      (name, i) =>
        `<li><svg width="26" height="14" aria-hidden="true">` +
        `<path class="line s${i % 6} d${i % 4}" d="M0 7H26"/>${mark(i, 13, 7, 4)}` +
        `</svg>${esc(name)}</li>`,
    )
    .join("")}</ul>`;

/** Lines over two axes, with optional bands, rules and marked points.
 *
 * x, y: {min, max, log, label, format}; series: [{name, points, marks}];
 * bands: [{from, to, label}] and rules: [{x, label}] along x;
 * dots: [{x, y, series, label}].
 */
export function plot({ width, height = 250, x, y, series, desc, ...more }) {
  const { bands = [], rules = [], dots = [] } = more;
  const format = (a) => a.format ?? ((v) => num(v, 3));
  const right = width - 14,
    top = 26,
    bottom = height - 38;
  const yTicks = axis(y, bottom, top, 38).ticks.map((v) => [v, format(y)(v)]);
  const left = 14 + 6.4 * Math.max(...yTicks.map(([, s]) => s.length), 2);
  const X = axis(x, left, right, 66),
    Y = axis(y, bottom, top, 38);
  const inX = (v) => px(clamp(X.at(v), left, right));
  const inY = (v) => px(clamp(Y.at(v), top, bottom));
  const path = (points) =>
    points.map(([a, b], i) => `${i ? "L" : "M"}${inX(a)} ${inY(b)}`).join("");
  const body = [
    ...bands.map(
      (b) =>
        `<rect class="band" x="${inX(b.from)}" y="${top}" ` +
        `width="${px(inX(b.to) - inX(b.from))}" height="${bottom - top}"/>` +
        text((inX(b.from) + inX(b.to)) / 2, top + 13, b.label, {
          anchor: "middle",
          kind: "muted",
        }),
    ),
    ...yTicks.map(
      ([v, s]) =>
        `<path class="grid" d="M${px(left)} ${inY(v)}H${right}"/>` +
        text(left - 7, inY(v) + 4, s, { anchor: "end", kind: "tick" }),
    ),
    ...X.ticks.map(
      (v) =>
        `<path class="axis" d="M${inX(v)} ${bottom}v5"/>` +
        text(inX(v), bottom + 18, format(x)(v), {
          anchor: "middle",
          kind: "tick",
        }),
    ),
    `<path class="axis" d="M${px(left)} ${bottom}H${right}"/>`,
    text(2, 13, y.label, { kind: "muted" }),
    text(right, height - 4, x.label, { anchor: "end", kind: "muted" }),
    ...rules.map((r) => rule(inX(r.x), top, bottom, r.label, left, right)),
    ...series.map(
      (s, i) =>
        `<path class="line s${i % 6} d${i % 4}" d="${path(s.points)}"/>` +
        (s.marks ?? []).map(([a, b]) => mark(i, inX(a), inY(b), 3)).join(""),
    ),
    ...dots.map((d) => mark(d.series, inX(d.x), inY(d.y), 5.5)),
  ];
  return (
    legend(series.map((s) => s.name)) + svg(width, height, desc, body.join(""))
  );
}
function rule(x, top, bottom, label, left, right) {
  const anchor = x > (left + right) / 2 ? "end" : "start";
  return (
    `<path class="rule" d="M${x} ${top}V${bottom}"/>` +
    text(x + (anchor === "end" ? -6 : 6), bottom - 8, label, {
      anchor,
      kind: "halo",
    })
  );
}

const HATCHES = [
  "",
  '<pattern id="h1" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><path d="M0 3H6"/></pattern>',
  '<pattern id="h2" width="6" height="6" patternUnits="userSpaceOnUse"><path d="M0 3H6"/></pattern>',
  '<pattern id="h3" width="6" height="6" patternUnits="userSpaceOnUse"><path d="M3 3h.1"/></pattern>',
];

/** Horizontal bars, each with name and value beside it.
 *
 * items: [{name, value, text, series, strong}]; a bar of series 1 to 3 is
 * hatched as well as coloured.
 */
export function bars({ width, items, desc, max }) {
  const wide = width >= 520,
    row = wide ? 34 : 48;
  const left = wide
    ? Math.min(230, 16 + 7.6 * Math.max(...items.map((d) => d.name.length)))
    : 0;
  const most = max ?? Math.max(...items.map((d) => d.value));
  const room =
    width - left - 16 - 7.2 * Math.max(...items.map((d) => d.text.length));
  const body = items.map((d, i) => {
    const size = px(Math.max((room * d.value) / (most || 1), 1.5));
    const y = i * row + (wide ? 7 : 20),
      s = d.series ?? 0;
    const kind = d.strong ? "strong" : "";
    const box = `x="${left}" y="${y}" width="${size}" height="20" rx="3"`;
    return (
      text(wide ? left - 10 : 0, wide ? y + 15 : y - 6, d.name, {
        anchor: wide ? "end" : "start",
        kind,
      }) +
      `<rect class="bar s${s % 6}" ${box}/>` +
      (s % 4 ? `<rect class="hatch" fill="url(#h${s % 4})" ${box}/>` : "") +
      text(left + size + 8, y + 15, d.text, { kind })
    );
  });
  return svg(
    width,
    items.length * row + 4,
    desc,
    `<defs>${HATCHES.join("")}</defs>${body.join("")}`,
  );
}
