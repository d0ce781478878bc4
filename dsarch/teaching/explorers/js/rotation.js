// Rotary positions and YaRN. data: {width, theta, factor, window, fast, slow,
// weight, nope, query, key}
import {
  clamp,
  define,
  esc,
  fold,
  num,
  plot,
  powers,
  px,
  svg,
  table,
  text,
  tiles,
} from "./lib.js";

const TAU = 2 * Math.PI;
/** Radians per position of each pair, without YaRN. */
const plain = (width, theta) =>
  Array.from({ length: width / 2 }, (_, m) => theta ** ((-2 * m) / width));
/** First and last pair of YaRN's ramp. */
function range(width, theta, window, fast, slow) {
  const pair = (turns) =>
    (width * Math.log(window / (turns * TAU))) / (2 * Math.log(theta));
  const low = Math.max(Math.floor(pair(fast)), 0);
  const high = Math.min(Math.ceil(pair(slow)), width - 1);
  return [low, low === high ? high + 0.001 : high];
}
/** 0: the pair keeps its speed; 1: it is slowed by the whole factor. */
function ramp(width, theta, window, fast, slow) {
  const [low, high] = range(width, theta, window, fast, slow);
  return plain(width, theta).map((_, m) =>
    clamp((m - low) / (high - low), 0, 1),
  );
}
/** Radians per position of each pair with YaRN. */
function stretched(width, theta, factor, window, fast, slow) {
  const gamma = ramp(width, theta, window, fast, slow);
  return plain(width, theta).map(
    (t, m) => (t / factor) * gamma[m] + t * (1 - gamma[m]),
  );
}
const magnitude = (factor, weight) =>
  factor > 1 ? 0.1 * weight * Math.log(factor) + 1 : 1;
const softmaxFactor = (factor, weight) => magnitude(factor, weight) ** 2;
const softmaxScale = (width, nope, factor, weight) =>
  softmaxFactor(factor, weight) / Math.sqrt(width + nope);
/** Turn the pairs of `x`, interleaved (0, 1) (2, 3) or half-split (0, r/2). */
function rotate(x, position, speeds, interleaved) {
  const half = x.length / 2,
    out = [...x];
  speeds.forEach((speed, m) => {
    const [i, j] = interleaved ? [2 * m, 2 * m + 1] : [m, m + half];
    const c = Math.cos(position * speed),
      s = Math.sin(position * speed);
    out[i] = x[i] * c - x[j] * s;
    out[j] = x[i] * s + x[j] * c;
  });
  return out;
}
function score(query, key, at, from, speeds, interleaved) {
  const q = rotate(query, at, speeds, interleaved);
  const k = rotate(key, from, speeds, interleaved);
  return q.reduce((sum, x, i) => sum + x * k[i], 0);
}

const on =
  (...names) =>
  (s) =>
    names.includes(s.look);
function controls(data) {
  const stretch = on("clocks", "speeds", "distance");
  const group = "Rotation and YaRN";
  return [
    {
      kind: "radio",
      key: "look",
      label: "Look at",
      value: "clocks",
      wide: true,
      options: [
        ["clocks", "clocks"],
        ["speeds", "speeds"],
        ["distance", "distance"],
        ["layouts", "layouts"],
      ],
    },
    {
      kind: "steps",
      key: "position",
      label: "Position",
      min: 0,
      max: 163839,
      value: 512,
      values: [0, ...powers(1, 163839)],
      step: (s) => s.stride,
      wide: true,
      unit: "tokens",
      when: on("clocks", "distance"),
      interval: 300,
    },
    {
      kind: "radio",
      key: "stride",
      label: "One step is",
      value: 1,
      when: on("clocks"),
      options: [1, 16, 256, 4096].map((n) => [n, n === 1 ? "1 token" : num(n)]),
    },
    {
      kind: "slider",
      key: "gap",
      label: "Key lies back by",
      min: 0,
      max: 163839,
      value: 64,
      values: [0, ...powers(1, 163839)],
      unit: "tokens",
      when: on("distance"),
    },
    {
      kind: "slider",
      group,
      key: "width",
      label: "Rotary width",
      min: 4,
      max: 128,
      even: true,
      value: data.width,
      values: [4, 8, 16, 32, 64, 96, 128],
    },
    {
      kind: "slider",
      group,
      key: "theta",
      label: "Base θ",
      min: 10,
      max: 1e7,
      real: true,
      value: data.theta,
      values: powers(10, 1e7, 10),
      when: stretch,
    },
    {
      kind: "slider",
      group,
      key: "factor",
      label: "YaRN factor",
      min: 1,
      max: 1000,
      real: true,
      value: data.factor,
      values: [1, 2, 4, 8, 16, 32, 40, 64, 128],
      when: stretch,
    },
    {
      kind: "slider",
      group,
      key: "window",
      label: "Original window",
      min: 16,
      max: 1 << 20,
      value: data.window,
      values: powers(128, 1 << 17),
      unit: "tokens",
      when: stretch,
    },
    {
      kind: "slider",
      group,
      key: "fast",
      label: "beta_fast",
      min: 0.01,
      max: 1000,
      real: true,
      value: data.fast,
      values: powers(0.25, 256),
      unit: "turns",
      when: stretch,
    },
    {
      kind: "slider",
      group,
      key: "slow",
      label: "beta_slow",
      min: 0.01,
      max: 1000,
      real: true,
      value: data.slow,
      values: powers(0.25, 256),
      unit: "turns",
      when: stretch,
    },
    {
      kind: "slider",
      group,
      key: "weight",
      label: "mscale_all_dim",
      min: 0,
      max: 2,
      real: true,
      step: 0.001,
      value: data.weight,
      when: on("speeds"),
    },
  ];
}

