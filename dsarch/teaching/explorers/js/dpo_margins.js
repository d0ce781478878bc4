// One pair of answers under every preference loss.
// data: {variants: [[name, label]], start: {variant, beta, sums}, smoothing,
// lengths: [chosen, rejected]}; sums are the four log-probabilities: chosen and
// rejected under the policy, then under the reference
import { bars, define, fold, heading, num, plot, table, tiles } from "./lib.js";

const sigma = (x) =>
  x >= 0 ? 1 / (1 + Math.exp(-x)) : Math.exp(x) / (1 + Math.exp(x));
const logSigma = (x) =>
  x >= 0 ? -Math.log1p(Math.exp(-x)) : x - Math.log1p(Math.exp(x));
const bump = (x) => sigma(x) * sigma(-x);

/** Losses of the margin m alone: value and slope. */
const OF_MARGIN = {
  sigmoid: (m) => [-logSigma(m), -sigma(-m)],
  conservative: (m, e) => [
    -(1 - e) * logSigma(m) - e * logSigma(-m),
    -(1 - e) * sigma(-m) + e * sigma(m),
  ],
  robust: (m, e) => [
    (-(1 - e) * logSigma(m) + e * logSigma(-m)) / (1 - 2 * e),
    (-(1 - e) * sigma(-m) - e * sigma(m)) / (1 - 2 * e),
  ],
  hinge: (m) => [Math.max(0, 1 - m), m < 1 ? -1 : 0],
  exo_pair: (m, e) => [
    sigma(m) * (logSigma(m) - Math.log1p(-e)) +
      sigma(-m) * (logSigma(-m) - Math.log(e)),
    bump(m) * (m - Math.log1p(-e) + Math.log(e)),
  ],
};
OF_MARGIN.sigmoid_norm = OF_MARGIN.sigmoid;
/** Losses of the two rewards c and r: value and both slopes. */
const OF_REWARDS = {
  nca_pair: (c, r) => [
    -logSigma(c) - (logSigma(-c) + logSigma(-r)) / 2,
    -sigma(-c) + sigma(c) / 2,
    sigma(r) / 2,
  ],
  bco_pair: (c, r) => [-logSigma(c) - logSigma(-r), -sigma(-c), sigma(r)],
  apo_zero: (c, r) => [1 - sigma(c) + sigma(r), -bump(c), bump(r)],
  apo_down: (c, r) => [
    sigma(c) + 1 - sigma(c - r),
    bump(c) - bump(c - r),
    bump(c - r),
  ],
};
const AVERAGED = ["ipo", "sigmoid_norm"];

/** Loss of one pair and its slopes for the chosen and the rejected sum. */
function pairLoss(variant, sums, beta, smoothing, lengths) {
  const [nc, nr] = AVERAGED.includes(variant) ? lengths : [1, 1];
  const h = (sums[0] - sums[2]) / nc,
    k = (sums[1] - sums[3]) / nr,
    aim = 1 / (2 * beta);
  if (variant === "ipo") {
    const off = h - k - aim;
    return [off * off, (2 * off) / nc, (-2 * off) / nr];
  }
  if (variant === "sppo_hard") {
    return [(h - aim) ** 2 + (k + aim) ** 2, 2 * (h - aim), 2 * (k + aim)];
  }
  if (variant in OF_REWARDS) {
    const [value, a, b] = OF_REWARDS[variant](beta * h, beta * k);
    return [value, beta * a, beta * b];
  }
  const [value, slope] = OF_MARGIN[variant](beta * (h - k), smoothing);
  return [value, (beta * slope) / nc, (-beta * slope) / nr];
}
/** What the policy pays for the chosen and the rejected answer. */
const rewards = (sums, beta) => [
  beta * (sums[0] - sums[2]),
  beta * (sums[1] - sums[3]),
];

const SUMS = ["policyChosen", "policyRejected", "refChosen", "refRejected"];
const NAMES = [
  "Policy, chosen: log-probability",
  "Policy, rejected",
  "Reference, chosen",
  "Reference, rejected",
];
const BETAS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5];

