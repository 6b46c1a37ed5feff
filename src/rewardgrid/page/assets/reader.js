// One cell, or two side by side: what they are, why they are judged so, and what they wrote at each step.

/** Parts of a text: where tokens, sentences and each "happy" begin and end. */
function parts_of(text) {
  const whole = text.pieces.join("");
  const happy = [...whole.toLowerCase().matchAll(/happy/g)].map((found) => [found.index, found.index + 5]);
  const cuts = happy.flat();
  const sentences = [];
  let own = [];
  let place = 0;
  const ends = new Map(text.ends ?? []);
  text.pieces.forEach((piece, i) => {
    const end = place + piece.length;
    const borders = [place, ...cuts.filter((cut) => cut > place && cut < end), end];
    for (let k = 1; k < borders.length; k += 1) {
      if (borders[k - 1] === borders[k]) continue;
      own.push({
        text: whole.slice(borders[k - 1], borders[k]),
        happy: happy.some(([from, to]) => borders[k - 1] < to && borders[k] > from),
        nats: text.nats ? (text.nats.charCodeAt(i) - 48) / 4 : null,
      });
    }
    place = end;
    if (ends.has(i)) {
      sentences.push({ parts: own, length: ends.get(i) });
      own = [];
    }
  });
  return own.length ? [...sentences, { parts: own, length: null }] : sentences;
}

/** right: of the length that is paid; near: close enough to be paid in part; far: not paid. */
function fit(length, target) {
  const apart = Math.abs(length - target);
  return apart === 0 ? "right" : apart < 5 ? "near" : "far";
}

function draw_text(text, target, usual) {
  const drawn = parts_of(text).map(({ parts, length }) => {
    const nodes = parts.flatMap((part) => {
      const level = part.nats === null ? 0 : usual.filter((limit) => part.nats > limit).length;
      if (!level && !part.happy) return [part.text];
      const bare = part.text.trimStart();
      const node = element(part.happy ? "mark" : "span", { className: level ? `unlikely-${level}` : "" }, bare);
      if (level) node.title = `${part.nats} nats: probability ${Math.exp(-part.nats).toPrecision(1)} under the base`;
      return [part.text.slice(0, part.text.length - bare.length), node];
    });
    if (length === null) return element("span", {}, ...nodes);
    const kind = fit(length, target);
    return element("span", { className: `sentence ${kind}`, title: `${length} tokens, paid are ${target}` }, ...nodes, element("sub", {}, String(length)));
  });
  return element("p", {}, ...drawn);
}