const FATES = ["kept", "in between", "slowed"];
const fate = (g) => (g <= 0 ? 0 : g >= 1 ? 2 : 1);
const speedsOf = (s) =>
  stretched(s.width, s.theta, s.factor, s.window, s.fast, s.slow);

const STYLE = `<style>
.ring { fill: none; stroke: var(--s); stroke-width: 2; } .hand { stroke: var(--fg); stroke-width: 2.6; stroke-linecap: round; }
.ghost { stroke: var(--muted); stroke-width: 1.4; stroke-dasharray: 3 3; } .r1 { stroke-dasharray: 7 4; } .r2 { stroke-dasharray: 1.5 3.5; stroke-linecap: round; }
.arc { fill: none; stroke: var(--s); stroke-width: 2; } .cell { fill: var(--bg); stroke: var(--field); } .key { display: inline-flex; gap: .4rem; align-items: center; margin-right: 1.1rem; font-size: .86rem; } .key svg { flex: none; }
</style>`;
const COLOURS = [2, 1, 0];

function clocks(s, width) {
  const speeds = speedsOf(s),
    before = plain(s.width, s.theta);
  const gamma = ramp(s.width, s.theta, s.window, s.fast, s.slow);
  const columns = Math.max(4, Math.floor(width / 66)),
    step = width / columns,
    row = 74;
  const hand = (x, y, angle, kind, r) =>
    `<path class="${kind}" d="M${px(x)} ${px(y)}L${px(x + r * Math.cos(angle))} ${px(y - r * Math.sin(angle))}"/>`;
  const body = speeds.map((speed, m) => {
    const x = (m % columns) * step + step / 2,
      y = Math.floor(m / columns) * row + 26,
      f = fate(gamma[m]);
    return (
      `<circle class="ring r${f} s${COLOURS[f]}" cx="${px(x)}" cy="${y}" r="23"/>` +
      hand(x, y, s.position * before[m], "ghost", 21) +
      hand(x, y, s.position * speed, "hand", 20) +
      text(x, y + 39, `pair ${m}`, { anchor: "middle", kind: "tick" })
    );
  });
  const key = FATES.map(
    (name, f) =>
      `<span class="key"><svg width="20" height="20" aria-hidden="true"><circle class="ring r${f} s${COLOURS[f]}" cx="10" cy="10" r="8"/></svg>${name}</span>`,
  );
  key.push(
    '<span class="key"><svg width="24" height="12" aria-hidden="true"><path class="hand" d="M2 6H22"/></svg>with YaRN</span>',
  );
  key.push(
    '<span class="key"><svg width="24" height="12" aria-hidden="true"><path class="ghost" d="M0 6H24"/></svg>without</span>',
  );
  const height = Math.ceil(speeds.length / columns) * row;
  const desc = `${speeds.length} pairs as clock hands at position ${s.position}`;
  return `<p>${key.join("")}</p>` + svg(width, height, desc, body.join(""));
}

