// FP8: one number and its code, or a whole matrix and its error.
// data: {look, number}
import {
  bars, clamp, define, fold, heading, mark, num, powers, px, svg, table, text, tiles,
} from "./lib.js";

const FORMATS = {
  e4m3: { e: 4, m: 3, bias: 7, top: 0x7e, infinite: false },
  e5m2: { e: 5, m: 2, bias: 15, top: 0x7b, infinite: true },
};
const cell = new Float64Array(1), words = new Uint32Array(cell.buffer);
/** Exponent of a positive number: 0 for 1 to 2. */
function order(x) {
  cell[0] = x;
  return ((words[1] >>> 20) & 0x7ff) - 1023;
}
/** To the nearest integer, ties to the even one. */
function even(x) {
  const low = Math.floor(x), rest = x - low;
  if (rest !== 0.5) return Math.round(x);
  return low % 2 === 0 ? low : low + 1;
}
/** What a code stands for; null is NaN. */
function decode(code, format) {
  if (format === "ue8m0") return code === 255 ? null : 2 ** (code - 127);
  const { e, m, bias, top, infinite } = FORMATS[format];
  const size = code & 0x7f, sign = code > 0x7f ? -1 : 1;
  if (size > top) return infinite && size === top + 1 ? sign * 1e999 : null;
  const field = size >> m, steps = size & ((1 << m) - 1);
  return sign * (steps + (field > 0 ? 1 << m : 0)) * 2 ** (Math.max(field, 1) - bias - m);
}
/** The code nearest to x, clamped to the finite ones; UE8M0 rounds up. */
function encode(x, format) {
  if (format === "ue8m0") {
    if (!(x >= 0)) return 255;
    return x === 0 ? 0 : clamp(order(x) + (2 ** order(x) < x ? 1 : 0) + 127, 0, 254);
  }
  const { e, m, bias, top } = FORMATS[format];
  const sign = x < 0 || Object.is(x, -0) ? 1 << (e + m) : 0;
  const size = Math.min(Math.abs(x), decode(top, format));
  const power = size === 0 ? 1 - bias : Math.max(order(size), 1 - bias);
  const steps = even(size * 2 ** (m - power));
  return sign + steps + ((power + bias - 1) << m);
}
const rounded = (x, format) =>
  format === "int8" ? clamp(even(x), -127, 127) : decode(encode(x, format), format);
/** The scale of a tile whose largest magnitude is amax. */
function scaleFor(amax, format, pow2) {
  const top = format === "int8" ? 127 : decode(FORMATS[format].top, format);
  const s = Math.fround(Math.fround(Math.max(Math.fround(amax), Math.fround(1e-4))) / top);
  return pow2 ? 2 ** (order(s) + (2 ** order(s) < s ? 1 : 0)) : s;
}

const ROWS = 128, COLUMNS = 256;
/** The i-th of a fixed series of numbers between 0 and 1. */
function chance(i) {
  let x = Math.imul(i + 1, 0x9e3779b1) >>> 0;
  x = Math.imul(x ^ (x >>> 16), 0x85ebca6b) >>> 0;
  x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35) >>> 0;
  return ((x ^ (x >>> 16)) >>> 0) / 4294967296 + 2 ** -33;
}
/** Entry i of the matrix, before outliers. */
function entry(i, shape) {
  const u = chance(2 * i), angle = 2 * Math.PI * chance(2 * i + 1);
  if (shape === "uniform") return 2 * u - 1;
  const normal = Math.sqrt(-2 * Math.log(u)) * Math.cos(angle);
  return shape === "normal" ? normal : normal ** 3;
}
const OUT = { row: 5, column: 40 };
const isOut = (r, c, where) =>
  where === "value" ? r === OUT.row && c === OUT.column
    : where === "token" ? r === OUT.row : where === "channel" && c === OUT.column;
