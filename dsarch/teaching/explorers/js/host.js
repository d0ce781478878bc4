// Puts an explorer on the page: controls, figure, status text, step buttons.
const STYLE = `
:host { display: block; margin: 1rem 0; }
.ds {
  --fg: var(--pst-color-text-base, var(--jp-content-font-color1, #1f2328));
  --bg: var(--pst-color-background, var(--jp-layout-color0, #fff));
  --line: var(--pst-color-border, var(--jp-border-color1, #d0d7de));
  --muted: var(--pst-color-text-muted, var(--jp-content-font-color2, #57606a));
  --accent: var(--pst-color-primary, var(--jp-brand-color1, #0a7d91));
  --tint: color-mix(in srgb, var(--accent) 9%, var(--bg));
  --field: color-mix(in srgb, var(--fg) 45%, var(--bg));
  --c0: #0b7bc1; --c1: #c8640a; --c2: #1e8a4c; --c3: #d1383d; --c4: #8e63ce; --c5: #0f8a8a;
  color: var(--fg); background: var(--bg); border: 1px solid var(--line);
  border-radius: .6rem; padding: 1rem 1.15rem 1.05rem;
  font: 400 .92rem/1.45 var(--pst-font-family-base, var(--jp-ui-font-family, system-ui, sans-serif));
  font-variant-numeric: tabular-nums; box-sizing: border-box;
}
.ds *, .ds *::before { box-sizing: border-box; }
.ds header { display: flex; align-items: baseline; gap: .8rem; margin: 0 0 .85rem; }
.ds h3 { font-size: 1.05rem; font-weight: 650; margin: 0; flex: 1; line-height: 1.3; }
.ds h4 { font-size: .92rem; font-weight: 650; margin: 1.2rem 0 .45rem; }
.ds h4 small { font-weight: 400; color: var(--muted); font-size: .85rem; }
.ds .controls { display: grid; gap: .75rem 1.6rem; align-items: end;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 14.5rem), 1fr)); }
.ds .group { grid-column: 1 / -1; margin: 0; } .ds .group summary { margin-bottom: .55rem; }
.ds .field { min-width: 0; border: 0; margin: 0; padding: 0; }
.ds .field.wide { grid-column: 1 / -1; }
.ds [hidden] { display: none !important; }
.ds .head { display: flex; align-items: baseline; gap: .35rem; margin-bottom: .1rem; padding: 0; }
.ds .head label, .ds .field > label, .ds legend { flex: 1; font-size: .85rem; font-weight: 550; padding: 0; }
.ds .unit { font-size: .8rem; color: var(--muted); }
.ds input[type=number] { width: 6.6rem; font: inherit; text-align: right; }
.ds input[type=number], .ds select { color: var(--fg); background: var(--bg);
  border: 1px solid var(--field); border-radius: .35rem; padding: .15rem .4rem; }
.ds input[aria-invalid=true] { border: 2px solid var(--c3); }
.ds select { display: block; width: 100%; font: inherit; padding: .32rem .4rem; margin-top: .15rem; }
.ds input[type=range] { display: block; width: 100%; height: 1.5rem; margin: 0; accent-color: var(--accent); cursor: pointer; }
.ds .choice { display: flex; flex-wrap: wrap; gap: .3rem; margin-top: .2rem; }
.ds .choice label { position: relative; cursor: pointer; }
.ds .choice span { display: block; padding: .24rem .7rem; border: 1px solid var(--field); border-radius: .35rem; }
.ds .choice input { position: absolute; inset: 0; opacity: 0; margin: 0; cursor: pointer; }
.ds .choice input:checked + span { background: var(--fg); border-color: var(--fg); color: var(--bg); font-weight: 600; }
.ds .choice input:focus-visible + span { outline: 3px solid var(--accent); outline-offset: 2px; z-index: 1; position: relative; }
.ds .player { display: flex; align-items: center; gap: .4rem; flex-wrap: wrap; }
.ds .player input[type=range] { flex: 1 1 9rem; width: auto; }
.ds button { font: inherit; color: var(--fg); background: var(--bg); cursor: pointer;
  border: 1px solid var(--field); border-radius: .35rem; padding: .22rem .7rem; }
.ds button:hover { background: var(--tint); }
.ds header button { font-size: .82rem; color: var(--muted); border-color: var(--line); }
.ds :is(input, button, select, summary, .scroll):focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
.ds figure { margin: 1rem 0 0; padding: .2rem 0 0; border-top: 1px solid var(--line); min-width: 0; }
.ds figure > svg { margin-top: .3rem; }
.ds svg { display: block; max-width: 100%; height: auto; overflow: visible; }
.ds svg text { fill: var(--fg); font-size: 12.5px; }
.ds svg .tick, .ds svg .muted { fill: var(--muted); font-size: 11.5px; }
.ds svg .strong { font-weight: 650; }
.ds svg .halo { font-size: 11.5px; paint-order: stroke; stroke: var(--bg); stroke-width: 4px; }
.ds svg .axis { stroke: var(--muted); fill: none; } .ds svg .grid { stroke: var(--line); stroke-width: .7; }
.ds svg .band { fill: var(--accent); opacity: .12; } .ds svg .rule { stroke: var(--fg); stroke-dasharray: 2 3; }
.ds .s0 { --s: var(--c0); } .ds .s1 { --s: var(--c1); } .ds .s2 { --s: var(--c2); }
.ds .s3 { --s: var(--c3); } .ds .s4 { --s: var(--c4); } .ds .s5 { --s: var(--c5); }
.ds .line { stroke: var(--s); fill: none; stroke-width: 2.4; stroke-linejoin: round; }
.ds .d1 { stroke-dasharray: 8 4; } .ds .d2 { stroke-dasharray: 2 3; } .ds .d3 { stroke-dasharray: 9 3 2 3; }
.ds .mark { fill: var(--s); stroke: var(--bg); stroke-width: 1.2; } .ds .bar { fill: var(--s); }
.ds pattern path { stroke: var(--bg); stroke-width: 1.6; stroke-linecap: round; }
.ds .legend { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; list-style: none; margin: .5rem 0 .2rem; padding: 0; font-size: .86rem; }
.ds .legend li { display: flex; align-items: center; gap: .4rem; margin: 0; }
.ds .tiles { display: grid; gap: .5rem 1.4rem; margin: .9rem 0 .2rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 10.5rem), 1fr)); }
.ds .tiles dt { font-size: .82rem; font-weight: 400; color: var(--muted); margin: 0; }
.ds .tiles dd { font-size: 1.5rem; font-weight: 650; line-height: 1.25; margin: 0; }
.ds .tiles small { display: block; font-size: .8rem; font-weight: 400; color: var(--muted); }
.ds .say { margin: .9rem 0 0; padding: .55rem .8rem; background: var(--tint); border-left: 3px solid var(--accent); border-radius: 0 .35rem .35rem 0; }
.ds .say:empty { display: none; }
.ds .wrong { margin: .9rem 0 0; padding: .55rem .8rem; border: 2px solid var(--c3); border-radius: .35rem; font-weight: 600; }
.ds .try { margin: .7rem 0 0; color: var(--muted); font-size: .88rem; } .ds .try b { color: var(--fg); font-weight: 650; }
.ds .scroll { overflow-x: auto; } .ds .note { color: var(--muted); font-size: .86rem; margin: .4rem 0 0; }
.ds table { border-collapse: collapse; width: 100%; font-size: .87rem; margin: .3rem 0 0; }
.ds caption { text-align: left; color: var(--muted); padding-bottom: .25rem; }
.ds th, .ds td { padding: .22rem .6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
.ds th { font-weight: 550; } .ds th:first-child { text-align: left; padding-left: .2rem; }
.ds tr.strong > * { background: var(--tint); font-weight: 650; }
.ds details { margin-top: .9rem; } .ds summary { cursor: pointer; font-weight: 550; font-size: .88rem; }
@media (max-width: 30rem) { .ds { padding: .8rem .8rem .9rem; } .ds th, .ds td { padding: .22rem .35rem; } .ds .tiles dd { font-size: 1.3rem; } }
@media print { .ds .controls, .ds header button, .ds .try { display: none; } }
`;