function controls(data) {
  const averaged = (s) => AVERAGED.includes(s.variant);
  const size = (key, label, value) => ({
    kind: "slider",
    key,
    label,
    min: 1,
    max: 64,
    value,
    when: averaged,
  });
  return [
    {
      kind: "select",
      key: "variant",
      label: "Loss",
      value: data.start.variant,
      options: data.variants,
      wide: true,
    },
    ...SUMS.map((key, i) => ({
      kind: "slider",
      key,
      label: NAMES[i],
      min: -60,
      max: 0,
      step: 0.5,
      real: true,
      value: data.start.sums[i],
    })),
    {
      kind: "slider",
      key: "beta",
      label: "β",
      min: 0.01,
      max: 5,
      real: true,
      values: BETAS,
      value: data.start.beta,
    },
    size("chosenLength", "Tokens of the chosen answer", data.lengths[0]),
    size("rejectedLength", "Tokens of the rejected answer", data.lengths[1]),
  ];
}

const way = (push) =>
  push > 0 ? "likelier" : push < 0 ? "less likely" : "left alone";
const four = (x) => (Math.abs(x) < 5e-5 ? "0" : num(x, 4));

/** The loss while one of the policy's two numbers moves. */
function curve(s, data, which, sums) {
  const points = [];
  for (let d = -20; d <= 20; d += 0.5) {
    const moved = sums.map((x, i) => (i === which ? x + d : x));
    if (moved[which] > 0) break;
    points.push([d, lossOf(s, data, moved)[0]]);
  }
  return points;
}
const lossOf = (s, data, sums) =>
  pairLoss(s.variant, sums, s.beta, data.smoothing, [
    s.chosenLength,
    s.rejectedLength,
  ]);

function view(s, { data, width }) {
  const sums = SUMS.map((key) => s[key]);
  const [loss, a, b] = lossOf(s, data, sums);
  const [c, r] = rewards(sums, s.beta);
  const pushes = [
    ["on the chosen answer", -a],
    ["on the rejected answer", -b],
  ];
  const series = [
    { name: "the chosen answer moves", points: curve(s, data, 0, sums) },
    { name: "the rejected answer moves", points: curve(s, data, 1, sums) },
  ];
  const heights = series.flatMap((x) => x.points.map((p) => p[1]));
  const low = Math.min(...heights, 0),
    high = Math.max(...heights, low + 1e-6);
  const html =
    tiles([
      { name: "Loss", value: four(loss), note: `of this pair, ${s.variant}` },
      { name: "Margin βΔ", value: four(c - r), note: c > r ? "the pair counts as right" : "the pair counts as wrong" },
      { name: "Reward of chosen", value: four(c), note: `β · (${num(sums[0], 4)} − ${num(sums[2], 4)})` },
      { name: "Reward of rejected", value: four(r), note: `β · (${num(sums[1], 4)} − ${num(sums[3], 4)})` },
    ]) +
    heading("How hard this pair pushes", "minus the slope of the loss") +
    bars({
      width,
      max: Math.max(s.beta, Math.abs(a), Math.abs(b)),
      items: pushes.map(([name, push], i) => ({
        name,
        value: Math.abs(push),
        text: `${four(Math.abs(push))}, ${way(push)}`,
        series: i,
      })),
      desc: pushes.map(([n, p]) => `${n} ${four(Math.abs(p))} ${way(p)}`).join(", "),
    }) +
    heading("The loss around this point") +
    plot({
      width,
      x: { min: -20, max: 20, label: "change of the log-probability in nats" },
      y: { min: low, max: high, label: "loss" },
      series,
      dots: [{ x: 0, y: loss, series: 0 }],
      desc: `loss ${four(loss)} at the chosen numbers`,
    }) +
    fold(
      "All losses at these numbers",
      table(
        ["Loss", "value", "push on chosen", "push on rejected"],
        data.variants.map(([name, label]) => {
          const at = lossOf({ ...s, variant: name }, data, sums);
          return [label, four(at[0]), four(-at[1]), four(-at[2])];
        }),
        {
          caption: `Smoothing ${data.smoothing} where a loss has it`,
          strong: data.variants.findIndex(([name]) => name === s.variant),
        },
      ),
    );
  const say =
    `Loss ${four(loss)}, margin ${four(c - r)}. The chosen answer is made ` +
    `${way(-a)} with weight ${four(Math.abs(a))}, the rejected one ${way(-b)} ` +
    `with weight ${four(Math.abs(b))}.`;
  return { html, say };
}

export const formulas = { pairLoss, rewards };
export default define({ formulas, controls, view });