const SIDES = { tensor: [ROWS, COLUMNS], row: [1, COLUMNS], block: [128, 128], tile: [1, 128] };
const made = new Map();
function matrix(shape) {
  if (!made.has(shape)) {
    made.set(shape, Float64Array.from({ length: ROWS * COLUMNS }, (_, i) => entry(i, shape)));
  }
  return made.get(shape);
}
/** Relative errors of all ordinary values: visit(value, its rounded self). */
function walk(shape, where, size, format, grain, pow2, visit) {
  const x = matrix(shape), [high, wide] = SIDES[grain];
  const at = (r, c) => !isOut(r, c, where) ? x[r * COLUMNS + c]
    : where === "value" ? size : x[r * COLUMNS + c] * size;
  for (let top = 0; top < ROWS; top += high) {
    for (let left = 0; left < COLUMNS; left += wide) {
      let amax = 0;
      for (let r = top; r < top + high; r += 1) {
        for (let c = left; c < left + wide; c += 1) amax = Math.max(amax, Math.abs(at(r, c)));
      }
      const s = scaleFor(amax, format, pow2);
      for (let r = top; r < top + high; r += 1) {
        for (let c = left; c < left + wide; c += 1) {
          if (!isOut(r, c, where)) visit(at(r, c), Math.fround(rounded(at(r, c) / s, format) * s));
        }
      }
    }
  }
}
/** Error of the ordinary values relative to them, and the share lost to 0. */
function matrixError(shape, where, size, format, grain, pow2) {
  let off = 0, all = 0, lost = 0, count = 0;
  walk(shape, where, size, format, grain, pow2, (x, y) => {
    off += (y - x) ** 2;
    all += x * x;
    lost += y === 0 && x !== 0 ? 1 : 0;
    count += 1;
  });
  return [Math.sqrt(off / all), lost / count];
}

// ---- one number ----
const WIDTHS = { e4m3: [1, 4, 3], e5m2: [1, 5, 2], ue8m0: [0, 8, 0] };
const NAMES = { e4m3: "E4M3", e5m2: "E5M2", ue8m0: "UE8M0", int8: "INT8" };
const shown = (x, digits = 7) =>
  x === null ? "not a number" : !Number.isFinite(x) ? (x < 0 ? "−∞" : "∞") : num(x, digits).replace("-", "−");
