// What a decoded token of DeepSeek-V3.2 costs, dense and sparse.
// data: {sizes: [heads, latent, rotary, indexHeads, indexWidth, latentBytes,
// indexBytes], model: {layers, active, always, expert, experts, chosen},
// context, k, batch}
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
  table,
  tiles,
  times,
} from "./lib.js";

/** FLOP of attention and of the indexer for one query and one key. */
function pairFlops(heads, latent, rotary, indexHeads, indexWidth) {
  return [2 * heads * (2 * latent + rotary), 2 * indexHeads * (indexWidth + 1)];
}
/** Dense and sparse, for one token in one layer. */
function attentionFlops(h, c, r, i, m, k, context) {
  const [attend, index] = pairFlops(h, c, r, i, m);
  return [
    attend * context,
    attend * Math.min(k, context) + index * context,
  ];
}
/** The context from which sparse attention needs fewer FLOP. */
function even(h, c, r, i, m, k) {
  const [attend, index] = pairFlops(h, c, r, i, m);
  return (attend * k) / (attend - index);
}
/** FLOP and bytes of a whole step: dense, then sparse. */
function step(model, sizes, k, context, batch) {
  const [h, c, r, i, m, latentBytes, indexBytes] = sizes;
  const missed = (1 - model.chosen / model.experts) ** batch;
  const weights =
    model.always + model.expert * model.experts * (1 - missed);
  const caches = [
    latentBytes * context,
    latentBytes * Math.min(k, context) + indexBytes * context,
  ];
  return attentionFlops(h, c, r, i, m, k, context).flatMap((flops, kind) => [
    batch * (2 * model.active + model.layers * flops),
    weights + batch * model.layers * caches[kind],
  ]);
}

const LONGEST = 163840;

function controls(data) {
  return [
    {
      kind: "slider",
      key: "context",
      label: "Context",
      min: 1,
      max: LONGEST,
      value: data.context,
      values: powers(64, LONGEST),
      unit: "tokens",
    },
    {
      kind: "slider",
      key: "k",
      label: "Keys that a query reads",
      min: 1,
      max: 65536,
      value: data.k,
      values: powers(16, 65536),
    },
    {
      kind: "slider",
      key: "batch",
      label: "Sequences decoded together",
      min: 1,
      max: 4096,
      value: data.batch,
      values: powers(1, 4096),
    },
    {
      kind: "radio",
      key: "show",
      label: "Draw",
      value: "flop",
      wide: true,
      options: [
        ["flop", "arithmetic of one layer"],
        ["whole", "arithmetic of the model"],
        ["bytes", "bytes read in a step"],
      ],
    },
  ];
}

function both(s, data, context) {
  const layer = attentionFlops(...data.sizes.slice(0, 5), s.k, context);
  const [a, b, c, d] = step(data.model, data.sizes, s.k, context, s.batch);
  if (s.show === "flop") return layer;
  return s.show === "whole" ? [a / s.batch, c / s.batch] : [b, d];
}
const KINDS = {
  flop: ["FLOP per token and layer", flop],
  whole: ["FLOP per token", flop],
  bytes: ["bytes per step", bytes],
};
const short = (v) => (v >= 1e3 ? `${num(v / 1e3, 3)}k` : num(v));

function curves(s, data, width) {
  const [label, format] = KINDS[s.show];
  const grid = powers(64, LONGEST);
  const rows = grid.map((v) => both(s, data, v));
  const now = both(s, data, s.context);
  const all = rows.flat();
  const edge = even(...data.sizes.slice(0, 5), s.k);
  const rules =
    s.show !== "bytes" && edge >= 64 && edge <= LONGEST
      ? [{ x: edge, label: `equal at ${num(edge, 4)} tokens` }]
      : [];
  return plot({
    width,
    series: ["dense", "sparse"].map((name, i) => ({
      name,
      points: grid.map((v, j) => [v, rows[j][i]]),
    })),
    rules,
    x: { min: 64, max: LONGEST, log: true, label: "context", format: short },
    y: {
      min: Math.min(...all),
      max: Math.max(...all),
      log: true,
      label,
      format,
    },
    dots: now.map((y, series) => ({ x: Math.max(s.context, 64), y, series })),
    desc:
      `${label} against the context, both axes logarithmic; at ` +
      `${num(s.context, 6)} tokens dense ${format(now[0])}, sparse ${format(now[1])}`,
  });
}

function view(s, { data, width }) {
  const [dense, sparse] = attentionFlops(
    ...data.sizes.slice(0, 5),
    s.k,
    s.context,
  );
  const [index] = [pairFlops(...data.sizes.slice(0, 5))[1] * s.context];
  const [df, db, sf, sb] = step(
    data.model,
    data.sizes,
    s.k,
    s.context,
    s.batch,
  );
  const share = s.context > 0 ? Math.min(s.k, s.context) / s.context : 1;
  const items = [
    { name: "dense attention", value: dense, series: 0, text: flop(dense) },
    {
      name: "sparse: attention",
      value: sparse - index,
      series: 1,
      text: flop(sparse - index),
    },
    { name: "sparse: indexer", value: index, series: 2, text: flop(index) },
  ];
  const html =
    tiles([
      {
        name: "attention of one layer",
        value: times(dense / sparse),
        note: "dense / sparse, FLOP",
      },
      {
        name: "whole model",
        value: times(df / sf),
        note: "dense / sparse, FLOP",
      },
      { name: "read per step", value: times(db / sb), note: "dense / sparse, bytes" },
      {
        name: "keys read",
        value: `${num(100 * share, 3)} %`,
        note: `${num(Math.min(s.k, s.context), 6)} of ${num(s.context, 6)}`,
      },
    ]) +
    heading("One token in one layer", "arithmetic") +
    bars({
      width,
      items,
      desc: items.map((d) => `${d.name}: ${d.text}`).join("; "),
    }) +
    curves(s, data, width) +
    table(
      ["Attention", "FLOP per token", "bytes per step"],
      [
        ["dense", flop(df / s.batch), bytes(db)],
        ["sparse", flop(sf / s.batch), bytes(sb)],
      ],
      { caption: "The whole model, one decoding step" },
    );
  return { html, say: sentence(s, dense / sparse, df / sf, db / sb, data) };
}

function sentence(s, layer, whole, read, data) {
  const edge = even(...data.sizes.slice(0, 5), s.k);
  const lead =
    layer >= 1
      ? `At ${plural(s.context, "token")} sparse attention needs ${times(layer)} less arithmetic in a layer`
      : `At ${plural(s.context, "token")} sparse attention needs ${times(1 / layer)} more arithmetic in a layer`;
  return (
    `${lead}; the whole model changes by ${times(whole)}, what a step of ` +
    `${plural(s.batch, "sequence")} reads by ${times(read)}. ` +
    `Arithmetic is equal at ${num(edge, 4)} tokens.`
  );
}

export const formulas = { pairFlops, attentionFlops, even, step };
export default define({ formulas, controls, view });
