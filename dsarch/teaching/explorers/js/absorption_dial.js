// What one decoding step of MLA costs in its three orders.
// data: {models: [{name, heads, nope, rope, value, latent}], machines:
// [{name, flops, bandwidth}], start, context, queries}
import {
  bars,
  bytes,
  define,
  flop,
  heading,
  num,
  plot,
  plural,
  powers,
  seconds,
  table,
} from "./lib.js";

/** Each returns [FLOP, bytes] of one layer, one sequence, one step. */
function expanded(heads, nope, rope, value, latent, context, queries, size) {
  const width = heads * (nope + rope + value);
  return [2 * queries * width * context, size * width * context];
}
function reexpanding(heads, nope, rope, value, latent, context, queries, size) {
  const fresh = heads * (nope + value);
  const [core] = expanded(
    heads,
    nope,
    rope,
    value,
    latent,
    context,
    queries,
    size,
  );
  return [
    core + 2 * fresh * latent * context,
    size * (latent + rope + 2 * fresh) * context,
  ];
}
function absorbed(heads, nope, rope, value, latent, context, queries, size) {
  const pair = (2 * latent + rope) * context + (nope + value) * latent;
  return [2 * queries * heads * pair, size * (latent + rope) * context];
}
/** Queries per step from which re-expanding needs fewer FLOP. */
function crossover(nope, value, latent, context) {
  const turn = latent * (nope + value);
  const gap = (2 * latent - nope - value) * context + turn;
  return gap > 0 ? (turn * context) / gap : Infinity;
}
const roofline = (flops, size, rate, bandwidth) =>
  Math.max(flops / rate, size / bandwidth);

const ORDERS = [
  ["expanded K and V cached", expanded, "expanded"],
  ["latent cached, re-expanded", reexpanding, "re-expanded"],
  ["latent cached, absorbed", absorbed, "absorbed"],
];
const OWN = "own";

function controls(data) {
  const first = data.models[data.start],
    own = (s) => s.machine === OWN;
  return [
    {
      kind: "select",
      key: "model",
      label: "Model",
      value: data.start,
      options: data.models.map((m, i) => [i, m.name]),
    },
    {
      kind: "select",
      key: "machine",
      label: "Machine",
      value: 0,
      options: [
        ...data.machines.map((m, i) => [
          i,
          `${m.name}: ${num(m.flops / 1e12)} TFLOP/s, ${num(m.bandwidth / 1e12)} TB/s`,
        ]),
        [OWN, "your own machine"],
      ],
    },
    {
      kind: "slider",
      key: "context",
      label: "Cached tokens",
      min: 1,
      max: 1 << 20,
      value: data.context,
      values: powers(1, 1 << 20),
      unit: "tokens",
    },
    {
      kind: "slider",
      key: "queries",
      label: "Queries in the step",
      min: 1,
      max: 65536,
      value: data.queries,
      values: powers(1, 65536),
    },
    {
      kind: "slider",
      key: "heads",
      label: "Heads on this device",
      min: 1,
      max: 512,
      value: first.heads,
      values: powers(1, 512),
    },
    {
      kind: "radio",
      key: "size",
      label: "Bytes per number",
      value: 2,
      options: [
        [1, "1 · FP8"],
        [2, "2 · BF16"],
        [4, "4 · FP32"],
      ],
    },
    {
      kind: "slider",
      key: "rate",
      label: "Arithmetic",
      min: 0.001,
      max: 1e5,
      real: true,
      value: 100,
      values: powers(0.125, 8192),
      unit: "TFLOP/s",
      when: own,
    },
    {
      kind: "slider",
      key: "bandwidth",
      label: "Memory",
      min: 0.001,
      max: 1000,
      real: true,
      value: 1,
      values: powers(0.015625, 32),
      unit: "TB/s",
      when: own,
    },
    {
      kind: "radio",
      key: "along",
      label: "Draw the time against",
      value: "queries",
      wide: true,
      options: [
        ["queries", "queries in the step"],
        ["context", "cached tokens"],
      ],
    },
  ];
}
const change = (s, why, data) =>
  why === "model" ? { ...s, heads: data.models[s.model].heads } : s;