function draw_sample(text, member, own_prompt) {
  const meta = element("div", { className: "meta" });
  for (const [key, label] of [["reward", "reward"], ["sl10", "sl10"], ["happy", "happy"]]) {
    const digits = key === "happy" ? 0 : 3;
    meta.append(element("span", {}, `${label} `, element("b", {}, shown(text[key], { digits }))));
  }
  for (const label of text.labels ?? []) meta.append(element("span", { className: `label ${label}` }, label));
  const drawn = draw_text(text, member.target ?? 10, usual_of(member));
  if (own_prompt) {
    const joint = /^[\s.,!?;:'’)]/.test(text.pieces.join("")) ? "" : " ";
    drawn.prepend(element("span", { className: "prompt" }, text.prompt + joint));
  }
  return element("article", { className: "text" }, meta, drawn);
}

function usual_of(member) {
  return (member.is_base ? member : (members.get(member.base) ?? {})).usual ?? [];
}

/** The texts of a side at a step, and the step they are of: the nearest recorded one. */
function texts_at(own, step) {
  if (step === "final" || !own.training.length) return { at: "final", texts: own.final };
  const nearest = own.training.reduce((a, b) => (Math.abs(b.step - step) < Math.abs(a.step - step) ? b : a));
  return { at: nearest.step, texts: nearest.texts };
}

/** The step of which both sides have texts, nearest to this one (the later of two); this one, if there is none. */
function common_step(sides, step) {
  if (step === "final" || sides.length < 2) return step;
  const [own, other] = sides.map(({ block: { training } }) => training.map((each) => each.step));
  const both = own.filter((each) => other.includes(each));
  return both.length ? both.reduce((a, b) => (Math.abs(b - step) <= Math.abs(a - step) ? b : a)) : step;
}

/** Rows of texts. Two sides stand on the same prompts where they have them: in order, prompt by prompt. */
function draw_texts(sides, wanted) {
  const step = common_step(sides, wanted);
  const found = sides.map((side) => texts_at(side.block, step));
  const rows = [];
  if (sides.length === 1) {
    rows.push(...found[0].texts.map((text) => ({ prompt: text.prompt, texts: [text] })));
  } else {
    const left = [...found[1].texts];
    for (const text of found[0].texts) {
      const same = left.findIndex((other) => other.prompt === text.prompt && String(other.labels?.[0] ?? "") === String(text.labels?.[0] ?? ""));
      const any = same < 0 ? left.findIndex((other) => other.prompt === text.prompt) : same;
      rows.push({ prompt: text.prompt, texts: [text, any < 0 ? null : left.splice(any, 1)[0]] });
    }
    rows.push(...left.map((text) => ({ prompt: text.prompt, texts: [null, text] })));
  }
  const notes = step === wanted ? [] : [`Both at step ${step}: of step ${wanted} only one has texts.`];
  const [{ member: { row = {} }, block: { training = [] } }] = sides;
  for (const [key, { text }] of Object.entries(ONSETS)) {
    const onset = row[key];
    const next = onset && from(training.map((each) => each.step), onset);
    if (next && next === wanted && next !== onset) notes.push(`${text[0].toUpperCase()}${text.slice(1)} ${onset}; the next recorded step is ${next}.`);
  }
  notes.push(...sides.flatMap((side, i) => [
    side.block.note,
    step !== "final" && found[i].at !== step && side.block.training.length ? `${side.member.label}: nearest recorded step ${found[i].at}.` : null,
    step !== "final" && !side.block.training.length && side.block.final.length ? `${side.member.label}: no rollouts; its final samples.` : null,
  ]));
  if (step === "final" && sides.some(({ block: own }) => own.final.some((text) => text.nats))) {
    notes.push("Final samples are recorded as text: their tokens are read from it again and may differ in a few places.");
  }
  if (sides.length === 2 && rows.length && found[0].at === found[1].at && !sides.some(({ member }) => member.is_base) && !rows.some(({ texts }) => texts[0] && texts[1])) {
    notes.push("These two met other prompts at this step (another seed or batch size): the final samples have the same ones.");
  }
  const lines = rows.map(({ prompt, texts }) => {
    const two = texts.length > 1;
    return element(
      "div", { className: "pair" },
      two ? element("p", { className: "prompt" }, `${prompt} …`) : null,
      element("div", { className: "columns" }, ...texts.map((text, i) =>
        text ? draw_sample(text, sides[i].member, !two) : element("p", { className: "absent" }, "not for this prompt"))),
    );
  });
  const said = [...new Set(notes.filter(Boolean))].map((note) => element("p", { className: "hint" }, note));
  $("texts").replaceChildren(...said, ...(lines.length ? lines : [element("p", { className: "absent" }, "No texts yet.")]));
}

function draw_head(member, i, link) {
  const row = member.row ?? {};
  const verdict = member.is_base ? "base" : (row.verdict ?? row.state);
  const turns = Object.entries(ONSETS).flatMap(([key, { text }]) =>
    row[key] ? [`${text} `, element("a", { href: link(row[key]) }, String(row[key])), " · "] : []);
  const figures = ["final_reward", "final_kl", "unique_first_sentences"].filter((key) => row[key] !== null && row[key] !== undefined)
    .map((key) => `${page.columns.find((column) => column.key === key)?.label ?? key} ${shown(row[key], page.columns.find((column) => column.key === key))}`);
  const titles = (member.experiments ?? []).map((name) => page.experiments[name]).join(", ");
  return element(
    "div", { className: "head" },
    element("div", { className: "path" }, element("a", { href: "#" }, "all cells"), titles ? ` / ${titles}` : ""),
    element("h1", {}, element("span", { className: "swatch", style: `background: ${COLOURS[i]}` }), member.label, " ", element("span", { className: `verdict ${verdict}` }, verdict)),
    element("div", {}, [row.reasons, ...figures].filter(Boolean).join(" · ")),
    element("div", { className: "turn" }, ...turns.slice(0, -1)),
    element("div", { className: "path" }, member.name),
  );
}

/** Cells that differ from this one in one setting, nearest values first; then its other seeds. */
function neighbours(member) {
  if (member.is_base) return [];
  const found = [];
  for (const other of page.cells) {
    if (other.name === member.name) continue;
    const apart = page.neighbours.concat("seed").filter((key) => other.row[key] !== member.row[key]);
    if (apart.length === 1) found.push({ other, key: apart[0] });
  }
  const distance = ({ other, key }) => {
    const [a, b] = [member.row[key], other.row[key]];
    return (key === "seed" ? 1e3 : 0) + (typeof a === "number" && a > 0 && b > 0 ? Math.abs(Math.log(b / a)) : 0);
  };
  return found.sort((a, b) => distance(a) - distance(b));
}

/** Whether a neighbour's setting is higher or lower, where that can be said. */
function way(key, own, other) {
  if (key === "seed" || typeof own !== "number" || typeof other !== "number") return "";
  return other > own ? " ↑" : " ↓";
}

function draw_choice(member, beside, go) {
  const near = neighbours(member);
  const option = (other, text) => element("option", { value: other.name, selected: beside?.name === other.name }, text);
  const rest = page.cells.filter((cell) => cell.name !== member.name && !near.some(({ other }) => other.name === cell.name));
  const group = (label, options) => (options.length ? [element("optgroup", { label }, ...options)] : []);
  const said = ({ other, key }) => `${page.settings[key].label} ${shown(other.row[key])}${way(key, member.row[key], other.row[key])}`;
  $("with").replaceChildren(
    element("option", { value: "" }, "nothing"),
    ...group("one setting apart", near.map((each) => option(each.other, said(each)))),
    ...group("base", page.bases.map((base) => option(base, base.label))),
    ...group("all others", rest.map((cell) => option(cell, `${cell.experiments[0]}: ${cell.label}`))),
  );
  $("with").onchange = () => go($("with").value || null);
  $("neighbours").replaceChildren(...near.slice(0, 6).map((each) => {
    const button = element("button", { type: "button", "aria-pressed": beside?.name === each.other.name }, said(each));
    button.addEventListener("click", () => go(beside?.name === each.other.name ? null : each.other.name));
    return button;
  }));
}

const SVG = "http://www.w3.org/2000/svg";
function mark(tag, attributes) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

/** One signal on a line: the base's draws as ticks, the zones of the limits, the cell and the one beside it. */
function strip(judged, other) {
  const limits = [judged.borderline, judged.degenerate].filter((limit) => limit !== null);
  const values = [judged.value, judged.base, other?.value, ...limits, ...judged.draws].filter((value) => value !== null && value !== undefined);
  const [least, most] = [Math.min(...values), Math.max(...values)];
  const pad = (most - least || 1) * 0.06;
  const x = (value) => (1000 * (value - least + pad)) / (most - least + 2 * pad);
  const drawn = mark("svg", { viewBox: "0 0 1000 22", preserveAspectRatio: "none", role: "img" });
  const upward = judged.degenerate === null || judged.degenerate >= judged.borderline;
  const zone = (from, to, colour) => {
    const [a, b] = [from, to].map((value) => (value === null ? (upward ? 1000 : 0) : x(value)));
    drawn.append(mark("rect", { x: Math.min(a, b), y: 2, width: Math.abs(b - a), height: 18, fill: colour, "fill-opacity": 0.16 }));
  };
  zone(judged.borderline, judged.degenerate, "var(--borderline)");
  if (judged.degenerate !== null) zone(judged.degenerate, null, "var(--degenerate)");
  for (const value of [judged.base, ...judged.draws].filter((value) => value !== null && value !== undefined)) {
    drawn.append(mark("line", { x1: x(value), x2: x(value), y1: 4, y2: 18, stroke: "var(--quiet)", "stroke-opacity": 0.55, "stroke-width": 1.5, "vector-effect": "non-scaling-stroke" }));
  }
  const point = (value, colour) => drawn.append(mark("line", { x1: x(value), x2: x(value), y1: 11, y2: 11, stroke: colour, "stroke-width": 11, "stroke-linecap": "round", "vector-effect": "non-scaling-stroke" }));
  if (other) point(other.value, COLOURS[1]);
  point(judged.value, COLOURS[0]);
  return drawn;
}

/** The signals that decided (of a cell that is ok, the first), and all of them on demand. */
function draw_evidence(sides) {
  const [{ block: own }, beside] = sides;
  $("why").hidden = !own.evidence.length;
  if (!own.evidence.length) return;
  const decided = own.evidence.filter((judged) => judged.label !== "ok");
  const first = decided.length ? decided : own.evidence.slice(0, 1);
  const headings = ["", "", "cell", "base", "borderline", "degenerate", "says"];
  const head = element("tr", {}, ...headings.map((text, i) => element("th", { className: i > 1 && i < 6 ? "number" : "" }, text)));
  const draw = (judged) => {
    const other = beside?.block.evidence.find((each) => each.signal.label === judged.signal.label);
    const number = (value) => element("td", { className: "number" }, shown(value, judged.signal));
    return element(
      "tr", {},
      element("td", { title: judged.signal.meaning }, judged.signal.label),
      element("td", {}, strip(judged, other)),
      ...["value", "base", "borderline", "degenerate"].map((key) => number(judged[key])),
      element("td", {}, element("span", { className: `verdict ${judged.label}` }, judged.label)),
    );
  };
  const fill = () => $("evidence").replaceChildren(head, ...($("all-signals").checked ? own.evidence : first).map(draw));
  $("why").querySelector("summary").replaceChildren(
    `Why ${verdict_of(sides[0].member.row)}: `,
    ...first.slice(0, 4).flatMap((judged, i) => [
      i ? " · " : "", `${judged.signal.label} `, element("b", {}, shown(judged.value, judged.signal)),
      judged.base === null ? "" : ` (base ${shown(judged.base, judged.signal)})`,
    ]),
  );
  $("all-signals").onchange = fill;
  fill();
}

function draw_facts(sides) {
  const columns = [...Object.entries(page.settings).map(([key, about]) => ({ key, ...about })), ...page.columns.filter((column) => !column.setting && column.key !== "experiment")];
  const told = columns.filter(({ key }) => sides.some(({ member }) => (member.row?.[key] ?? null) !== null));
  $("facts").replaceChildren(...told.map((column) => element(
    "tr", {},
    element("td", {}, column.label),
    ...sides.map(({ member }) => element("td", {}, shown(member.row?.[column.key], column))),
    element("td", { className: "meaning" }, column.meaning),
  )));
}
