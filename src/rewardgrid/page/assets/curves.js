// Curves of chosen cells, one panel for each metric (Plotly): seeds of one configuration as their mean with a band.

const COLOURS = ["#3274c4", "#d9722b", "#2a9d6f", "#b84a9c", "#8a6fd1", "#b5891c", "#3aa7b8", "#c94f4f", "#6b7d2c", "#7a5c46"];
const MOST_CELLS = 150;
const MOST_LINES = 40;
const ONSETS = {
  hack_onset: { symbol: "star", text: "hacks from step" },
  degeneration_onset: { symbol: "x", text: "not ok from step" },
};
const metrics = new Set(["reward", "kl", "happy", "unlikely_windows"]);

/** Lines to draw: one for each cell, or one for each configuration with all its ticked seeds. */
function lines_of(names, grouped) {
  const found = new Map();
  for (const name of names) {
    const cell = members.get(name);
    if (!cell || cell.is_base) continue;
    const key = grouped ? cell.group : name;
    if (!found.has(key)) found.set(key, { label: grouped ? cell.group_label : cell.label, cells: [] });
    found.get(key).cells.push(cell);
  }
  return [...found.values()];
}

/** Mean, lowest and highest value of several runs at each step; a run that ended earlier counts as far as it goes. */
function together(runs) {
  const at = new Map();
  for (const { step, value } of runs) {
    step.forEach((s, i) => {
      if (value[i] === null) return;
      if (!at.has(s)) at.set(s, []);
      at.get(s).push(value[i]);
    });
  }
  const steps = [...at.keys()].sort((a, b) => a - b);
  const over = (figure) => steps.map((s) => figure(at.get(s)));
  return {
    steps,
    mean: over((values) => values.reduce((a, b) => a + b, 0) / values.length),
    low: over((values) => Math.min(...values)),
    high: over((values) => Math.max(...values)),
  };
}

/** The curve's height at a step between two drawn ones. */
function height(steps, values, step) {
  const after = steps.findIndex((s) => s >= step);
  if (after <= 0) return values[after === 0 ? 0 : values.length - 1];
  const part = (step - steps[after - 1]) / (steps[after] - steps[after - 1]);
  return values[after - 1] + part * (values[after] - values[after - 1]);
}

function colours() {
  const probe = getComputedStyle(document.querySelector("header"));
  return { ink: getComputedStyle(document.body).color, line: probe.borderBottomColor };
}

/** `"#3274c4"` with an opacity. */
function faint(colour, opacity) {
  return colour + Math.round(opacity * 255).toString(16).padStart(2, "0");
}