/** The last code that is a positive number. */
const last = (format) => (format === "ue8m0" ? 254 : FORMATS[format].top);
/** The values of the codes beside the code of x: below, chosen, above. */
function neighbours(x, format) {
  const code = encode(x, format), sign = code > 0x7f && format !== "ue8m0" ? -1 : 1;
  const size = sign < 0 ? code & 0x7f : code, half = format === "ue8m0" ? 0 : 1;
  const down = size > 0 ? size - 1 : half ? 1 : 0;
  const inner = size > 0 || !half ? decode(down, format) : -decode(1, format);
  const outer = decode(Math.min(size + 1, last(format)), format);
  const three = [sign * inner, decode(code, format), sign * outer];
  return sign < 0 ? three.reverse() : three;
}
const STYLE = `<style>
.bit { fill: var(--bg); stroke: var(--s); stroke-width: 2; } .bit.one { fill: var(--s); } .ds svg .ink { fill: #fff; font-weight: 650; font-size: 17px; } .ds svg .off { font-size: 17px; }
.brace { stroke: var(--s); stroke-width: 3; }
</style>`;
function bits(code, format, width) {
  const [s, e, m] = WIDTHS[format], step = Math.min(52, width / 8.2), side = step - 6;
  const parts = [["sign", s, 3], ["exponent", e, 0], ["mantissa", m, 1]].filter(([, n]) => n);
  let at = 0;
  const body = parts.map(([name, n, colour]) => {
    const x = at * step;
    const boxes = Array.from({ length: n }, (_, i) => {
      const one = (code >> (7 - at - i)) & 1, left = (at + i) * step;
      return (
        `<rect class="bit${one ? " one" : ""} s${colour}" x="${px(left + 2)}" y="24" width="${px(side)}" height="38" rx="4"/>` +
        text(left + 2 + side / 2, 49, one, { anchor: "middle", kind: one ? "ink" : "off" })
      );
    });
    at += n;
    const short = n === 1 ? "±" : width < 420 && n < 3 ? name.slice(0, 4) : name;
    return boxes.join("") + text(x + 2, 15, short, { kind: "strong" }) +
      `<path class="brace s${colour}" d="M${px(x + 2)} 69h${px(n * step - 6)}"/>`;
  });
  const desc = `Bits of code ${code}: ${code.toString(2).padStart(8, "0")}`;
  return svg(8 * step, 74, desc, body.join(""));
}
function meaning(code, format) {
  const value = decode(code, format);
  if (format === "ue8m0") return value === null ? "all ones: not a number" : `2^(${code} − 127)`;
  const { m, bias } = FORMATS[format];
  const field = (code & 0x7f) >> m, steps = code & ((1 << m) - 1), sign = code > 0x7f ? "−" : "";
  if (value === null) return "not a number";
  if (!Number.isFinite(value)) return "infinity";
  return field
    ? `${sign}2^(${field} − ${bias}) × (1 + ${steps}/${1 << m})`
    : `${sign}2^(1 − ${bias}) × ${steps}/${1 << m}, subnormal`;
}
function scale(s, three, width) {
  const low = three[0], high = three[2], span = high - low || 1, pad = 26;
  const at = (x) => pad + clamp((x - low) / span, 0, 1) * (width - 2 * pad);
  const ticks = [...new Set(three)].map((v) =>
    `<path class="axis" d="M${px(at(v))} 32v14"/>` +
    text(at(v), 62, shown(v, 5), { anchor: v === low ? "start" : v === high ? "end" : "middle", kind: v === three[1] ? "strong" : "tick" }));
  const middles = [0, 1].map((i) => (three[i] + three[i + 1]) / 2).filter((v) => v > low && v < high);
  const halves = middles.map((v) => `<path class="rule" d="M${px(at(v))} 26v26"/>`);
  const body = `<path class="axis" d="M${pad} 39H${px(width - pad)}"/>` + ticks.join("") + halves.join("") +
    mark(3, at(s.number), 39, 6) + text(at(s.number), 20, "your number", { anchor: at(s.number) < 80 ? "start" : at(s.number) > width - 80 ? "end" : "middle", kind: "halo" });
  return svg(width, 68, `Neighbours ${three.map((v) => shown(v)).join(", ")}`, body);
}
function seeNumber(s, width) {
  const code = s.code, value = decode(code, s.format), three = neighbours(s.number, s.format);
  const plain = value !== null && Number.isFinite(value);
  const gap = plain && s.number ? Math.abs(value - s.number) / Math.abs(s.number) : 0;
  const tie = plain && [0, 1].some((i) => three[i] !== three[i + 1] && s.number === (three[i] + three[i + 1]) / 2);
  const html = STYLE + bits(code, s.format, width) + tiles([
    { name: `Code 0x${code.toString(16).toUpperCase().padStart(2, "0")}`, value: shown(value), note: meaning(code, s.format) },
    { name: "Relative error", value: plain ? `${num(100 * gap)} %` : "–", note: `of ${shown(s.number)}` },
  ]) + (plain ? heading("The nearest codes", "dashed: half way, where rounding changes") + scale(s, three, width) : "");
  const why = !plain ? "This code is no finite number."
    : s.format === "ue8m0" ? (s.number < 0 ? "UE8M0 has no sign." : "A scale rounds up, so that nothing in its tile exceeds the largest code.")
    : tie ? "It lies exactly half way, and the code whose last bit is 0 wins."
    : Math.abs(s.number) > decode(last(s.format), s.format) ? "It is beyond the largest value and is clamped."
    : value === 0 && s.number ? "It is nearer to zero than to the smallest code, and is lost."
    : "The nearest code wins.";
  return { html, say: `${NAMES[s.format]} turns ${shown(s.number)} into ${shown(value)}. ${why}` };
}

