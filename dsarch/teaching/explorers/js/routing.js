// Recorded training steps of small mixtures, and the router of one token.
// data: {methods: [{name, violation, excess, steps: [{bias, loads, scores}]}],
// kept, every, domains, tokens: [{domain, text}], groups, keep, k, scale}
import {
  define,
  esc,
  fold,
  heading,
  num,
  pick,
  plot,
  px,
  svg,
  table,
  text,
  tiles,
} from "./lib.js";

const add = (a, b) => a.map((x, i) => x + b[i]);
const total = (list) => list.reduce((a, b) => a + b, 0);
/** The places of the `k` largest values; the first of equals wins. */
const best = (list, k) =>
  list
    .map((_, i) => i)
    .sort((a, b) => list[b] - list[a] || a - b)
    .slice(0, k)
    .sort((a, b) => a - b);

/** What each group is worth: the sum of its two best biased scores. */
function groupScores(scores, bias, groups) {
  const choice = add(scores, bias),
    size = choice.length / groups;
  return Array.from({ length: groups }, (_, g) => {
    const own = choice.slice(g * size, (g + 1) * size);
    return total(own.sort((a, b) => b - a).slice(0, 2));
  });
}
const keptGroups = (scores, bias, groups, keep) =>
  best(groupScores(scores, bias, groups), keep);
/** The chosen experts: the best biased scores within the kept groups. */
function chosen(scores, bias, groups, keep, k) {
  const open = keptGroups(scores, bias, groups, keep),
    size = scores.length / groups;
  const choice = add(scores, bias).map((x, e) =>
    open.includes(Math.floor(e / size)) ? x : -Infinity,
  );
  return best(choice, k);
}
/** Weights of the chosen experts, from the scores without the bias. */
function weights(scores, bias, groups, keep, k, scale) {
  const experts = chosen(scores, bias, groups, keep, k);
  const sum = total(experts.map((e) => scores[e])) + 1e-20;
  return experts.map((e) => (scale * scores[e]) / sum);
}
const violation = (loads) =>
  (Math.max(...loads) * loads.length) / total(loads) - 1;

const STAGES = [
  "scores",
  "+ bias",
  "group scores",
  "kept groups",
  "chosen experts",
  "weights",
];

function controls(data) {
  return [
    {
      kind: "select",
      key: "method",
      label: "Balanced by",
      value: 0,
      options: data.methods.map((m, i) => [i, m.name]),
    },
    {
      kind: "radio",
      key: "show",
      label: "Show",
      value: "loads",
      options: [
        ["loads", "loads"],
        ["token", "the router of one token"],
      ],
    },
    {
      kind: "steps",
      key: "at",
      label: "Recorded moment",
      unit: `of ${data.kept.length}`,
      wide: true,
      min: 1,
      max: data.kept.length,
      value: data.kept.length,
      interval: 900,
    },
    {
      kind: "steps",
      key: "stage",
      label: "Step of the router",
      unit: `of ${STAGES.length}`,
      wide: true,
      min: 1,
      max: STAGES.length,
      value: STAGES.length,
      interval: 1500,
      when: (s) => s.show === "token",
    },
    { kind: "hidden", key: "token", value: 0 },
  ];
}

const STYLE = `<style>
.row { display: flex; flex-wrap: wrap; gap: 4px; margin: .3rem 0 .2rem; }
.ds .row .pick { font-family: ui-monospace, monospace; font-size: .8rem; white-space: pre; padding: 2px 7px; border-color: var(--field); }
.ds .row .pick[aria-pressed=true] { background: var(--fg); color: var(--bg); border-color: var(--fg); }
.ds tr.shut > * { color: var(--muted); } .ds tr.got > * { font-weight: 650; background: var(--tint); }
.ds tr.edge > * { border-top: 2px solid var(--field); }
.ds svg .even { stroke: var(--fg); stroke-dasharray: 5 3; } .ds svg .cell { fill: none; stroke: var(--line); }
</style>`;

const scoresOf = (shot, i, n) =>
  Array.from({ length: n }, (_, e) => {
    const at = 4 * (i * n + e);
    return Number(shot.scores.slice(at, at + 4)) / 1e4;
  });
/** Slots of each domain and expert; two characters of base 36 each. */
const byDomain = (shot, domains) => {
  const n = shot.bias.length;
  return domains.map((_, d) =>
    Array.from({ length: n }, (_, e) => {
      const at = 2 * (d * n + e);
      return parseInt(shot.loads.slice(at, at + 2), 36);
    }),
  );
};
const counts = (shot, domains) => byDomain(shot, domains).reduce(add);

