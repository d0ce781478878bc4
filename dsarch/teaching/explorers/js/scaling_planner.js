// How to spend a budget of compute, by three fits of one formula.
// data: {flops, laws: [{name, constants: [E, A, B, alpha, beta]}]}
import { define, heading, num, plot, powers, table, tiles } from "./lib.js";

const loss = (n, d, [E, A, B, alpha, beta]) =>
  E + A / n ** alpha + B / d ** beta;
function optimum(flops, [, A, B, alpha, beta]) {
  const scale = ((alpha * A) / (beta * B)) ** (1 / (alpha + beta));
  const n = scale * (flops / 6) ** (beta / (alpha + beta));
  return [n, flops / 6 / n];
}
const deepseekRate = (flops) => 0.3118 * flops ** -0.125;
const deepseekBatch = (flops) => 0.292 * flops ** 0.3271;
const deepseekOptimum = (flops) => [
  0.1715 * flops ** 0.5243,
  5.8316 * flops ** 0.4757,
];
const hours = (flops, peak, share) => flops / (peak * share) / 3600;

/** A count with three digits: 72.4B, 1.33T. */
function many(x) {
  const units = ["", "K", "M", "B", "T"];
  let i = 0;
  while (x >= 999.5 && i < units.length - 1) {
    x /= 1000;
    i += 1;
  }
  return num(Number(x.toPrecision(3))) + units[i];
}

const controls = (data) => [
  {
    kind: "slider",
    key: "flops",
    label: "Compute",
    min: 1e15,
    max: 1e27,
    real: true,
    value: data.flops,
    values: powers(1e15, 1e27, 10),
    unit: "FLOP",
  },
  {
    kind: "select",
    key: "law",
    label: "Fit",
    value: 2,
    options: data.laws.map((law, i) => [i, law.name]),
  },
  {
    kind: "slider",
    key: "factor",
    label: "Model, times the best size",
    min: 0.05,
    max: 20,
    real: true,
    value: 1,
    values: [0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20],
  },
  {
    kind: "slider",
    key: "peak",
    label: "Peak of a device",
    min: 0.1,
    max: 1e5,
    real: true,
    value: 989,
    values: [1, 19.5, 312, 989, 2250],
    unit: "TFLOP/s",
  },
  {
    kind: "slider",
    key: "share",
    label: "Share of the peak reached",
    min: 1,
    max: 100,
    value: 35,
    step: 1,
    unit: "%",
  },
];

const GRID = powers(1 / 64, 64).flatMap((f) => [f, f * Math.SQRT2]);
function view(s, { data, width }) {
  const found = data.laws.map(({ name, constants }) => {
    const [n, d] = optimum(s.flops, constants);
    return { name, constants, n, d, best: loss(n, d, constants) };
  });
  const law = found[s.law];
  const n = law.n * s.factor,
    d = s.flops / 6 / n;
  const mine = loss(n, d, law.constants);
  const sizes = GRID.map((f) => f * law.n);
  const series = found.map(({ name, constants }) => ({
    name,
    points: sizes.map((x) => [x, loss(x, s.flops / 6 / x, constants)]),
  }));
  const low = Math.min(...series.flatMap(({ points }) => points.map((p) => p[1])));
  const time = hours(s.flops, s.peak * 1e12, s.share / 100);
  const html =
    heading(`${num(s.flops)} FLOP`, "loss along the line C = 6 N D") +
    plot({
      width,
      series,
      x: {
        min: sizes[0],
        max: sizes.at(-1),
        log: true,
        label: "parameters",
        format: many,
      },
      y: { min: low * 0.98, max: 1.3 * law.best, label: "loss" },
      dots: [{ x: n, y: mine, series: s.law }],
      desc: `Loss against size at ${num(s.flops)} FLOP; your model ${many(n)} parameters, loss ${num(mine, 4)}`,
    }) +
    tiles([
      { name: "Parameters", value: many(n), note: "embeddings counted" },
      { name: "Tokens", value: many(d), note: `${num(d / n)} per parameter` },
      {
        name: "Loss",
        value: num(mine, 4),
        note: `${num(mine - law.best, 2)} above the best`,
      },
      { name: "Device hours", value: many(time), note: "forward and backward" },
    ]) +
    table(
      ["Fit", "Parameters", "Tokens", "Tokens / parameter", "Loss"],
      found.map((f) => [
        f.name,
        many(f.n),
        many(f.d),
        num(f.d / f.n),
        num(f.best, 4),
      ]),
      { strong: s.law, caption: "The best split by each fit" },
    ) +
    `<p class="note">DeepSeek LLM's laws at this compute: rate ${num(deepseekRate(s.flops))}, ` +
    `batch ${many(deepseekBatch(s.flops))} tokens, ${many(deepseekOptimum(s.flops)[0])} FLOP per ` +
    `token over ${many(deepseekOptimum(s.flops)[1])} tokens.</p>`;
  const say =
    `${num(s.flops)} FLOP, ${law.name}: best ${many(law.n)} parameters and ${many(law.d)} tokens; ` +
    `yours has ${many(n)} and loses ${num(mine - law.best, 2)}.`;
  return { html, say };
}

export const formulas = {
  loss,
  optimum,
  deepseekRate,
  deepseekBatch,
  deepseekOptimum,
  hours,
};
export default define({ formulas, controls, view });