// ---- a matrix ----
const GRAINS = { tensor: "one scale", row: "per row", block: "128×128 blocks", tile: "1×128 tiles" };
const WHERE = { none: "none", value: "one value", token: "one token", channel: "one channel" };
const BINS = [0.003, 0.01, 0.03, 0.1, 0.3];
const LABELS = ["below 0.3 %", "0.3 to 1 %", "1 to 3 %", "3 to 10 %", "10 to 30 %", "above 30 %", "lost: 0"];
function histogram(s) {
  const found = LABELS.map(() => 0);
  let count = 0;
  walk(s.shape, s.where, s.size, s.format, s.grain, s.pow2, (x, y) => {
    const error = Math.abs((y - x) / x);
    found[y === 0 ? 6 : BINS.filter((b) => error >= b).length] += 1;
    count += 1;
  });
  return found.map((n) => (100 * n) / count);
}
function seeMatrix(s, width) {
  const errors = Object.keys(GRAINS).map((grain) =>
    [grain, ...matrixError(s.shape, s.where, s.size, s.format, grain, s.pow2)]);
  const percent = (x) => `${num(100 * x)} %`;
  const compare = errors.map(([grain, off]) => (
    { name: GRAINS[grain], value: off, text: percent(off), strong: grain === s.grain, series: grain === s.grain ? 1 : 0 }));
  const shares = histogram(s);
  const items = shares.map((v, i) => ({ name: LABELS[i], value: v, text: `${num(v)} %`, series: i === 6 ? 3 : 0 }));
  const [, off, lost] = errors.find(([grain]) => grain === s.grain);
  const desc = (list) => list.map((d) => `${d.name}: ${d.text}`).join("; ");
  const out = s.where === "none" ? "no outliers" : s.where === "value" ? `one value of ${num(s.size)}` : `${WHERE[s.where]} × ${num(s.size)}`;
  return {
    html: heading("Error of the ordinary values", `${NAMES[s.format]}, ${out}, outliers not counted`) +
      bars({ width, items: compare, desc: desc(compare) }) +
      heading("How far each value is off", GRAINS[s.grain]) +
      bars({ width, items, desc: desc(items), max: 100 }) +
      fold("In numbers", table(["Scales", "Error", "Lost to zero"],
        errors.map(([g, a, b]) => [GRAINS[g], percent(a), percent(b)]), { caption: "128 tokens of 256 channels" })),
    say: `With ${GRAINS[s.grain]}, ${NAMES[s.format]} is off by ${percent(off)} and loses ${percent(lost)} of the ordinary values to zero.`,
  };
}

function controls(data) {
  const one = (s) => s.look === "number", many = (s) => s.look === "matrix";
  const options = (names) => Object.entries(names);
  const stops = [0, ...powers(2 ** -10, 57344)];
  return [
    { kind: "radio", key: "look", label: "Look at", value: data.look, wide: true, options: [["number", "one number"], ["matrix", "a matrix"]] },
    { kind: "radio", key: "format", label: "Format", value: "e4m3", options: [["e4m3", "E4M3"], ["e5m2", "E5M2"], ["ue8m0", "UE8M0"]], when: one },
    { kind: "slider", key: "number", label: "Your number", min: -1e5, max: 1e5, real: true, value: data.number, values: [...stops.slice(1).map((v) => -v).reverse(), ...stops], when: one },
    { kind: "steps", key: "code", label: "Code", min: 0, max: 255, value: encode(data.number, "e4m3"), wide: true, when: one, interval: 500 },
    { kind: "radio", key: "format2", label: "Number format", value: "e4m3", options: [["e4m3", "E4M3"], ["e5m2", "E5M2"], ["int8", "INT8"]], when: many },
    { kind: "radio", key: "grain", label: "Scales", value: "tile", options: options(GRAINS), when: many },
    { kind: "radio", key: "shape", label: "Values", value: "normal", options: [["normal", "normal"], ["uniform", "uniform"], ["cubed", "heavy tails"]], when: many },
    { kind: "radio", key: "where", label: "Outliers", value: "value", options: options(WHERE), when: many },
    { kind: "slider", key: "size", label: "Outlier size", min: 1, max: 1e6, real: true, value: 1000, values: powers(1, 1e6, 10), when: (s) => many(s) && s.where !== "none" },
    { kind: "radio", key: "pow2", label: "Scale is", value: 0, options: [[0, "any number"], [1, "a power of two"]], when: many },
  ];
}
/** The number and its code follow each other. */
function change(state, why) {
  if (why === "code") {
    const value = decode(state.code, state.format);
    return value === null || !Number.isFinite(value) ? state : { ...state, number: clamp(value, -1e5, 1e5) };
  }
  if (why === "number" || why === "format") return { ...state, code: encode(state.number, state.format) };
  return state;
}
const view = (s, { width }) =>
  s.look === "number" ? seeNumber(s, width) : seeMatrix({ ...s, format: s.format2 }, width);

export const formulas = { decode, encode, neighbours, scaleFor, entry, matrixError };
export default define({ formulas, controls, change, view });