/** Columns of all experts, stacked by domain, in their groups. */
function columns(s, { data, width }) {
  const shot = data.methods[s.method].steps[s.at - 1],
    all = counts(shot, data.domains),
    n = all.length,
    even = total(all) / n,
    most = Math.max(...all, 2 * even),
    size = n / data.groups,
    high = 150,
    top = 18,
    gap = 10;
  const wide = (width - 30 - gap * (data.groups - 1)) / n;
  const x = (e) => 30 + e * wide + gap * Math.floor(e / size);
  const y = (v) => top + high * (1 - v / most);
  const parts = [];
  for (let e = 0; e < n; e += 1) {
    let from = 0;
    byDomain(shot, data.domains).forEach((row, d) => {
      parts.push(
        `<rect class="bar s${d}" x="${px(x(e) + 1)}" width="${px(wide - 2)}" ` +
          `y="${px(y(from + row[e]))}" height="${px(y(from) - y(from + row[e]))}"/>`,
      );
      from += row[e];
    });
    parts.push(
      text(x(e) + wide / 2, top + high + 14, e, {
        anchor: "middle",
        kind: "tick",
      }),
    );
  }
  for (let g = 0; g < data.groups; g += 1) {
    const share = total(all.slice(g * size, (g + 1) * size)) / total(all);
    const middle = (x(g * size) + x(g * size + size - 1) + wide) / 2;
    const words = `${width < 420 ? "g" : "group "}${g}: ${num(100 * share, 3)} %`;
    parts.push(text(middle, top + high + 32, words, { anchor: "middle" }));
  }
  const line = px(y(even));
  parts.push(`<path class="even" d="M30 ${line}H${px(width)}"/>`);
  parts.push(text(0, y(even) + 4, "even", { kind: "tick" }));
  const desc = `Slots of each expert: ${all.join(", ")}; even would be ${num(even, 4)}`;
  const keys = data.domains
    .map(
      (name, d) =>
        `<li><svg width="14" height="14" aria-hidden="true"><rect class="bar s${d}" width="14" height="14"/></svg>${esc(name)}</li>`,
    )
    .join("");
  return (
    `<ul class="legend">${keys}</ul>` +
    svg(width, top + high + 40, desc, parts.join(""))
  );
}

/** One row for each followed token: its experts, larger for more weight. */
function matrix(s, { data, width }) {
  const shot = data.methods[s.method].steps[s.at - 1],
    n = shot.bias.length,
    left = 112,
    wide = (width - left - 4) / n,
    row = 22;
  const parts = data.tokens.map((token, i) => {
    const scores = scoresOf(shot, i, n);
    const args = [scores, shot.bias, data.groups, data.keep, data.k];
    const got = chosen(...args),
      w = weights(...args, data.scale);
    const y = 4 + i * row;
    const label = text(left - 8, y + 14, token.text, {
      anchor: "end",
      kind: i === s.token ? "strong" : "",
    });
    const cells = Array.from({ length: n }, (_, e) => {
      const at = got.indexOf(e),
        r = at < 0 ? 0 : Math.min(3 + 4 * w[at], 10);
      const box = `<rect class="cell" x="${px(left + e * wide)}" y="${y}" width="${px(wide)}" height="${row}"/>`;
      return r
        ? box +
            `<circle class="bar s${token.domain}" cx="${px(left + (e + 0.5) * wide)}" cy="${y + row / 2}" r="${px(Math.min(r, wide / 2))}"/>`
        : box;
    });
    return label + cells.join("");
  });
  const desc = "Experts that each of the followed tokens is sent to";
  return svg(width, 8 + row * data.tokens.length, desc, parts.join(""));
}

const buttons = (s, data) =>
  `<div class="row" data-roving role="group" aria-label="Token to follow">${data.tokens
    .map((token, i) =>
      pick({
        patch: { token: i, show: "token" },
        key: `t${i}`,
        on: i === s.token,
        text: esc(token.text),
        label: `${data.domains[token.domain]}, after ${token.text}`,
      }),
    )
    .join("")}</div>`;

/** The table that grows with every step of the router. */
function steps(s, data) {
  const shot = data.methods[s.method].steps[s.at - 1],
    n = shot.bias.length,
    size = n / data.groups,
    scores = scoresOf(shot, s.token, n);
  const args = [scores, shot.bias, data.groups, data.keep];
  const worth = groupScores(scores, shot.bias, data.groups),
    kept = keptGroups(...args),
    got = chosen(...args, data.k),
    w = weights(...args, data.k, data.scale);
  const head = ["expert", "score", "biased", "group", "kept", "rank", "weight"];
  const shown = [2, 3, 4, 5, 6, 7][s.stage - 1];
  const order = [...got].sort(
    (a, b) => scores[b] + shot.bias[b] - scores[a] - shot.bias[a],
  );
  const rows = scores.map((score, e) => {
    const g = Math.floor(e / size),
      open = kept.includes(g),
      first = e % size === 0,
      mine = got.indexOf(e);
    const cells = [
      e,
      score.toFixed(4),
      (score + shot.bias[e]).toFixed(4),
      first ? worth[g].toFixed(4) : "",
      first ? (open ? "kept" : "closed") : "",
      mine < 0 ? "" : order.indexOf(e) + 1,
      mine < 0 ? "" : w[mine].toFixed(3),
    ].slice(0, shown);
    const kind = [
      first ? "edge" : "",
      s.stage >= 4 && !open ? "shut" : "",
      s.stage >= 5 && mine >= 0 ? "got" : "",
    ].join(" ");
    const tds = cells.slice(1).map((c) => `<td>${esc(c)}</td>`);
    return `<tr class="${kind}"><th scope="row">${e}</th>${tds.join("")}</tr>`;
  });
  const ths = head.slice(0, shown).map((h) => `<th scope="col">${h}</th>`);
  return (
    `<div class="scroll" tabindex="0" role="region" aria-label="Steps of the router">` +
    `<table><thead><tr>${ths.join("")}</tr></thead><tbody>${rows.join("")}</tbody></table></div>`
  );
}

