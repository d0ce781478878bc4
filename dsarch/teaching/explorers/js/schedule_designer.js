// Learning rate schedules, beside the cosine of the same length.
// data: {kind}
import { define, heading, num, plot, plural, powers, tiles } from "./lib.js";

const inside = (p) => Math.min(1, Math.max(0, p));
const rise = (step, warm) => (warm ? Math.min(1, (step + 1) / warm) : 1);
function fall(progress, shape, floor) {
  const p = inside(progress);
  if (shape === "exponential") return floor ** p;
  const down = {
    linear: 1 - p,
    cosine: (1 + Math.cos(Math.PI * p)) / 2,
    sqrt: 1 - Math.sqrt(p),
    square: 1 - p * p,
  }[shape];
  return floor + (1 - floor) * down;
}
/** The share of the peak at a step. */
function rate(kind, step, total, warm, tail, floor, shape) {
  const up = rise(step, warm);
  if (kind === "constant") return up;
  if (kind === "multi-step") {
    return up * (step >= 0.9 * total ? 0.1 : step >= 0.8 * total ? 0.316 : 1);
  }
  if (kind === "wsd") {
    const p = tail ? (step - (total - tail)) / tail : 0;
    return up * fall(p, shape, floor);
  }
  const p = (step - warm) / Math.max(1, total - warm);
  return up * fall(p, kind, floor);
}
/** Steps that are the same in a run of twice the length. */
function reusable(kind, total, warm, tail) {
  if (kind === "constant") return total;
  if (kind === "multi-step") return Math.ceil((8 * total) / 10);
  return kind === "wsd" ? total - tail : warm;
}
/** DeepSeek-V3 by tokens seen: rate and sequences per batch. */
function v3Rate(tokens) {
  if (tokens >= 14.3e12 + 333e9) return 7.3e-6;
  return 2.2e-4 * fall((tokens - 10e12) / 4.3e12, "cosine", 0.1);
}
const v3Batch = (tokens) => 3072 + 12288 * Math.min(1, tokens / 469e9);

const NAMES = {
  constant: "constant",
  linear: "linear",
  cosine: "cosine",
  wsd: "WSD",
  "multi-step": "multi-step",
  v3: "DeepSeek-V3",
};
const own = (s) => s.kind !== "v3";
const controls = (data) => [
  {
    kind: "select",
    key: "kind",
    label: "Schedule",
    value: data.kind,
    options: Object.entries(NAMES),
  },
  {
    kind: "slider",
    key: "total",
    label: "Length of the run",
    min: 100,
    max: 1e6,
    value: 1000,
    values: [100, 200, 500, 1000, 2000, 5000, 1e4, 1e5, 1e6],
    unit: "steps",
    when: own,
  },
  {
    kind: "slider",
    key: "warm",
    label: "Warm-up",
    min: 0,
    max: 20,
    value: 5,
    step: 1,
    unit: "% of the run",
    when: own,
  },
  {
    kind: "slider",
    key: "tail",
    label: "Decay at the end",
    min: 1,
    max: 80,
    value: 20,
    step: 1,
    unit: "% of the run",
    when: (s) => s.kind === "wsd",
  },
  {
    kind: "select",
    key: "shape",
    label: "Shape of the decay",
    value: "sqrt",
    options: [
      ["linear", "linear"],
      ["cosine", "cosine"],
      ["sqrt", "1 − sqrt"],
      ["square", "1 − square"],
      ["exponential", "exponential"],
    ],
    when: (s) => s.kind === "wsd",
  },
  {
    kind: "slider",
    key: "floor",
    label: "Rate at the end",
    min: 1,
    max: 100,
    value: 10,
    step: 1,
    unit: "% of the peak",
    when: (s) => ["linear", "cosine", "wsd"].includes(s.kind),
  },
  {
    kind: "slider",
    key: "tokens",
    label: "Tokens seen",
    min: 0,
    max: 14800,
    value: 200,
    step: 1,
    values: [0, ...powers(1, 8192), 10000, 12150, 14300, 14633, 14800],
    unit: "billion",
    when: (s) => s.kind === "v3",
  },
];

