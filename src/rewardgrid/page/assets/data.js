// The page's data: gzip in base64, unpacked when it is wanted. `page` is the overview; a member is a cell or a base.

const page = {};
const members = new Map(); // by name
const $ = (id) => document.getElementById(id);

/** An element with text (never markup), attributes and children. */
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name in made && name !== "list") made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

async function unpack(id) {
  const letters = $(`data-${id}`).textContent;
  const bytes = Uint8Array.from(atob(letters), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

const libraries = new Map();
/** Run a library that lies in the page, once. The policy at its top allows it by its hash. */
function library(id) {
  if (!libraries.has(id)) {
    libraries.set(id, unpack(id).then((code) => document.head.append(element("script", { textContent: code }))));
  }
  return libraries.get(id);
}

const blocks = new Map();
/** Curves, evidence and texts of a member. */
function block(member) {
  if (!blocks.has(member.id)) blocks.set(member.id, unpack(member.id).then(JSON.parse));
  return blocks.get(member.id);
}

async function open_data() {
  Object.assign(page, JSON.parse(await unpack("overview")));
  page.cells.forEach((cell, i) => members.set(cell.name, { ...cell, id: `cell-${i}` }));
  page.bases.forEach((base, i) => members.set(base.name, { ...base, id: `base-${i}`, is_base: true }));
}

/** A figure as people read it. */
function shown(value, column = {}) {
  if (value === null || value === undefined) return "–";
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value !== "number") return String(value);
  const digits = column.digits;
  if (digits === null || digits === undefined || Math.abs(value) >= 1e4) return compact(value);
  return value.toFixed(digits);
}

function compact(value) {
  const text = value !== 0 && Math.abs(value) < 1e-3 ? value.toExponential() : String(value);
  return (text.length <= 7 ? text : value.toPrecision(3)).replace("e+", "e");
}

/** What the address says: which cell, beside which other, at which step ("final": its final samples). */
function address() {
  const said = new URLSearchParams(location.hash.slice(1));
  const known = (name) => (members.has(name) ? name : null);
  return { cell: known(said.get("cell")), beside: known(said.get("with")), step: said.get("step") };
}

function address_of({ cell, beside, step }) {
  const said = new URLSearchParams({ cell });
  if (step !== null && step !== undefined) said.set("step", step);
  if (beside) said.set("with", beside);
  return `#${said}`;
}