/** One control of `spec` as HTML; ids only need to differ inside the root. */
function field(spec) {
  if (spec.kind === "hidden") return "";
  const id = `c-${spec.key}`,
    unit = spec.unit ?? "";
  const wrap = (inner, tag = "div") =>
    `<${tag} class="field${spec.wide ? " wide" : ""}" data-field="${spec.key}">${inner}</${tag}>`;
  const label = `<label for="${id}">${esc(spec.label)}</label>`;
  const range = `<input type="range" data-range="${spec.key}" aria-label="${esc(spec.label)}">`;
  const number =
    `<input type="number" id="${id}" data-number="${spec.key}" min="${spec.min}"` +
    ` max="${spec.max}" step="${spec.real ? "any" : 1}">${unit && `<span class="unit">${esc(unit)}</span>`}`;
  if (spec.kind === "select") {
    const options = spec.options
      .map(([v, name]) => `<option value="${esc(v)}">${esc(name)}</option>`)
      .join("");
    return wrap(
      `${label}<select id="${id}" data-select="${spec.key}">${options}</select>`,
    );
  }
  if (spec.kind === "radio") {
    const options = spec.options
      .map(
        ([v, name]) =>
          `<label><input type="radio" name="${id}" data-radio="${spec.key}" ` +
          `value="${esc(v)}"><span>${esc(name)}</span></label>`,
      )
      .join("");
    return wrap(
      `<legend>${esc(spec.label)}</legend><div class="choice">${options}</div>`,
      "fieldset",
    );
  }
  const head = `<div class="head">${label}${number}</div>`;
  if (spec.kind !== "steps") return wrap(head + range);
  return wrap(
    `${head}<div class="player"><button type="button" data-step="-1">‹ Back</button>` +
      `<button type="button" data-play="${spec.key}" aria-pressed="false">Play</button>` +
      `<button type="button" data-step="1">Next ›</button>${range}</div>`,
  );
}

