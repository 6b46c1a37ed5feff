// What is shown, by the address: all cells, or one (and another beside it) at a step.

let table = null;
let viewed = null; // the sides, positions and address of the cell view

function redraw_overview() {
  const names = page.cells.filter((cell) => ticked.has(cell.name)).map((cell) => cell.name);
  return draw_curves($("curves"), names, { grouped: $("grouped").checked });
}

function redraw_cell_curves() {
  const { sides, step } = viewed;
  return draw_curves($("cell-curves"), sides.map(({ member }) => member.name), {
    grouped: false, low: true, step: step === "final" ? null : step, on_step: (at) => go_to_step(nearest(at)),
  });
}

const nearest = (at) =>
  viewed.positions.filter((step) => step !== "final").reduce((a, b) => (Math.abs(b - at) < Math.abs(a - at) ? b : a), viewed.positions[0]);

/** The first recorded step from an onset on. */
const from = (positions, onset) => positions.find((step) => step === "final" || step >= onset);

/** Where to begin: where the cell turned, or else at its end. */
function first_step(member, positions) {
  const onset = member.row?.hack_onset ?? member.row?.degeneration_onset;
  return onset ? from(positions, onset) : positions.at(-1);
}

function go_to_step(step) {
  const { address: said } = viewed;
  history.replaceState(null, "", address_of({ ...said, step }));
  viewed.step = step;
  viewed.address = { ...said, step };
  show_step();
}

function show_step() {
  const { positions, step, sides } = viewed;
  const place = positions.indexOf(step);
  $("step").max = positions.length - 1;
  $("step").value = place;
  const said = step === "final" ? "final samples" : `step ${step} of ${sides[0].member.row.max_steps}`;
  $("step").setAttribute("aria-valuetext", said);
  $("at").textContent = said;
  $("earlier").disabled = place <= 0;
  $("later").disabled = place >= positions.length - 1;
  draw_texts(sides, step);
  return redraw_cell_curves();
}

async function show_cell(said) {
  const sides = await Promise.all([said.cell, said.beside].filter(Boolean).map(async (name) => {
    const member = members.get(name);
    return { member, block: await block(member) };
  }));
  const [{ member, block: own }] = sides;
  const positions = [...own.training.map(({ step }) => step), ...(own.final.length ? ["final"] : [])];
  const asked = said.step === "final" ? "final" : Number(said.step);
  const step = said.step === null || !positions.length ? first_step(member, positions)
    : positions.includes(asked) ? asked : from(positions, asked) ?? positions.at(-1);
  viewed = { sides, positions, step, address: { ...said, step } };
  document.title = `${member.label} · ${page.title}`;
  $("cell").style.setProperty("--sides", sides.length);
  $("heads").replaceChildren(...sides.map(({ member: each }, i) => draw_head(each, i, (at) => address_of({ ...said, step: from(positions, at) ?? "final" }))));
  draw_choice(member, sides[1]?.member, (name) => {
    // A base has final samples alone.
    const there = members.get(name)?.is_base ? { step: "final" } : {};
    location.hash = address_of({ ...viewed.address, beside: name, ...there });
  });
  $("steps").hidden = $("key").hidden = !positions.length;
  $("turns").replaceChildren(...Object.entries(ONSETS).flatMap(([key, { text }]) => {
    const onset = member.row?.[key];
    if (!onset || !positions.length) return [];
    const button = element("button", { type: "button" }, `${text} ${onset}`);
    button.addEventListener("click", () => go_to_step(from(positions, onset)));
    return [button, " "];
  }));
  draw_evidence(sides);
  draw_facts(sides);
  return positions.length ? show_step() : (draw_texts(sides, "final"), redraw_cell_curves());
}

let shown_before = null;
async function show() {
  const said = address();
  $("overview").hidden = Boolean(said.cell);
  $("cell").hidden = !said.cell;
  if (said.cell) {
    if (said.cell !== shown_before) scrollTo(0, 0);
    await show_cell(said);
  } else {
    document.title = page.title;
    await redraw_overview();
  }
  shown_before = said.cell;
  document.body.dataset.shown = location.hash || "#";
}

function make_controls() {
  const move = (by) => go_to_step(viewed.positions[Number($("step").value) + by]);
  $("step").addEventListener("input", () => move(0));
  $("earlier").addEventListener("click", () => move(-1));
  $("later").addEventListener("click", () => move(1));
  $("grouped").addEventListener("change", redraw_overview);
  $("draw-shown").addEventListener("click", () => tick(table.listed()));
  $("draw-none").addEventListener("click", () => tick([]));
  for (const box of document.querySelectorAll("[data-mark]")) {
    box.addEventListener("change", () => document.body.classList.toggle(`no-${box.dataset.mark}`, !box.checked));
  }
  const themes = ["light dark", "light", "dark"];
  $("theme").addEventListener("click", () => {
    const root = document.documentElement;
    root.style.colorScheme = themes[(themes.indexOf(root.style.colorScheme || "light dark") + 1) % themes.length];
    $("theme").textContent = root.style.colorScheme.replace("light dark", "theme");
    redraw_curves();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw_curves);
  // A menu closes when something else is clicked, or with Escape.
  const close = (event) => document.querySelectorAll(".bar details[open]").forEach((menu) => {
    if (event.key === "Escape" || (event.type === "click" && !menu.contains(event.target))) menu.open = false;
  });
  addEventListener("click", close);
  addEventListener("keydown", close);
  addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by || event.altKey || event.ctrlKey || event.metaKey || !address().cell || event.target.closest("input, select, summary")) return;
    $(by < 0 ? "earlier" : "later").click();
  });
}

const redraw_curves = () => (address().cell ? redraw_cell_curves() : redraw_overview());

function tick(cells) {
  ticked.clear();
  for (const cell of cells) ticked.add(cell.name);
  table.redraw();
  return redraw_overview();
}

async function begin() {
  await Promise.all([open_data(), library("datatables")]);
  const first = Object.keys(page.experiments).find((name) => page.cells.some((cell) => cell.experiments.includes(name)));
  for (const cell of page.cells) if (cell.experiments.includes(first)) ticked.add(cell.name);
  const done = page.cells.filter((cell) => cell.row.state === "done").length;
  const stopped = page.cells.filter((cell) => cell.row.state === "stopped").length;
  const cells = `${page.cells.length} ${page.cells.length === 1 ? "cell" : "cells"}`;
  $("count").textContent = `${cells}, ${done} done${stopped ? `, ${stopped} stopped early` : ""}`;
  $("loading").hidden = true;
  $("overview").hidden = false;
  table = make_table(redraw_overview);
  make_metrics(redraw_curves);
  make_controls();
  addEventListener("hashchange", show);
  await show();
}

begin().catch((error) => {
  $("loading").hidden = false;
  $("loading").textContent = `This page cannot be drawn here: ${error.message}. It needs a browser of 2024 or later.`;
});