function parts(s) {
  const warm = Math.round((s.total * s.warm) / 100);
  const tail = Math.min(
    Math.round((s.total * s.tail) / 100),
    s.total - warm,
  );
  return { warm, tail };
}
function curve(kind, s, { warm, tail }) {
  const grid = Array.from({ length: 201 }, (_, i) => (i * s.total) / 200);
  return grid.map((step) => [
    step,
    rate(kind, step, s.total, warm, tail, s.floor / 100, s.shape),
  ]);
}
const steps = (v) => (v >= 1e4 ? `${num(v / 1e3)}k` : num(v));

function designed(s, width) {
  const cut = parts(s);
  const kinds = s.kind === "cosine" ? ["cosine"] : [s.kind, "cosine"];
  const series = kinds.map((kind) => ({
    name: NAMES[kind],
    points: curve(kind, s, cut),
  }));
  const means = series.map(
    ({ points }) => points.reduce((a, [, y]) => a + y, 0) / points.length,
  );
  const again = reusable(s.kind, s.total, cut.warm, cut.tail);
  const last = series[0].points.at(-1)[1];
  const html =
    heading(NAMES[s.kind], "share of the peak rate over the steps") +
    plot({
      width,
      series,
      x: { min: 0, max: s.total, label: "step", format: steps },
      y: { min: 0, max: 1, label: "rate / peak" },
      rules: again < s.total && again > 0 ? [{ x: again, label: "fork" }] : [],
      desc: `${NAMES[s.kind]}: mean ${num(means[0], 3)} of the peak, at the end ${num(last, 3)}`,
    }) +
    tiles([
      { name: "Mean rate", value: num(means[0], 3), note: "of the peak" },
      { name: "At the end", value: num(last, 3), note: "of the peak" },
      {
        name: "A run of twice the length reuses",
        value: plural(again, "step"),
        note: `of ${num(s.total, 7)}`,
      },
    ]);
  const say =
    `${NAMES[s.kind]} over ${plural(s.total, "step")}: mean rate ${num(means[0], 3)} of the peak, ` +
    `${num(last, 3)} at the end. A run of twice the length shares its first ${plural(again, "step")}.`;
  return { html, say };
}
function real(s, width) {
  const now = s.tokens * 1e9,
    end = 14.8e12;
  const points = Array.from({ length: 297 }, (_, i) => {
    const tokens = (i * end) / 296;
    return [tokens / 1e12, v3Rate(tokens)];
  });
  const batch = v3Batch(now);
  const speed = now < 14.3e12 ? "0.001" : "0";
  const weight = now < 10e12 ? "0.3" : "0.1";
  const html =
    heading("DeepSeek-V3", "as reported, by tokens; warm-up of 2,000 steps left out") +
    plot({
      width,
      series: [{ name: "learning rate", points }],
      x: { min: 0, max: 14.8, label: "trillion tokens" },
      y: { min: 0, max: 2.2e-4, label: "rate" },
      dots: [{ x: now / 1e12, y: v3Rate(now), series: 0 }],
      desc: `Learning rate of DeepSeek-V3; after ${num(now / 1e12)} trillion tokens ${num(v3Rate(now))}`,
    }) +
    tiles([
      { name: "Rate", value: num(v3Rate(now), 3), note: "peak 2.2 × 10⁻⁴" },
      {
        name: "Batch",
        value: num(batch, 5),
        note: `sequences, ${num((batch * 4096) / 1e6)} million tokens`,
      },
      { name: "Bias speed", value: speed, note: "routing, chapter 6" },
      { name: "MTP weight", value: weight, note: "chapter 7" },
    ]);
  const say =
    `After ${num(now / 1e12)} trillion tokens DeepSeek-V3 trains at ${num(v3Rate(now), 3)} ` +
    `with ${num(batch, 5)} sequences a batch.`;
  return { html, say };
}
const view = (s, { width }) => (own(s) ? designed(s, width) : real(s, width));

export const formulas = { rate, reusable, v3Rate, v3Batch };
export default define({ formulas, controls, view });