/** All controls; those with a `group` are folded away on a narrow screen. */
function fields(specs) {
  const free = specs
    .filter((s) => !s.group)
    .map(field)
    .join("");
  const groups = [...new Set(specs.map((s) => s.group).filter(Boolean))];
  const folded = groups.map((name) => {
    const inner = specs
      .filter((s) => s.group === name)
      .map(field)
      .join("");
    return (
      `<details class="group"><summary>${esc(name)}</summary>` +
      `<div class="controls">${inner}</div></details>`
    );
  });
  return free + folded.join("");
}

/** Where a slider stands: an index if the spec lists values. */
const toRange = (spec, v) =>
  spec.values
    ? spec.values.reduce(
        (best, x, i) =>
          Math.abs(x - v) < Math.abs(spec.values[best] - v) ? i : best,
        0,
      )
    : v;
const fromRange = (spec, at) => (spec.values ? spec.values[+at] : +at);

function mount({ data, el, controls, change, view, check }) {
  const specs = controls(data);
  const by = Object.fromEntries(specs.map((s) => [s.key, s]));
  const start = () => Object.fromEntries(specs.map((s) => [s.key, s.value]));
  let state = start(),
    notes = {},
    timer = 0,
    width = 0;
  el.innerHTML =
    `<header><h3>${esc(data.title)}</h3><button type="button" data-reset>Reset</button></header>` +
    `<div class="controls">${fields(specs)}</div>` +
    `<figure></figure><p class="say" role="status"></p>` +
    (data.hint ? `<p class="try"><b>Try:</b> ${esc(data.hint)}</p>` : "");
  const $ = (q) => el.querySelector(q),
    all = (q) => el.querySelectorAll(q);
  const figure = $("figure"),
    calm = matchMedia("(prefers-reduced-motion: reduce)");

  function show(spec) {
    const v = state[spec.key];
    if (spec.kind === "hidden") return;
    const box = $(`[data-field="${spec.key}"]`);
    box.hidden = spec.when ? !spec.when(state) : false;
    const range = box.querySelector("[data-range]"),
      number = box.querySelector("[data-number]");
    if (range) {
      range.min = spec.values ? 0 : spec.min;
      range.max = spec.values ? spec.values.length - 1 : spec.max;
      range.step = spec.values ? 1 : (spec.step ?? 1);
      range.value = toRange(spec, v);
      range.setAttribute(
        "aria-valuetext",
        `${num(v, 12)} ${spec.unit ?? ""}`.trim(),
      );
      if (el.getRootNode().activeElement !== number) number.value = v;
      number.setAttribute("aria-invalid", String(!!notes[spec.key]));
    }
    const select = box.querySelector("select");
    if (select) select.value = v;
    for (const radio of box.querySelectorAll("[type=radio]"))
      radio.checked = radio.value === String(v);
  }
  function draw(speak = true) {
    const root = el.getRootNode();
    const focus = figure.contains(root.activeElement)
      ? root.activeElement.dataset.key
      : null;
    const open = [...figure.querySelectorAll("details[open]")].map(
      (d) => d.dataset.key,
    );
    specs.forEach(show);
    const { html, say } = view(state, { data, width: Math.max(width, 240) });
    figure.innerHTML = html;
    for (const d of figure.querySelectorAll("details"))
      d.open = open.includes(d.dataset.key);
    if (focus)
      figure.querySelector(`[data-key="${CSS.escape(focus)}"]`)?.focus();
    if (speak)
      $(".say").textContent = [...Object.values(notes), say]
        .filter(Boolean)
        .join(" ");
  }
  function set(patch, why = Object.keys(patch)[0]) {
    state = change({ ...state, ...patch }, why, data);
    draw(!timer);
  }
  function stop() {
    clearInterval(timer);
    timer = 0;
    for (const b of all("[data-play]")) {
      b.textContent = "Play";
      b.setAttribute("aria-pressed", "false");
    }
  }
  function move(key, way, wrap) {
    const s = by[key];
    const next =
      state[key] + way * (s.step?.call ? s.step(state) : (s.step ?? 1));
    if (next > s.max && !wrap) return false;
    set({ [key]: next > s.max ? s.min : clamp(next, s.min, s.max) });
    return true;
  }
  function play(button) {
    if (timer) {
      stop();
      draw();
      return;
    }
    const key = button.dataset.play;
    button.textContent = "Pause";
    button.setAttribute("aria-pressed", "true");
    if (state[key] >= by[key].max) set({ [key]: by[key].min });
    timer = setInterval(
      () => {
        if (!el.isConnected || !move(key, 1, false)) {
          stop();
          if (el.isConnected) draw();
        }
      },
      calm.matches ? 1200 : (by[key].interval ?? 250),
    );
  }
  el.addEventListener("input", ({ target: t }) => {
    const { range, number, select, radio } = t.dataset;
    if (timer) stop();
    if (range) {
      delete notes[range];
      set({ [range]: fromRange(by[range], t.value) });
    }
    if (number) {
      const typed = t.validity.badInput ? "that" : t.value;
      const { value, note } = settle(by[number], typed);
      if (note) notes[number] = note;
      else delete notes[number];
      set({ [number]: value });
    }
    const choice = select ?? radio;
    if (choice) {
      const [value] = by[choice].options.find(([v]) => String(v) === t.value);
      notes = {};
      set({ [choice]: value });
    }
  });
  el.addEventListener("focusout", ({ target: t }) => {
    const key = t.dataset?.number;
    if (key && t.value !== String(state[key])) {
      t.value = state[key];
      delete notes[key];
      t.setAttribute("aria-invalid", "false");
    }
  });
  el.addEventListener("click", ({ target }) => {
    const t = target.closest("button");
    if (!t) return;
    if ("reset" in t.dataset) {
      stop();
      notes = {};
      state = start();
      draw();
    }
    if (t.dataset.play) play(t);
    if (t.dataset.step) {
      stop();
      move(t.closest("[data-field]").dataset.field, +t.dataset.step, true);
    }
    if (t.dataset.set) {
      notes = {};
      set(JSON.parse(t.dataset.set));
    }
  });
  // arrow keys walk through the buttons of a figure and choose as they go
  figure.addEventListener("keydown", (e) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[
      e.key
    ];
    const here = e.target.closest?.("[data-set]");
    if (!step || !here) return;
    e.preventDefault();
    const list = [
      ...here.closest("[data-roving]").querySelectorAll("[data-set]"),
    ];
    const next = list[(list.indexOf(here) + step + list.length) % list.length];
    next.focus();
    next.click();
  });
  const resize = () => {
    const now = figure.clientWidth;
    if (Math.abs(now - width) > 1) {
      width = now;
      draw();
    }
  };
  new ResizeObserver(resize).observe(figure);
  width = figure.clientWidth;
  for (const d of all(".group")) d.open = width >= 480;
  draw();
  const wrong = check(data);
  if (wrong.length) {
    const p = document.createElement("p");
    p.className = "wrong";
    p.setAttribute("role", "alert");
    p.textContent =
      "This explorer disagrees with the Python code, do not trust its numbers: " +
      wrong
        .map(([name, args, want]) => `${name}(${args}) should be ${want}`)
        .join("; ");
    figure.before(p);
  }
}

for (const host of document.querySelectorAll(
  '[data-ds-widget="__WIDGET__"]:not([data-ds-ready])',
)) {
  host.dataset.dsReady = "1";
  const root = host.attachShadow({ mode: "open" });
  const style = document.createElement("style");
  style.textContent = STYLE;
  const el = document.createElement("div");
  el.className = "ds";
  el.setAttribute("role", "group");
  el.setAttribute("aria-label", host.dataset.dsLabel);
  root.append(style, el);
  // keys that move a slider must not reach the page (theme and JupyterLab shortcuts)
  host.addEventListener("keydown", (e) => e.stopPropagation());
  try {
    widget.render({
      data: JSON.parse(
        host.querySelector('script[type="application/json"]').textContent,
      ),
      el,
    });
  } catch (error) {
    console.error(error);
    el.innerHTML = `<p class="wrong" role="alert">This explorer could not start; here is its table instead.</p><slot></slot>`;
  }
}