function curves(s, { data, width }) {
  const one = data.methods[s.method],
    at = data.kept[s.at - 1];
  const line = (m, key) => ({
    name: m.name,
    points: m[key].map((v, i) => [(i + 0.5) * data.every, v]),
  });
  const draw = (key, label) => {
    const used = s.method ? [data.methods[0], one] : [one];
    const series = used.map((m) => line(m, key));
    const most = Math.max(...series.flatMap((l) => l.points.map((p) => p[1])));
    return plot({
      width,
      height: 210,
      x: { min: 0, max: one[key].length * data.every, label: "training step" },
      y: { min: 0, max: most, label },
      series,
      rules: [{ x: at, label: `step ${at}` }],
      desc: `${label} over training: ${series.map((l) => `${l.name} ends at ${num(l.points.at(-1)[1], 3)}`).join("; ")}`,
    });
  };
  return (
    draw("violation", "MaxVio, worst expert above even") +
    fold(
      "Loss above the entropy floor",
      draw("excess", "nats above the floor"),
    )
  );
}

function view(s, { data, width }) {
  const shot = data.methods[s.method].steps[s.at - 1],
    all = counts(shot, data.domains),
    name = data.methods[s.method].name,
    at = data.kept[s.at - 1];
  if (s.show === "token") {
    const html =
      STYLE +
      heading(`Step ${at}, balanced by ${name}`, "follow one token") +
      buttons(s, data) +
      steps(s, data);
    return { html, say: told(s, data, shot) };
  }
  const worst = all.indexOf(Math.max(...all)),
    idle = all.filter((c) => c < total(all) / all.length / 10).length;
  const html =
    STYLE +
    tiles([
      { name: "Training step", value: num(at), note: `balanced by ${name}` },
      {
        name: "MaxVio",
        value: num(violation(all), 3),
        note: `expert ${worst} has ${num(all[worst], 6)} of ${num(total(all), 6)} slots`,
      },
      {
        name: "Nearly idle",
        value: num(idle),
        note: "experts below a tenth of the even load",
      },
    ]) +
    heading("Load of each expert", "coloured by domain, in groups") +
    columns(s, { data, width }) +
    heading("Followed tokens", "experts, larger for more weight") +
    buttons(s, data) +
    matrix(s, { data, width }) +
    heading("Over the whole run") +
    curves(s, { data, width }) +
    fold("The numbers", numbers(shot, data));
  const spread = `Balanced by ${name}, step ${at}: the busiest expert, ${worst}, has ${num(1 + violation(all), 3)} times the even load, and ${idle} of ${all.length} are nearly idle.`;
  return { html, say: spread };
}

function numbers(shot, data) {
  const rows = byDomain(shot, data.domains);
  const all = counts(shot, data.domains);
  return table(
    ["Expert", ...data.domains, "all", "bias"],
    all.map((c, e) => [
      e,
      ...rows.map((row) => row[e]),
      c,
      shot.bias[e].toFixed(4),
    ]),
    { caption: "Slots by domain, and the bias" },
  );
}

/** What happens in the chosen step of the router, with its numbers. */
function told(s, data, shot) {
  const n = shot.bias.length,
    scores = scoresOf(shot, s.token, n);
  const args = [scores, shot.bias, data.groups, data.keep];
  const got = chosen(...args, data.k),
    plain = chosen(
      scores,
      scores.map(() => 0),
      data.groups,
      data.keep,
      data.k,
    );
  const top = scores.indexOf(Math.max(...scores));
  const w = weights(...args, data.k, data.scale);
  const same = got.every((e, i) => e === plain[i]);
  const kept = keptGroups(...args).join(" and ");
  return [
    `Each expert gives a sigmoid score; the highest is ${scores[top].toFixed(4)}, of expert ${top}.`,
    `The bias is added for the choice alone; it ranges from ${Math.min(...shot.bias).toFixed(4)} to ${Math.max(...shot.bias).toFixed(4)}.`,
    `Each group is worth the sum of its two best biased scores: ${groupScores(...args.slice(0, 3)).map((v) => v.toFixed(4)).join(", ")}.`,
    `The ${data.keep} best groups stay open: ${kept}. All others are closed.`,
    `The ${data.k} best biased scores in open groups win: experts ${got.join(", ")}. ` +
      (same
        ? "Without the bias the choice would be the same."
        : `Without the bias it would be ${plain.join(", ")}.`),
    `Weights come from the unbiased scores, divided by their sum, times ${data.scale}: ${w.map((v) => v.toFixed(3)).join(", ")}.`,
  ][s.stage - 1];
}

export const formulas = {
  groupScores,
  keptGroups,
  chosen,
  weights,
  violation,
};
export default define({ formulas, controls, view });