function speedPlot(s, width) {
  const before = plain(s.width, s.theta),
    after = speedsOf(s);
  const [low, high] = range(s.width, s.theta, s.window, s.fast, s.slow);
  const last = before.length - 1,
    points = (list) => list.map((v, m) => [m, v]);
  const bands =
    low < last && high > 0 && high > low
      ? [{ from: low, to: Math.min(high, last), label: "ramp" }]
      : [];
  return plot({
    width,
    bands,
    x: { min: 0, max: last, label: "pair", format: (v) => num(v) },
    y: {
      min: Math.min(...after),
      max: 1,
      log: true,
      label: "radians per token",
    },
    series: [
      { name: "plain", points: points(before), marks: points(before) },
      { name: "with YaRN", points: points(after), marks: points(after) },
    ],
    desc: `Speeds of ${before.length} pairs: the ramp runs from pair ${num(low)} to ${num(high)}`,
  });
}

function speedTable(s) {
  const before = plain(s.width, s.theta),
    after = speedsOf(s);
  const gamma = ramp(s.width, s.theta, s.window, s.fast, s.slow);
  const rows = before.map((t, m) => [
    m,
    num(t, 6),
    num(after[m], 6),
    FATES[fate(gamma[m])],
    num((s.window * t) / TAU),
    num(TAU / after[m]),
  ]);
  const head = [
    "Pair",
    "θ",
    "θ with YaRN",
    "Fate",
    "Turns in the window",
    "Tokens per turn",
  ];
  return fold(
    "Every pair in numbers",
    table(head, rows, { caption: "Speeds in radians per token" }),
  );
}

function distancePlot(s, width) {
  const after = speedsOf(s),
    before = plain(s.width, s.theta),
    far = s.window * s.factor;
  const grid = Array.from({ length: 160 }, (_, i) => far ** (i / 159));
  const mean = (speeds, d) =>
    speeds.reduce((a, t) => a + Math.cos(d * t), 0) / speeds.length;
  return plot({
    width,
    x: { min: 1, max: far, log: true, label: "distance in tokens" },
    y: { min: -1, max: 1, label: "score of two equal vectors" },
    series: [
      { name: "plain", points: grid.map((d) => [d, mean(before, d)]) },
      { name: "with YaRN", points: grid.map((d) => [d, mean(after, d)]) },
    ],
    rules: far > s.window ? [{ x: s.window, label: "original window" }] : [],
    dots:
      s.gap >= 1 && s.gap <= far
        ? [{ x: s.gap, y: mean(after, s.gap), series: 1 }]
        : [],
    desc: "Score of two equal vectors against their distance, plain and with YaRN",
  });
}

function layout(width, count, interleaved) {
  const cell = Math.min(44, width / count),
    half = count / 2,
    top = 54;
  const pairs = Array.from({ length: half }, (_, m) =>
    interleaved ? [2 * m, 2 * m + 1] : [m, m + half],
  );
  const mid = (i) => i * cell + cell / 2;
  const arcs = pairs.map(([i, j], m) => {
    const lift = interleaved ? 20 : 16 + (26 * (m + 1)) / half;
    return `<path class="arc s${m % 6} d${m % 4}" d="M${px(mid(i))} ${top}C${px(mid(i))} ${top - lift} ${px(mid(j))} ${top - lift} ${px(mid(j))} ${top}"/>`;
  });
  const cells = pairs.flatMap(([i, j], m) =>
    [i, j].map(
      (at) =>
        `<rect class="cell" x="${px(at * cell + 1)}" y="${top}" width="${px(cell - 2)}" height="34" rx="3"/>` +
        text(mid(at), top + 15, at, { anchor: "middle", kind: "tick" }) +
        text(mid(at), top + 29, String.fromCharCode(97 + m), {
          anchor: "middle",
          kind: "strong",
        }),
    ),
  );
  const desc = pairs.map((p) => p.join(" with ")).join(", ");
  return svg(width, top + 38, desc, arcs.join("") + cells.join(""));
}
function layouts(s, width) {
  const count = Math.min(s.width, width < 420 ? 8 : 16),
    half = s.width / 2;
  const more = count < s.width ? `, shown for ${count} numbers` : "";
  return (
    `<h4>Interleaved <small>(0, 1) (2, 3) …: DeepSeek's attention${more}</small></h4>` +
    layout(width, count, true) +
    `<h4>Half-split <small>(0, ${half}) (1, ${half + 1}) …: Llama, and DeepSeek's indexer${more}</small></h4>` +
    layout(width, count, false)
  );
}

