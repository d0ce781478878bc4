// Soft targets of a teacher, a student's, and the gradient between them.
// data: {words, scenes: [{name, teacher, student}], start}
import {
  bars,
  clamp,
  define,
  heading,
  num,
  plot,
  powers,
  table,
  tiles,
} from "./lib.js";

function logSoftmax(logits, temperature) {
  const z = logits.map((x) => x / temperature);
  const top = Math.max(...z);
  const total = Math.log(z.reduce((sum, x) => sum + Math.exp(x - top), 0));
  return z.map((x) => x - top - total);
}
const soften = (logits, temperature) =>
  logSoftmax(logits, temperature).map(Math.exp);
const between = (a, b) =>
  a.reduce((sum, x, i) => sum + Math.exp(x) * (x - b[i]), 0);
/** KL(teacher || student) at this temperature, without a factor. */
const divergence = (teacher, student, temperature) =>
  between(
    logSoftmax(teacher, temperature),
    logSoftmax(student, temperature),
  );
/** KL(student || teacher) at this temperature. */
const reverse = (teacher, student, temperature) =>
  divergence(student, teacher, temperature);
/** The gradient of T² KL for each logit of the student. */
function gradient(teacher, student, temperature) {
  const p = soften(teacher, temperature);
  return soften(student, temperature).map((q, i) => temperature * (q - p[i]));
}

const FINE = 0.01;
const TEMPERATURES = powers(0.25, 64, Math.SQRT2).map(
  (t) => Math.round(t / FINE) * FINE,
);
const key = (who, i) => `${who}${i}`;

function controls(data) {
  const first = data.scenes[data.start];
  const sliders = (who, group) =>
    data.words.map((word, i) => ({
      kind: "slider",
      group,
      key: key(who, i),
      label: `${word}`,
      min: -12,
      max: 12,
      step: 0.1,
      real: true,
      value: first[who][i],
    }));
  return [
    {
      kind: "select",
      key: "scene",
      label: "Start from",
      value: data.start,
      options: data.scenes.map((s, i) => [i, s.name]),
    },
    {
      kind: "slider",
      key: "t",
      label: "Temperature T",
      min: 0.25,
      max: 64,
      real: true,
      value: 2,
      values: TEMPERATURES,
    },
    ...sliders("teacher", "Logits of the teacher"),
    ...sliders("student", "Logits of the student"),
  ];
}

function change(s, why, data) {
  if (why !== "scene") return s;
  const scene = data.scenes[s.scene],
    set = {};
  data.words.forEach((_, i) => {
    set[key("teacher", i)] = scene.teacher[i];
    set[key("student", i)] = scene.student[i];
  });
  return { ...s, ...set };
}

const size = (g) => Math.sqrt(g.reduce((sum, x) => sum + x * x, 0));
const percent = (p) =>
  p > 0 && p < 0.0001 ? "< 0.01 %" : `${num(clamp(p * 100, 0, 100), 3)} %`;
const signed = (x) => (Math.abs(x) < 5e-7 ? "0" : `${x > 0 ? "+" : "−"}${num(Math.abs(x), 3)}`);

function curves(teacher, student, t, width) {
  const grid = powers(0.25, 64, Math.SQRT2);
  const full = grid.map((x) => [x, size(gradient(teacher, student, x))]);
  const plain = full.map(([x, y]) => [x, y / (x * x)]);
  const now = size(gradient(teacher, student, t));
  const most = Math.max(...full.map(([, y]) => y), ...plain.map(([, y]) => y));
  const top = Math.max(most, 1e-6);
  const low = Math.max(top * 1e-6, 1e-9);
  const floor = (points) => points.map(([x, y]) => [x, Math.max(y, low)]);
  return plot({
    width,
    series: [
      { name: "with T²", points: floor(full) },
      { name: "without T²", points: floor(plain) },
    ],
    x: { min: 0.25, max: 64, log: true, label: "temperature", format: num },
    y: { min: low, max: top, log: true, label: "size of the gradient" },
    dots: [
      { x: t, y: Math.max(now, low), series: 0 },
      { x: t, y: Math.max(now / (t * t), low), series: 1 },
    ],
    desc:
      `Size of the gradient against the temperature, both axes logarithmic; ` +
      `at T = ${num(t)} it is ${num(now)} with the factor and ${num(now / (t * t))} without`,
  });
}

function view(s, { data, width }) {
  const teacher = data.words.map((_, i) => s[key("teacher", i)]);
  const student = data.words.map((_, i) => s[key("student", i)]);
  const p = soften(teacher, s.t),
    q = soften(student, s.t);
  const g = gradient(teacher, student, s.t);
  const kl = divergence(teacher, student, s.t);
  const square = s.t * s.t;
  const items = data.words.flatMap((word, i) => [
    { name: `${word}, teacher`, value: p[i], series: 0, text: percent(p[i]) },
    { name: `${word}, student`, value: q[i], series: 1, text: percent(q[i]) },
  ]);
  const rows = data.words.map((word, i) => [
    word,
    num(teacher[i]),
    num(student[i]),
    signed(g[i] / square),
    signed(g[i]),
  ]);
  const html =
    heading(
      `“The red fox …” at T = ${num(s.t)}`,
      "next word, softened teacher above softened student",
    ) +
    bars({
      width,
      items,
      max: 1,
      desc: items.map((d) => `${d.name} ${d.text}`).join("; "),
    }) +
    tiles([
      { name: "KL(p‖q)", value: num(Math.max(kl, 0)), note: "softened, no factor" },
      { name: "T² KL(p‖q)", value: num(Math.max(kl, 0) * square), note: "Hinton's loss" },
      {
        name: "KL(q‖p)",
        value: num(Math.max(reverse(teacher, student, s.t), 0)),
        note: "the other direction",
      },
    ]) +
    table(
      ["Word", "Teacher z", "Student z", "Gradient", "with T²"],
      rows,
      { caption: "Gradient of the loss for each logit of the student" },
    ) +
    curves(teacher, student, s.t, width);
  return { html, say: sentence(data, p, g, s.t) };
}

function sentence(data, p, g, t) {
  const order = p.map((_, i) => i).sort((a, b) => p[b] - p[a]);
  const [first, second] = order;
  const now = size(g);
  return (
    `At T = ${num(t)} the teacher gives ${data.words[first]} ${percent(p[first])} and ` +
    `${data.words[second]} ${percent(p[second])}. The gradient has size ${num(now)} ` +
    `with T² and ${num(now / (t * t))} without.`
  );
}

export const formulas = { soften, divergence, reverse, gradient };
export default define({ formulas, controls, change, view });