/** Draw the curves of these cells; `step` gets a line of its own, `on_step` is told of clicks. */
async function draw_curves(place, names, { grouped, step = null, on_step = null, low = false }) {
  await library("plotly");
  const lines = lines_of(names.slice(0, MOST_CELLS), grouped).slice(0, MOST_LINES);
  for (const line of lines) line.blocks = await Promise.all(line.cells.map(block));
  const panels = [...metrics].filter((name) =>
    lines.some((line) => line.blocks.some((own) => own.curves[page.curves[name].of]?.[name])),
  );
  if (!panels.length) {
    globalThis.Plotly.purge(place);
    place.replaceChildren(element("p", { className: "absent" }, lines.length ? "No curve yet." : "No cell is ticked."));
    return;
  }
  place.querySelector(".absent")?.remove();
  const down = Math.ceil(panels.length / Math.max(1, Math.floor(place.clientWidth / 300)));
  const across = Math.ceil(panels.length / down);
  const { ink, line: grid } = colours();
  const traces = [];
  const layout = {
    height: down * (low ? 200 : 250) + (low ? 10 : 60),
    margin: { l: 44, r: 10, t: 26, b: 30 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: ink, size: 12, family: getComputedStyle(document.body).fontFamily },
    grid: { rows: down, columns: across, pattern: "independent", xgap: 0.12, ygap: 0.3 },
    showlegend: !low && lines.length <= 12,
    legend: { orientation: "h", y: -0.12 / down, yanchor: "top" },
    hovermode: "closest",
    hoverlabel: { namelength: -1 },
    annotations: [],
    shapes: [],
  };
  panels.forEach((name, i) => {
    const n = i ? i + 1 : "";
    const about = page.curves[name];
    layout[`xaxis${n}`] = { gridcolor: grid, zeroline: false, linecolor: grid, matches: i ? "x" : undefined, rangemode: "tozero" };
    layout[`yaxis${n}`] = { gridcolor: grid, zeroline: false, rangemode: "tozero" };
    layout.annotations.push({
      text: `<b>${about.label}</b>`, hovertext: about.meaning, showarrow: false, xanchor: "left", yanchor: "bottom",
      x: 0, y: 1.02, xref: `x${n} domain`, yref: `y${n} domain`,
    });
    if (step !== null) {
      layout.shapes.push({ type: "line", x0: step, x1: step, y0: 0, y1: 1, xref: `x${n}`, yref: `y${n} domain`, line: { color: ink, width: 1, dash: "dot" } });
    }
    lines.forEach((line, k) => {
      const colour = COLOURS[k % COLOURS.length];
      const runs = line.blocks.flatMap((own) => {
        const found = own.curves[about.of];
        return found?.[name] ? [{ step: found.step, value: found[name] }] : [];
      });
      if (!runs.length) return;
      const { steps, mean, low: lowest, high } = together(runs);
      const axes = { xaxis: `x${n}`, yaxis: `y${n}`, legendgroup: String(k), name: plain_text(line.label) };
      if (runs.length > 1) {
        traces.push({
          ...axes, x: [...steps, ...[...steps].reverse()], y: [...high, ...[...lowest].reverse()],
          fill: "toself", fillcolor: faint(colour, 0.16), line: { width: 0 }, mode: "lines", hoverinfo: "skip", showlegend: false,
        });
      }
      traces.push({
        ...axes, x: steps, y: mean, mode: steps.length < 12 ? "lines+markers" : "lines", line: { color: colour, width: 2 }, marker: { size: 5 },
        showlegend: i === 0, hovertemplate: `step %{x}: %{y:.4g}${runs.length > 1 ? ` (${runs.length} seeds)` : ""}`,
      });
      for (const [key, { symbol, text }] of Object.entries(ONSETS)) {
        const turned = line.cells.map((cell) => cell.row[key]).filter((at) => at);
        if (!turned.length) continue;
        traces.push({
          ...axes, x: turned, y: turned.map((at) => height(steps, mean, at)), mode: "markers", showlegend: false,
          marker: { symbol, size: 9, color: colour, line: { color: ink, width: 1 } }, hovertemplate: `${text} %{x}`,
        });
      }
    });
  });
  const drawn = lines.reduce((sum, line) => sum + line.cells.length, 0);
  if (place.id === "curves") $("drawn").textContent = drawn < names.length ? `the first ${drawn} of ${names.length} ticked cells` : "";
  await globalThis.Plotly.react(place, traces, layout, { displayModeBar: false, responsive: true });
  if (on_step && !place.dataset.listens) {
    place.dataset.listens = "yes";
    place.on("plotly_click", (event) => place.on_step(event.points[0].x));
  }
  place.on_step = on_step;
}

/** Plotly reads some HTML in labels (and makes no other of it): none of ours is any. */
function plain_text(text) {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
}

/** The menu of metrics; every place that draws curves shares the choice. */
function make_metrics(redraw) {
  for (const menu of document.querySelectorAll(".metrics .menu")) {
    menu.append(...Object.entries(page.curves).map(([name, about]) => {
      const box = element("input", { type: "checkbox", checked: metrics.has(name), value: name });
      box.addEventListener("change", () => {
        metrics[box.checked ? "add" : "delete"](name);
        document.querySelectorAll(`.metrics input[value=${name}]`).forEach((other) => (other.checked = box.checked));
        redraw();
      });
      return element("label", { title: about.meaning }, box, ` ${about.label}`);
    }));
  }
}