function machine(s, data) {
  if (s.machine !== OWN) return data.machines[s.machine];
  return {
    name: "your machine",
    flops: s.rate * 1e12,
    bandwidth: s.bandwidth * 1e12,
  };
}
function costs(s, data, context, queries) {
  const m = data.models[s.model],
    box = machine(s, data);
  return ORDERS.map(([name, order, brief], series) => {
    const [flops, size] = order(
      s.heads,
      m.nope,
      m.rope,
      m.value,
      m.latent,
      context,
      queries,
      s.size,
    );
    const time = roofline(flops, size, box.flops, box.bandwidth);
    const bound =
      flops / box.flops > size / box.bandwidth ? "compute" : "memory";
    return { name, brief, series, flops, size, time, bound };
  });
}

function curves(s, data, width, now, edge) {
  const along = s.along,
    max = along === "queries" ? 65536 : 1 << 20;
  const grid = powers(1, max);
  const at = (v) =>
    along === "queries"
      ? costs(s, data, s.context, v)
      : costs(s, data, v, s.queries);
  const rows = grid.map(at),
    all = rows.flat().map((c) => c.time);
  const series = ORDERS.map(([name], i) => ({
    name,
    points: grid.map((v, j) => [v, rows[j][i].time]),
  }));
  const label = along === "queries" ? "queries in the step" : "cached tokens";
  const rules =
    along === "queries" && edge >= 1 && edge <= max
      ? [{ x: edge, label: `equal FLOP at ${num(edge)}` }]
      : [];
  return plot({
    width,
    series,
    rules,
    x: { min: 1, max, log: true, label, format: short },
    y: {
      min: Math.min(...all),
      max: Math.max(...all),
      log: true,
      label: "time per layer",
      format: seconds,
    },
    dots: now.map((c) => ({ x: s[along], y: c.time, series: c.series })),
    desc:
      `Time per layer against ${label}, both axes logarithmic; now ` +
      now.map((c) => `${c.name} ${seconds(c.time)}`).join(", "),
  });
}
const short = (v) =>
  v >= 1e6 ? `${num(v / 1e6)}M` : v >= 1e3 ? `${num(v / 1e3)}k` : num(v);

function view(s, { data, width }) {
  const now = costs(s, data, s.context, s.queries),
    box = machine(s, data);
  const m = data.models[s.model];
  const edge = crossover(m.nope, m.value, m.latent, s.context);
  const best = now.reduce((a, b) => (b.time < a.time ? b : a));
  const items = now.map((c) => ({
    name: c.name,
    value: c.time,
    series: c.series,
    strong: c === best,
    text: `${seconds(c.time)}, ${c.bound}-bound`,
  }));
  const rows = now.map((c) => [
    c.brief,
    flop(c.flops),
    bytes(c.size),
    num(c.flops / c.size),
    c.bound,
    seconds(c.time),
  ]);
  const html =
    heading(
      `One step on ${box.name}`,
      "roofline time of one layer and one sequence",
    ) +
    bars({
      width,
      items,
      desc: items.map((d) => `${d.name}: ${d.text}`).join("; "),
    }) +
    curves(s, data, width, now, edge) +
    table(
      ["Order", "Arithmetic", "Traffic", "FLOP/byte", "Limit", "Time"],
      rows,
      {
        strong: best.series,
        caption: `Above ${num(box.flops / box.bandwidth)} FLOP per byte ${box.name} is limited by arithmetic`,
      },
    ) +
    `<p class="note">Counted are the scores and sums over the cache. Every order also reads ` +
    `W<sup>UK</sup> and W<sup>UV</sup>, ${bytes(s.heads * (m.nope + m.value) * m.latent * s.size)}, ` +
    `once per step for the whole batch.</p>`;
  return { html, say: sentence(s, now, best, edge) };
}

function sentence(s, now, best, edge) {
  const rest = now.filter((c) => c !== best).map((c) => c.time / best.time);
  const lead = rest.map((r) => `${num(r, 2)}×`).join(" and ");
  const flops =
    edge < 1
      ? "Even for one query re-expanding needs fewer FLOP."
      : `In FLOP alone, absorbing is cheaper up to ${plural(Math.floor(edge), "query", "queries")} per step, whatever the number of heads.`;
  return (
    `Fastest with ${plural(s.queries, "query", "queries")} over ${plural(s.context, "token")}: ` +
    `${best.name}, ${seconds(best.time)}; the others take ${lead} as long. ${flops}`
  );
}

export const formulas = {
  expanded,
  reexpanding,
  absorbed,
  crossover,
  roofline,
};
export default define({ formulas, controls, change, view });
