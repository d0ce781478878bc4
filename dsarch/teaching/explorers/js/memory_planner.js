// What one device holds of a model that many train together.
// data: {models: [{name, dense, routed, experts, layers, hidden}], start}
import { bars, bytes, clamp, define, heading, num, plural, powers, table, tiles } from "./lib.js";

/** Weights, gradients, optimizer state of one rank; ZeRO shards from the last. */
const stateBytes = (params, ranks, stage, [weight, gradient, optimizer]) =>
  params *
  (weight / (stage > 2 ? ranks : 1) +
    gradient / (stage > 1 ? ranks : 1) +
    optimizer / (stage > 0 ? ranks : 1));
/** The same for dense and routed parameters under a layout. */
function deviceBytes(dense, routed, data, pipeline, tensor, expert, stage, each, copies) {
  const stages = (pipeline * tensor) / copies;
  return (
    stateBytes(dense / stages, data, stage, each) +
    stateBytes(routed / stages / expert, data / expert, stage, each)
  );
}
/** Inputs of the layers that a device keeps with full recomputation. */
const inputBytes = (length, rows, hidden, layers, pipeline, held) =>
  (2 * length * rows * hidden * layers * held) / pipeline;
/** Ranks that one sum over all data ranks moves, in bytes, per device. */
const trafficBytes = (params, stage, width) =>
  params * width * (stage === 3 ? 3 : 2);

const RECIPES = { adam: [2, 2, 12], v3: [2, 4, 8] };
const gcd = (a, b) => (b ? gcd(b, a % b) : a);

function controls(data) {
  const power = (key, label, max, value) => ({
    kind: "slider",
    key,
    label,
    min: 1,
    max,
    value,
    values: powers(1, max),
  });
  const radio = (key, label, value, options, more = {}) => ({
    kind: "radio",
    key,
    label,
    value,
    options,
    ...more,
  });
  return [
    {
      kind: "select",
      key: "model",
      label: "Model",
      value: data.start,
      options: data.models.map((m, i) => [i, m.name]),
    },
    radio("stage", "ZeRO stage", 1, [0, 1, 2, 3].map((n) => [n, `${n}`])),
    power("data", "Data-parallel ranks", 4096, 128),
    power("pipeline", "Pipeline stages", 64, 16),
    power("tensor", "Tensor-parallel ranks", 16, 1),
    power("expert", "Ranks that share the experts", 1024, 64),
    radio("copies", "DualPipe, two copies", 2, [
      [1, "no"],
      [2, "yes"],
    ]),
    radio("recipe", "Bytes per parameter", "v3", [
      ["adam", "2 + 2 + 12"],
      ["v3", "2 + 4 + 8 (V3)"],
    ]),
    power("rows", "Sequences in a micro-batch", 16, 1),
    power("length", "Tokens in a sequence", 131072, 4096),
    radio("card", "Memory of a device (GB)", 80, [24, 40, 80, 141].map((n) => [n, `${n}`])),
  ];
}
/** Experts divide, stages are not more than layers, DualPipe has pairs. */
function change(s, why, data) {
  const m = data.models[s.model];
  const pipeline = clamp(s.pipeline, 1, m.layers);
  const expert = gcd(gcd(s.data, s.expert), m.experts);
  const copies = pipeline % 2 ? 1 : s.copies;
  return { ...s, pipeline, expert, copies };
}

function parts(s, m) {
  const each = RECIPES[s.recipe];
  const only = (i) => each.map((b, j) => (i === j ? b : 0));
  const of = (dense, routed, stage, bytes_) =>
    deviceBytes(dense, routed, s.data, s.pipeline, s.tensor, s.expert, stage, bytes_, s.copies);
  const held = s.copies === 2 ? s.pipeline + 1 : s.pipeline;
  const inputs = inputBytes(s.length, s.rows, m.hidden, m.layers, s.pipeline, held);
  const state = (stage) => of(m.dense, m.routed, stage, each);
  const split = ["weights", "gradients", "optimizer state"].map((name, i) => [
    name,
    of(m.dense, m.routed, s.stage, only(i)),
  ]);
  return { split, inputs, state, held };
}

function view(s, { data, width }) {
  const m = data.models[s.model],
    { split, inputs, state } = parts(s, m);
  const devices = s.data * s.pipeline * s.tensor;
  const total = state(s.stage) + inputs,
    card = s.card * 1e9,
    fits = total <= card;
  const own = (m.dense + m.routed / s.expert) / ((s.pipeline * s.tensor) / s.copies);
  const moved = s.data > 1 ? trafficBytes(own, s.stage, 2) : 0;
  const items = [...split, ["inputs of layers", inputs]].map(([name, value], i) => ({
    name,
    value,
    text: bytes(value),
    series: i,
  }));
  const html =
    tiles([
      { name: "One device holds", value: bytes(total), note: fits ? `${num((100 * total) / card)} % of its memory` : `${num(total / card)} times its memory` },
      { name: "Devices", value: num(devices, 15), note: "data × pipeline × tensor" },
      { name: "Parameters of a device", value: `${num(own / 1e9)}B`, note: `of ${num((m.dense + m.routed) / 1e9, 4)}B` },
      { name: "Sent for gradients", value: bytes(moved), note: "at most, per step, in 16 bits" },
    ]) +
    heading("What it is made of", fits ? "fits" : "does not fit") +
    bars({
      width,
      items,
      desc: items.map((d) => `${d.name} ${d.text}`).join(", "),
      max: Math.max(card, ...items.map((d) => d.value)),
    }) +
    table(
      ["ZeRO stage", "state of a device", "with layer inputs", "fits"],
      [0, 1, 2, 3].map((n) => {
        const all = state(n) + inputs;
        return [`${n}`, bytes(state(n)), bytes(all), all <= card ? "yes" : "no"];
      }),
      { caption: "The four stages in this layout", strong: s.stage },
    );
  const say =
    `${m.name} on ${plural(devices, "device")}, ZeRO stage ${s.stage}: ${bytes(total)} each, ` +
    `which ${fits ? "fits into" : "does not fit into"} ${s.card} GB.`;
  return { html, say };
}

export const formulas = { stateBytes, deviceBytes, inputBytes, trafficBytes };
export default define({ formulas, controls, change, view });