function view(s, { data, width }) {
  const look = {
    clocks: seeClocks,
    speeds: seeSpeeds,
    distance: seeDistance,
    layouts: seeLayouts,
  };
  const { html, say } = look[s.look](s, width, data);
  return {
    html: STYLE + html,
    say: [warning(s), say].filter(Boolean).join(" "),
  };
}
/** A ramp that rises nowhere is allowed, but worth a word. */
function warning(s) {
  if (s.look === "layouts") return "";
  if (s.fast <= s.slow)
    return `beta_fast ${num(s.fast)} must exceed beta_slow ${num(s.slow)}; these speeds mean nothing.`;
  const [low, high] = range(s.width, s.theta, s.window, s.fast, s.slow);
  return high < low
    ? "The window is too short for the ramp: no pair is slowed."
    : "";
}
function seeClocks(s, width) {
  const [low, high] = range(s.width, s.theta, s.window, s.fast, s.slow);
  const pairs = s.width / 2,
    fastest = (s.position / TAU).toFixed(1);
  return {
    html: clocks(s, width),
    say:
      `At position ${num(s.position, 15)} pair 0 has turned ${fastest} times; ` +
      `pair ${pairs - 1} has turned ${num((s.position * speedsOf(s)[pairs - 1]) / TAU)} times ` +
      `(${num((s.position * plain(s.width, s.theta)[pairs - 1]) / TAU)} without YaRN). The ramp runs from pair ${num(low)} to ${num(high)}.`,
  };
}
function seeSpeeds(s, width, data) {
  const [low, high] = range(s.width, s.theta, s.window, s.fast, s.slow);
  const gamma = ramp(s.width, s.theta, s.window, s.fast, s.slow);
  const count = (f) => gamma.filter((g) => fate(g) === f).length;
  const m = magnitude(s.factor, s.weight),
    sigma = softmaxScale(s.width, data.nope, s.factor, s.weight);
  return {
    html:
      tiles([
        {
          name: "Ramp",
          value: `${num(low)} to ${num(high)}`,
          note: `${count(0)} kept, ${count(1)} in between, ${count(2)} slowed`,
        },
        {
          name: "Softmax factor m²",
          value: num(m * m, 6),
          note: `m = 0.1 × ${num(s.weight)} × ln ${num(s.factor)} + 1 = ${num(m, 6)}`,
        },
        {
          name: "Softmax scale σ",
          value: num(sigma, 6),
          note: `m² / √(${data.nope} + ${s.width})`,
        },
      ]) +
      speedPlot(s, width) +
      speedTable(s),
    say:
      `${count(0)} of ${s.width / 2} pairs keep their speed, ${count(2)} are ${num(s.factor)} times slower. ` +
      `Every logit is multiplied by ${num(m * m, 6)}.`,
  };
}
function seeDistance(s, width, data) {
  const speeds = speedsOf(s),
    at = s.position + s.gap;
  const q = data.query.slice(0, s.width),
    k = data.key.slice(0, s.width);
  const here = score(q, k, at, s.position, speeds, true),
    far = score(q, k, at + 1000, s.position + 1000, speeds, true);
  const shown = (x) => (Math.abs(x) < 5e-7 ? 0 : x).toFixed(6);
  return {
    html:
      tiles([
        {
          name: `Query at ${num(at, 15)}, key at ${num(s.position, 15)}`,
          value: shown(here),
          note: "score of two fixed random vectors",
        },
        {
          name: "Both 1,000 tokens later",
          value: shown(far),
          note: `differs by ${num(Math.abs(far - here), 1)}`,
        },
      ]) + distancePlot(s, width),
    say: `The score depends on the distance of ${num(s.gap, 15)} alone: moving both by 1,000 tokens changes it by rounding only.`,
  };
}
function seeLayouts(s, width) {
  return {
    html: layouts(s, width),
    say:
      "Both layouts rotate the same number of pairs at the same speeds; only which numbers form a pair differs. " +
      "A checkpoint trained with one gives wrong scores with the other, without any error message.",
  };
}

export const formulas = {
  plain,
  range,
  ramp,
  stretched,
  magnitude,
  softmaxFactor,
  softmaxScale,
  rotate,
  score,
};
export default define({ formulas, controls, view });
