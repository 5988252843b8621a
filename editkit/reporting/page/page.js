"use strict";
// Text from data reaches the document as text nodes only: nothing here parses markup.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const part = (id) => document.querySelector(`#${id} > div`);

  // --- Making elements ---------------------------------------------------------------------------------------------

  function made(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes ?? {})) {
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
    return node;
  }
  function fill(node, ...children) {
    node.replaceChildren();
    made(node, {}, children);
  }
  const el = (name, attributes, ...children) => made(document.createElement(name), attributes, children);
  const svg = (name, attributes, ...children) =>
    made(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
  const none = (words) => el("p", { class: "empty" }, words);

  function table(caption, head, bodies, kind = null) {
    return el("div", { class: "wide" },
      el("table", { class: kind }, el("caption", {}, caption), el("thead", {}, el("tr", {}, head)), bodies));
  }
  const column = (words) => el("th", { scope: "col" }, words);
  const unique = (values) => [...new Set(values)];

  function grouped(items, key) {
    const groups = new Map();
    for (const item of items) {
      const name = key(item);
      if (!groups.has(name)) groups.set(name, []);
      groups.get(name).push(item);
    }
    return [...groups.values()];
  }

  /** The first of many, and how many are not shown. */
  function limited(items, most, show) {
    const rest = items.length - most;
    const more = `${rest} more are not shown: choose fewer by the filters above.`;
    return [...items.slice(0, most).map(show), ...(rest > 0 ? [el("p", { class: "more" }, more)] : [])];
  }

  // --- Data --------------------------------------------------------------------------------------------------------

  const unseen = (run, task) => run.trained !== null && !run.trained.includes(task);
  const rows = data.rows.map(([run, editor, task, regime, protocol, metric, mean, low, high, n, seed]) => ({
    run: data.runs[run], editor: data.words[editor], task: data.words[task], regime: data.words[regime],
    protocol: data.words[protocol], metric: data.words[metric], mean, low, high, n, seed,
  }));
  for (const row of rows) {
    row.model = row.run.model;
    row.group = row.run.group;
    row.condition = row.run.condition;
    row.setting = JSON.stringify([row.group, row.condition, row.regime, row.protocol]);
  }
  const pairs = data.pairs.map(
    ([group, condition, task, regime, protocol, metric, first, second, mean, low, high, p, holm, n]) =>
      ({ group, condition, task: task, regime, protocol, metric, first, second, mean, low, high, p, holm, n }));
  const cells = data.cells.map(([run, editor, task, regime, kept, total, flat]) => ({
    run: data.runs[run], editor: data.texts[editor], task: data.texts[task], regime: data.texts[regime], kept, total, flat,
    model: data.runs[run].model, seed: data.runs[run].seed,
  }));
  const edits = [];
  for (const cell of cells) {
    for (let from = 0, to = 0; from < cell.flat.length; from = to) {
      const request = data.questions[cell.flat[from]][0];
      while (to < cell.flat.length && data.questions[cell.flat[to]][0] === request) to += 3;
      edits.push({ ...cell, request, from, to });
    }
  }
  const editors = unique([...rows.map((row) => row.editor), ...data.curves.map((curve) => curve.editor)]);

  function records(edit) {
    const found = [];
    for (let at = edit.from; at < edit.to; at += 3) {
      const [, protocol, measure, asked, category, prompt, answer, base] = data.questions[edit.flat[at]].map((t) => data.texts[t]);
      const scores = data.scores[edit.flat[at + 2]];
      found.push({ protocol, measure, asked, category, prompt, answer, base, edited: data.texts[edit.flat[at + 1]], scores });
    }
    return found;
  }

  // --- Numbers -----------------------------------------------------------------------------------------------------

  const isShare = (metric) => !metric.endsWith("_kl") && !(metric in data.units);
  const lessIsBetter = (metric) => data.less.some((end) => metric.endsWith(end));

  function shown(metric, value) {
    if (value === null) return "–";
    if (metric.endsWith("_kl")) return value.toFixed(3);
    if (metric === "seconds_per_edit") return String(Number(value.toPrecision(3)));
    return isShare(metric) ? (100 * value).toFixed(1) : value.toFixed(0);
  }
  const signed = (metric, value) => (value > 0 ? "+" : "") + shown(metric, value).replace("-", "−");
  const interval = (metric, low, high, show = shown) => (low === null ? "" : `[${show(metric, low)}, ${show(metric, high)}]`);
  const chance = (p) => (p < 0.001 ? "p < 0.001" : `p ${p.toFixed(3)}`);
  const mean = (values) => (values.some((v) => v === null) ? null : values.reduce((a, b) => a + b, 0) / values.length);

  function average(found) {
    const means = found.map((row) => row.mean);
    const middle = mean(means);
    const spread = found.length > 1 && middle !== null
      ? Math.sqrt(means.reduce((sum, value) => sum + (value - middle) ** 2, 0) / (found.length - 1)) : null;
    return {
      mean: middle, low: mean(found.map((row) => row.low)), high: mean(found.map((row) => row.high)), spread,
      n: Math.max(...found.map((row) => row.n)), seeds: found.map((row) => row.seed).sort((a, b) => a - b),
    };
  }

  // --- What is chosen, kept behind the # of the address -------------------------------------------------------------

  const FILTERS = ["editor", "task", "model", "regime", "protocol", "seed"];
  const state = new URLSearchParams(location.hash.slice(1));
  const chosen = (name) => state.getAll(name);

  function choose(name, values, parts = all) {
    state.delete(name);
    for (const value of [values].flat()) if (value !== "") state.append(name, value);
    history.replaceState(null, "", `#${state}`);
    for (const draw of parts) draw();
  }

  /** Whether an item is of what the filters ask for; `names` are the filters that apply to it. */
  function passes(names) {
    const asked = names.map((name) => [name, new Set(chosen(name))]).filter(([, values]) => values.size);
    return (item) => asked.every(([name, values]) => values.has(String(item[name])));
  }

  function drawFilters() {
    fill(byId("filters"), ...FILTERS.map((name) => {
      const options = name === "editor" ? editors : unique(rows.map((row) => String(row[name]))).sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
      const summary = el("summary");
      const box = el("details", {}, summary);
      const told = () => {
        const some = chosen(name);
        summary.textContent = `${name}: ${some.length ? some.join(", ") : "all"}`;
        box.classList.toggle("chosen", some.length > 0);
      };
      const boxes = options.map((option) => el("input", {
        type: "checkbox", value: option, checked: chosen(name).includes(option),
        onchange: () => { choose(name, boxes.filter((one) => one.checked).map((one) => one.value)); told(); },
      }));
      box.append(el("fieldset", {},
        el("legend", { class: "note" }, "nothing ticked: all"),
        boxes.map((one, at) => el("label", {}, one, " ", options[at]))));
      box.addEventListener("toggle", () => {
        if (box.open) for (const other of byId("filters").querySelectorAll("details")) if (other !== box) other.open = false;
      });
      box.addEventListener("keydown", (event) => {
        if (event.key === "Escape") { box.open = false; summary.focus(); }
      });
      told();
      return box;
    }));
  }
  document.addEventListener("click", (event) => {
    for (const box of byId("filters").querySelectorAll("details[open]")) if (!box.contains(event.target)) box.open = false;
  });

  // --- Editors' colours and marks ----------------------------------------------------------------------------------

  const MARKS = [
    "M-4 0A4 4 0 1 0 4 0A4 4 0 1 0-4 0Z", "M-3.6-3.6H3.6V3.6H-3.6Z", "M0-4.6L4.4 3.4H-4.4Z", "M0-5L4.4 0L0 5L-4.4 0Z",
    "M0 4.6L4.4-3.4H-4.4Z", "M-1.5-4.5H1.5V-1.5H4.5V1.5H1.5V4.5H-1.5V1.5H-4.5V-1.5H-1.5Z",
    "M0-2L2.5-4.5L4.5-2.5L2 0L4.5 2.5L2.5 4.5L0 2L-2.5 4.5L-4.5 2.5L-2 0L-4.5-2.5L-2.5-4.5Z",
  ];
  /** Colours come round after seven editors, then with other marks and broken lines. */
  function style(editor) {
    const at = Math.max(editors.indexOf(editor), 0);
    const round = Math.floor(at / MARKS.length);
    return { colour: `s${at % MARKS.length}`, mark: MARKS[(at + round) % MARKS.length], dash: ["", "6 3", "2 2"][round % 3] };
  }
  function sign(editor) {
    const { colour, mark } = style(editor);
    return svg("svg", { class: `mark ${colour}`, viewBox: "-6 -6 12 12", "aria-hidden": "true" }, svg("path", { d: mark }));
  }
  const legend = (names) => el("ul", { class: "legend" }, names.map((name) => el("li", {}, sign(name), name)));

  function said(regime) {
    const [kind, count] = regime.split(" ");
    return { single: "one edit at a time", batch: `${count} edits as one`, sequential: `after ${count} edits` }[kind] ?? regime;
  }
  const place = (item) => [data.groups[item.group].name, item.condition].filter(Boolean).join("; ");
  function heading(item, ...words) {
    const where = place(item);
    return [el("strong", {}, words.filter(Boolean).join(", ")), where ? [" ", el("small", {}, where)] : null];
  }

  /** Rows without those of sequences that go on, unless the reader asks for some regimes. */
  function ends(found) {
    if (chosen("regime").length) return found;
    const count = (row) => Number(row.regime.split(" ")[1]);
    const sequence = (row) => JSON.stringify([row.group, row.condition, row.task]);
    const parts = found.filter((row) => row.regime.startsWith("sequential "));
    const last = new Map(grouped(parts, sequence).map((some) => [sequence(some[0]), Math.max(...new Set(some.map(count)))]));
    return found.filter((row) => !row.regime.startsWith("sequential ") || count(row) === last.get(sequence(row)));
  }

  // --- Leaderboard -------------------------------------------------------------------------------------------------

  function drawLeaderboard() {
    const found = ends(rows.filter(passes(FILTERS)));
    const every = state.has("every");
    byId("every").checked = every;
    const panels = grouped(found, (row) => row.setting).map((panel) => ({ panel, metrics: columns(panel, every) }));
    const kept = panels.filter(({ metrics }) => metrics.length);
    fill(part("leaderboard"),
      ...limited(kept, 40, ({ panel, metrics }) => leaderboard(panel, metrics)), kept.length ? "" : none("No scores of what the filters ask for."));
  }

  function columns(panel, every) {
    const present = unique(panel.map((row) => row.metric));
    const main = data.measures.filter((metric) => present.includes(metric));
    return every || panel[0].protocol === "cost" ? [...main, ...present.filter((metric) => !main.includes(metric))] : main;
  }

  function leaderboard(panel, metrics) {
    const { protocol, regime } = panel[0];
    const [by, way] = (state.get("sort") ?? "").split(" ");
    const head = ["editor", ...metrics].map((metric) => {
      const first = metric === "editor" || lessIsBetter(metric) ? "ascending" : "descending";
      const next = by === metric && way === first ? (first === "ascending" ? "descending" : "ascending") : first;
      return el("th", { scope: "col", "aria-sort": by === metric ? way : null },
        el("button", { type: "button", onclick: () => resort(metric, next) }, metric.replaceAll("_", " ")));
    });
    const blocks = grouped(panel, (row) => `${row.task}${unseen(row.run, row.task) ? " †" : ""}`);
    const bodies = blocks.map((block) => {
      const title = `${block[0].task}${unseen(block[0].run, block[0].task) ? " †" : ""}`;
      const lines = grouped(block, (row) => row.editor).map((own) => ({
        editor: own[0].editor,
        scores: new Map(grouped(own, (row) => row.metric).map((some) => [some[0].metric, average(some)])),
      }));
      const best = new Map(metrics.map((metric) => [metric, bestOf(metric, lines)]));
      lines.sort((a, b) => editors.indexOf(a.editor) - editors.indexOf(b.editor));
      if (by) lines.sort((a, b) => (way === "ascending" ? 1 : -1) * compared(by, a, b));
      const counts = Math.max(...block.map((row) => row.n));
      return el("tbody", {},
        el("tr", { class: "task" }, el("th", { scope: "rowgroup", colspan: metrics.length + 1 }, title, el("small", { class: "note" }, ` ${counts} edits`))),
        lines.map((line) => el("tr", {}, el("th", { scope: "row" }, sign(line.editor), line.editor),
          metrics.map((metric) => scoreCell(metric, line.scores.get(metric), best.get(metric))))));
    });
    const meaning = data.protocols[protocol];
    return table([heading(panel[0], protocol, said(regime)), meaning ? [" · ", el("small", {}, meaning)] : null], head, bodies);
  }

  function resort(metric, way) {
    choose("sort", `${metric} ${way}`, [drawLeaderboard]);
    document.querySelector(`#leaderboard th[aria-sort] button`)?.focus();
  }

  function compared(by, a, b) {
    if (by === "editor") return a.editor.localeCompare(b.editor);
    const [x, y] = [a, b].map((line) => line.scores.get(by)?.mean ?? null);
    return x === null || y === null ? (x === null) - (y === null) : x - y;
  }

  /** The best mean as it is shown, none where all are alike. */
  function bestOf(metric, lines) {
    const means = unique(lines.map((line) => line.scores.get(metric)?.mean ?? null).filter((v) => v !== null).map((v) => shown(metric, v)));
    if (means.length < 2) return null;
    return means.reduce((a, b) => ((lessIsBetter(metric) ? Number(b) < Number(a) : Number(b) > Number(a)) ? b : a));
  }

  function scoreCell(metric, score, best) {
    if (!score) return el("td", { class: "empty" }, "–");
    const text = shown(metric, score.mean);
    const several = score.seeds.length > 1;
    const spread = several && score.spread !== null ? `, sd ${shown(metric, score.spread)}` : "";
    return el("td", { class: text === best ? "best" : null, title: `${score.n} edits; ${several ? "seeds" : "seed"} ${score.seeds.join(", ")}` },
      el("b", {}, text, text === best ? " ★" : ""),
      score.low === score.high && !isShare(metric) ? null : [" ", el("small", {}, interval(metric, score.low, score.high), spread)],
      isShare(metric) && score.mean !== null ? strip(score) : null);
  }

  const strip = (score) => svg("svg", { class: "strip", width: 78, height: 6, viewBox: "-3 0 78 6", "aria-hidden": "true" },
    svg("rect", { x: 0, y: 2, width: 72, height: 2 }), svg("line", { x1: 72 * score.low, x2: 72 * score.high, y1: 3, y2: 3 }),
    svg("circle", { cx: 72 * score.mean, cy: 3, r: 3, fill: "currentColor" }));

  // --- Differences -------------------------------------------------------------------------------------------------

  function drawDifferences() {
    const chosenEditors = new Set(chosen("editor"));
    const ofGroup = passes(["task", "regime", "protocol"]);
    const models = new Set(chosen("model"));
    const ofModel = (pair) => !models.size || data.runs.some((run) => run.group === pair.group && models.has(run.model));
    const found = pairs.filter((pair) => ofGroup(pair) && ofModel(pair)
      && (!chosenEditors.size || (chosenEditors.has(pair.first) && chosenEditors.has(pair.second))));
    const measures = data.measures.filter((metric) => found.some((pair) => pair.metric === metric));
    const measure = options("pair-measure", measures, state.get("measure") ?? "reliability");
    const panels = grouped(found.filter((pair) => pair.metric === measure),
      (pair) => JSON.stringify([pair.group, pair.condition, pair.regime, pair.protocol]));
    fill(part("differences"), ...limited(panels, 40, differences),
      panels.length ? "" : none("No two editors were scored on the same edits."));
  }

  function differences(panel) {
    const tasks = unique(panel.map((pair) => pair.task));
    const lines = grouped(panel, (pair) => JSON.stringify([pair.first, pair.second]));
    const { metric, protocol, regime } = panel[0];
    return table(heading(panel[0], metric.replaceAll("_", " "), protocol, said(regime)), [column("first − second"), tasks.map(column)],
      el("tbody", {}, lines.map((line) => el("tr", {},
        el("th", { scope: "row" }, sign(line[0].first), line[0].first, " − ", sign(line[0].second), line[0].second),
        tasks.map((task) => differenceCell(metric, line.find((pair) => pair.task === task)))))));
  }

  function differenceCell(metric, pair) {
    if (!pair) return el("td", { class: "empty" }, "–");
    const sure = pair.holm < 0.05;
    return el("td", { class: sure ? "sure" : null, title: `${pair.n} edits; ${chance(pair.p)} uncorrected` },
      el("b", {}, signed(metric, pair.mean), sure ? " ★" : ""), " ",
      el("small", {}, interval(metric, pair.low, pair.high, signed)), el("small", {}, chance(pair.holm)));
  }

  function options(id, values, wanted) {
    const value = values.includes(wanted) ? wanted : values[0];
    fill(byId(id), ...values.map((one) => el("option", { value: one, selected: one === value }, one.replaceAll("_", " "))));
    byId(id).value = value;
    byId(id).closest("p").hidden = values.length < 2;
    return value;
  }

  // --- Charts ------------------------------------------------------------------------------------------------------

  const WIDTH = 420, HEIGHT = 250, LEFT = 48, RIGHT = 10, TOP = 8, BOTTOM = 40;

  function ticks(low, high, log) {
    if (log) {
      const found = [];
      for (let ten = Math.floor(Math.log10(low)); ten <= Math.ceil(Math.log10(high)); ten++)
        for (const digit of [1, 3]) if (digit * 10 ** ten >= low * 0.999 && digit * 10 ** ten <= high * 1.001) found.push(digit * 10 ** ten);
      return found.length > 1 ? found : [low, high];
    }
    const rough = (high - low) / 5, ten = 10 ** Math.floor(Math.log10(rough));
    const step = ten * [1, 2, 5, 10].find((digit) => digit * ten >= rough);
    const found = [];
    for (let at = Math.ceil(low / step - 1e-9); at * step <= high + step * 1e-9; at++) found.push(at * step);
    return found;
  }
  const tidy = (value) => String(Number(value.toPrecision(3)));

  /**
   * A chart of series {name, title, points: [{x, y, low, high, title}], line, thin, marks, band, whiskers}.
   * `range` fixes the y axis; `log` is of the x axis, the y axis is logarithmic where positive values span much.
   */
  function chart(title, xName, yName, series, { log = false, range = null } = {}) {
    const points = series.flatMap((one) => one.points);
    const span = (values, fixed) => {
      let [low, high] = fixed ?? [Infinity, -Infinity];
      if (!fixed) for (const value of values) { low = Math.min(low, value); high = Math.max(high, value); }
      return low < high ? [low, high] : [low - Math.abs(low) * 0.1 - 1e-9, high + Math.abs(high) * 0.1 + 1e-9];
    };
    const [x0, x1] = span(points.map((p) => p.x)), [y0, y1] = span(points.map((p) => p.y), range);
    const steep = range === null && y0 > 0 && y1 > 1.5 && y1 / y0 > 30;
    const share = (value, low, high, logs) => (logs ? Math.log(value / low) / Math.log(high / low) : (value - low) / (high - low));
    const x = (value) => LEFT + 8 + (WIDTH - LEFT - RIGHT - 16) * share(value, x0, x1, log);
    const y = (value) => TOP + 4 + (HEIGHT - TOP - BOTTOM - 8) * (1 - share(value, y0, y1, steep));
    const path = (some) => some.map((p, at) => `${at ? "L" : "M"}${x(p.x).toFixed(1)} ${y(p.y).toFixed(1)}`).join("");
    const axes = [
      ...ticks(y0, y1, steep).map((value) => [
        svg("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value) }),
        svg("text", { x: LEFT - 5, y: y(value) + 4, "text-anchor": "end" }, tidy(value))]),
      ...ticks(x0, x1, log).map((value) => [
        svg("line", { class: "grid", x1: x(value), x2: x(value), y1: TOP, y2: HEIGHT - BOTTOM }),
        svg("text", { x: x(value), y: HEIGHT - BOTTOM + 14, "text-anchor": "middle" }, tidy(value))]),
      svg("text", { x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 6, "text-anchor": "middle" }, xName),
      svg("text", { x: 12, y: (TOP + HEIGHT - BOTTOM) / 2, "text-anchor": "middle", transform: `rotate(-90 12 ${(TOP + HEIGHT - BOTTOM) / 2})` }, yName),
    ];
    const drawn = series.map((one) => {
      const { colour, mark, dash } = style(one.name);
      const band = one.band && one.points.every((p) => p.low !== null) ? svg("path", { class: "band",
        d: path([...one.points.map((p) => ({ x: p.x, y: p.high })), ...[...one.points].reverse().map((p) => ({ x: p.x, y: p.low }))]) + "Z" }) : null;
      return svg("g", { class: colour }, svg("title", {}, one.title ?? one.name), band,
        one.line ? svg("path", { class: one.thin ? "line thin" : "line", d: path(one.points), "stroke-dasharray": dash || null }) : null,
        one.whiskers ? one.points.filter((p) => p.low !== null).map((p) => svg("line", { class: "whisker", x1: x(p.x), x2: x(p.x), y1: y(p.low), y2: y(p.high) })) : null,
        one.marks ? one.points.map((p) => svg("path", { class: "mark", d: mark, transform: `translate(${x(p.x).toFixed(1)} ${y(p.y).toFixed(1)})` },
          svg("title", {}, `${one.title ?? one.name}: ${p.title ?? `${tidy(p.x)}, ${tidy(p.y)}`}`))) : null);
    });
    return el("figure", {}, el("figcaption", {}, title),
      svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${yName} against ${xName}: ${unique(series.map((one) => one.name)).join(", ")}` }, axes, drawn));
  }

  function drawCharts(id, panels, show, without) {
    const names = unique(panels.flatMap((panel) => panel.names));
    const nothing = !panels.length && without === null;
    for (const node of [byId(id), document.querySelector(`nav a[href="#${id}"]`)]) node.hidden = nothing;
    fill(part(id), names.length ? legend(editors.filter((name) => names.includes(name))) : "",
      el("div", { class: "charts" }, limited(panels, 24, show)), panels.length ? "" : none(without ?? ""));
  }
  const scale = (metric, value) => (isShare(metric) && value !== null ? 100 * value : value);
  const scoredPoint = (metric, x, score) => ({
    x, y: scale(metric, score.mean), low: scale(metric, score.low), high: scale(metric, score.high),
    title: `${shown(metric, score.mean)} ${interval(metric, score.low, score.high)}`,
  });

  function drawSequences() {
    const found = rows.filter(passes(FILTERS)).filter((row) => row.regime.startsWith("sequential ") && row.mean !== null
      && row.protocol === "teacher_forced" && ["reliability", "locality"].includes(row.metric));
    const panels = grouped(found, (row) => JSON.stringify([row.group, row.condition, row.metric, row.task]))
      .filter((panel) => unique(panel.map((row) => row.regime)).length > 1)
      .map((panel) => ({ panel, names: unique(panel.map((row) => row.editor)) }));
    drawCharts("sequences", panels, ({ panel, names }) => {
      const { metric, task } = panel[0];
      return chart(heading(panel[0], task, metric), "edits made", `${metric} (%)`, names.map((name) => ({
        name, line: true, marks: true, band: true,
        points: grouped(panel.filter((row) => row.editor === name), (row) => row.regime)
          .map((some) => scoredPoint(metric, Number(some[0].regime.split(" ")[1]), average(some))).sort((a, b) => a.x - b.x),
      })), { log: true, range: [0, 100] });
    }, null);
  }

  function drawTraining() {
    const found = data.curves.map((curve) => ({ ...curve, at: data.runs[curve.run] }))
      .map((curve) => ({ ...curve, model: curve.at.model, seed: curve.at.seed })).filter(passes(["editor", "model", "seed"]));
    const measure = options("curve", unique(found.flatMap((curve) => Object.keys(curve.values))), state.get("curve") ?? "loss");
    const some = found.filter((curve) => measure in curve.values);
    const panels = grouped(some, (curve) => JSON.stringify([curve.at.group, curve.at.condition]))
      .map((panel) => ({ panel, names: unique(panel.map((curve) => curve.editor)) }));
    drawCharts("training", panels, ({ panel }) => {
      const { at } = panel[0];
      return chart(at.group === null ? "runs without scores" : place(at) || measure, "step", measure, panel.map((curve) => ({
        name: curve.editor, line: true, thin: curve.split === "train", marks: curve.split !== "train",
        title: `${curve.editor}, ${curve.split}, ${curve.at.name}`,
        points: curve.steps.map((x, i) => ({ x, y: curve.values[measure][i] })).filter((p) => p.y !== null && p.y !== undefined),
      })).filter((one) => one.points.length));
    }, "No editor was trained.");
  }

  function drawCost() {
    const found = ends(rows.filter(passes(FILTERS.filter((name) => name !== "protocol"))));
    const wanted = chosen("protocol").includes("generative") && !chosen("protocol").includes("teacher_forced") ? "generative" : "teacher_forced";
    const panels = grouped(found, (row) => JSON.stringify([row.group, row.condition, row.regime, row.task])).map((panel) => {
      const series = grouped(panel, (row) => row.editor).map((own) => {
        const time = own.filter((row) => row.metric === "seconds_per_edit" && row.mean > 0);
        const score = own.filter((row) => row.metric === "reliability" && row.protocol === wanted && row.mean !== null);
        return time.length && score.length ? { name: own[0].editor, marks: true, whiskers: true,
          points: [{ ...scoredPoint("reliability", average(time).mean, average(score)) }] } : null;
      }).filter(Boolean);
      for (const one of series) one.points[0].title = `${tidy(one.points[0].x)} s, ${one.points[0].title}`;
      return { panel, series, names: series.map((one) => one.name) };
    }).filter(({ series }) => series.length);
    drawCharts("cost", panels, ({ panel, series }) =>
      chart(heading(panel[0], panel[0].task, said(panel[0].regime)), "seconds an edit", `reliability, ${wanted} (%)`, series, { log: true, range: [0, 100] }),
    "No costs of what the filters ask for.");
  }

  // --- Single edits ------------------------------------------------------------------------------------------------

  const PAGE = 25;
  let first = 0;

  /** The question that stands for the whole edit in the list: its own prompt, as the editor is meant to be asked. */
  function main(found, protocols) {
    const own = found.filter((record) => record.measure === "reliability" && record.asked !== "bare");
    return own.find((record) => protocols.includes(record.protocol)) ?? own[0] ?? found[0];
  }
  const ownPrompt = (found) => (found.find((record) => record.measure === "reliability" && record.asked === "bare") ?? main(found, [])).prompt;
  const changesElsewhere = (found) => found.some((record) => record.measure === "locality" && record.scores[""] < 1);

  function drawEdits() {
    const search = (state.get("search") ?? "").toLowerCase(), only = state.get("only") ?? "";
    byId("search").value = state.get("search") ?? "";
    byId("only").value = only;
    const matching = search ? new Set(data.texts.flatMap((text, at) => (text.toLowerCase().includes(search) ? [at] : []))) : null;
    const within = passes(FILTERS.filter((name) => name !== "protocol"));
    const protocols = chosen("protocol");
    const found = edits.filter((edit) => {
      if (!within(edit)) return false;
      if (matching && !mentions(edit, matching)) return false;
      if (!only) return true;
      const asked = records(edit);
      const holds = main(asked, protocols).scores[""] === 1;
      return only === "taken" ? holds : only === "missed" ? !holds : changesElsewhere(asked);
    });
    const order = new Map(unique(found.map((edit) => `${edit.task} ${edit.request}`)).map((name, at) => [name, at]));
    found.sort((a, b) => order.get(`${a.task} ${a.request}`) - order.get(`${b.task} ${b.request}`));
    first = Math.min(first, Math.max(0, PAGE * Math.floor((found.length - 1) / PAGE)));
    const page = found.slice(first, first + PAGE);
    const turn = (by) => el("button", { type: "button", disabled: first + by < 0 || first + by >= found.length, onclick: () => { first += by; drawEdits(); } }, by < 0 ? "Previous" : "Next");
    const head = ["task", "editor", "seed", "prompt", "target", "the base said", "the edited model said", "reliability"].map(column);
    fill(part("edits"),
      found.length ? table(`${first + 1} to ${first + page.length} of ${found.length} edits`, head, el("tbody", {}, page.map((edit) => {
        const asked = records(edit), record = main(asked, protocols);
        return el("tr", {}, el("td", {}, edit.task), el("td", { class: "name" }, sign(edit.editor), edit.editor), el("td", {}, String(edit.seed ?? "–")),
          el("td", { class: "said" }, el("button", { type: "button", class: "open", onclick: () => open(edit) }, ownPrompt(asked))),
          el("td", { class: "said" }, record.answer), el("td", { class: "said" }, record.base), el("td", { class: "said" }, record.edited),
          el("td", {}, verdict("", record.scores[""], record.measure)));
      })), "text") : none(edits.length ? "No edit is of what is asked for." : "No single edits were kept by these runs."),
      el("div", { class: "buttons" }, turn(-PAGE), turn(PAGE)));
  }

  function mentions(edit, matching) {
    for (let at = edit.from; at < edit.to; at += 3)
      if (matching.has(edit.flat[at + 1]) || data.questions[edit.flat[at]].some((text, i) => i > 4 && matching.has(text))) return true;
    return false;
  }

  function verdict(variant, value, measure) {
    const metric = variant ? `${measure}_${variant}` : measure;
    const words = `${variant ? `${variant} ` : ""}${value === undefined ? "–" : shown(metric, value)}`;
    return el("div", { class: isShare(metric) && value !== null ? (value === 1 ? "yes" : value === 0 ? "no" : null) : null }, words);
  }

  function open(edit) {
    const found = records(edit);
    const same = edits.filter((other) => other.request === edit.request && other.task === edit.task && other.regime === edit.regime && other.run.group === edit.run.group)
      .filter(passes(["editor", "model", "seed"]));
    const button = (other) => el("button", { type: "button", "aria-current": other === edit ? "true" : null, onclick: () => open(other) },
      sign(other.editor), other.editor, other.seed === null ? ` · ${other.run.name}` : `, seed ${other.seed}`);
    const own = main(found, []);
    fill(byId("one"),
      el("div", { class: "buttons" }, el("h2", { id: "one-head" }, `${edit.editor}: ${data.texts[edit.request]}`),
        el("button", { type: "button", onclick: () => byId("one").close() }, "Close")),
      el("dl", {}, [["task", edit.task], ["regime", said(edit.regime)], ["run", edit.run.name], ["prompt", own.prompt], ["target", own.answer], ["the base said", own.base], ["the edited model said", own.edited]]
        .map(([name, value]) => [el("dt", {}, name), el("dd", { class: "said" }, value)])),
      same.length > 1 ? [el("h3", {}, "The same edit by"), el("div", { class: "buttons" }, limited(same, 30, button))] : null,
      ...grouped(found, (record) => record.protocol).map((some) => table(
        [el("strong", {}, some[0].protocol), " ", el("small", {}, data.protocols[some[0].protocol] ?? "")],
        ["measure", "asked", "prompt", "answer that counts", "the base said", "the edited model said", "scores"].map(column),
        el("tbody", {}, some.map((record) => el("tr", {},
          el("td", {}, record.measure.replaceAll("_", " "), record.category ? el("small", {}, record.category.replaceAll("_", " ")) : null),
          el("td", {}, record.asked === "same" ? "" : record.asked), ...[record.prompt, record.answer, record.base, record.edited].map((text) => el("td", { class: "said" }, text)),
          el("td", {}, Object.entries(record.scores).map(([variant, value]) => verdict(variant, value, record.measure)))))), "text")));
    if (!byId("one").open) byId("one").showModal();
    byId("one").scrollTop = 0;
  }

  // --- Runs and groups ---------------------------------------------------------------------------------------------

  function drawRuns() {
    const head = ["run", "state", "editors", "model", "seed", "started", "minutes", "group", "why"].map(column);
    const order = ["finished", "running", "interrupted", "killed", "failed"];
    const sorted = [...data.runs].sort((a, b) => order.indexOf(b.state) - order.indexOf(a.state));
    const minutes = (run) => (run.started && run.ended ? ((new Date(run.ended) - new Date(run.started)) / 60000).toFixed(1) : "–");
    fill(part("runs"), table(counts(), head, el("tbody", {}, sorted.map((run) => el("tr", {},
      el("th", { scope: "row" }, run.name), el("td", { class: `state-${run.state}` }, run.state),
      el("td", {}, run.editors.join(", ")), el("td", {}, run.model), el("td", {}, String(run.seed ?? "–")),
      el("td", { class: "name" }, run.started ? run.started.slice(0, 16).replace("T", " ") : "–"), el("td", {}, minutes(run)),
      el("td", { class: "name" }, run.group === null ? "no scores" : place(run) || "–"),
      el("td", { class: "said" }, run.why || (run.silent ? `nothing written for ${run.silent} min` : ""))))), "text"));
  }
  const counts = () => grouped(data.runs, (run) => run.state).map((some) => `${some.length} ${some[0].state}`).join(", ");

  function drawGroups() {
    byId("kinds").hidden = data.groups.length < 2;
    const names = unique(data.groups.flatMap((group) => Object.keys(group.kind)));
    const count = (at) => String(data.runs.filter((run) => run.group === at).length);
    const line = (name, values) => el("tr", {}, el("th", { scope: "row" }, name), values.map((value) => el("td", {}, value)));
    fill(part("kinds"), table("What differs", [column(""), data.groups.map((group) => column(group.name))], el("tbody", {},
      line("runs", data.groups.map((group, at) => count(at))),
      names.map((name) => line(name, data.groups.map((group) => group.kind[name] || "–")))), "text"));
  }

  // --- Begin -------------------------------------------------------------------------------------------------------

  const all = [drawLeaderboard, drawDifferences, drawSequences, drawTraining, drawCost, drawEdits];
  const theme = (name) => { document.documentElement.style.colorScheme = name || "light dark"; };
  theme(state.get("theme"));
  byId("theme").addEventListener("click", () => {
    const dark = (state.get("theme") ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
    choose("theme", dark ? "light" : "dark", [() => theme(state.get("theme"))]);
  });
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("every").addEventListener("change", (event) => choose("every", event.target.checked ? "1" : "", [drawLeaderboard]));
  byId("pair-measure").addEventListener("change", (event) => choose("measure", event.target.value, [drawDifferences]));
  byId("curve").addEventListener("change", (event) => choose("curve", event.target.value, [drawTraining]));
  byId("only").addEventListener("change", (event) => choose("only", event.target.value, [drawEdits]));
  let typing = 0;
  byId("search").addEventListener("input", (event) => {
    clearTimeout(typing);
    typing = setTimeout(() => choose("search", event.target.value, [drawEdits]), 200);
  });
  for (const link of document.querySelectorAll("nav a")) {
    link.addEventListener("click", (event) => {
      event.preventDefault();  // what follows the # are the reader's choices
      document.querySelector(link.getAttribute("href")).scrollIntoView();
    });
  }
  const left = cells.reduce((sum, cell) => sum + cell.total - cell.kept, 0);
  byId("kept").textContent = `${edits.length} edits, each by one editor in one run; ${left ? `${left} more were left out, so that the page stays light: all are in the runs’ records.jsonl.gz. ` : "none left out. "}A prompt opens all questions about its edit. The protocol filter chooses whose answer is shown.`;
  byId("about").textContent = `${data.runs.length} ${data.runs.length === 1 ? "run" : "runs"} (${counts()}) · editkit ${data.version} · ${data.made.slice(0, 16).replace("T", " ")} UTC${data.refresh ? ` · reloads every ${data.refresh} s` : ""}`;
  drawFilters();
  drawGroups();
  drawRuns();
  for (const draw of all) draw();
})();
