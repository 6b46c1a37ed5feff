// All cells in a table that sorts and filters by every column (DataTables).

const ticked = new Set(); // names of the cells whose curves are drawn

const UNFINISHED = /^!?\s*(<=|>=|<|>|=)?\s*[-+.]*$/; // a filter that is not yet written to its end
const RANGE = /^(-?[\d.e+-]+)\s*\.\.\s*(-?[\d.e+-]+)$/;
const BOUND = /^(<=|>=|<|>|=)\s*(\S+)$/;

/** Whether a value passes a filter: a word, "> 0.9", "<= 3", "0.1..0.5", or "!" and one of these. */
function passes(filter, value, column) {
  const text = filter.trim().toLowerCase();
  if (UNFINISHED.test(text)) return true;
  if (text.startsWith("!")) return !passes(text.slice(1), value, column);
  const range = text.match(RANGE);
  if (range) return value !== null && value >= Number(range[1]) && value <= Number(range[2]);
  const bound = text.match(BOUND);
  if (bound && !Number.isNaN(Number(bound[2]))) {
    const limit = Number(bound[2]);
    const holds = { "<": value < limit, ">": value > limit, "<=": value <= limit, ">=": value >= limit, "=": value === limit };
    return value !== null && holds[bound[1]];
  }
  // A figure is found as it is written in the table too.
  if (typeof value === "number") return value === Number(text) || shown(value, column) === text;
  return String(value ?? "–").toLowerCase().includes(text);
}

/** Whether a filter says something that a figure can pass; words are looked for in any other column. */
function understood(filter, column) {
  const text = filter.trim().toLowerCase().replace(/^!\s*/, "");
  if (!column.numeric || UNFINISHED.test(text) || text === "–") return true;
  const numbers = text.match(RANGE)?.slice(1) ?? [text.match(BOUND)?.[2] ?? text];
  return numbers.every((number) => !Number.isNaN(Number(number)));
}

function verdict_of(row) {
  return row.verdict ?? row.state;
}

function cell_value(column, cell) {
  if (column.key === "experiment") return cell.experiments.join(", ").replaceAll("_", " ");
  if (column.key === "verdict") return verdict_of(cell.row);
  return cell.row[column.key] ?? null;
}

function make_table(on_tick) {
  const columns = [
    { key: "tick", label: "", numeric: false, shown: true },
    { key: "label", label: "cell", meaning: "opens it", numeric: false, shown: true },
    ...page.columns,
  ];
  const value = (column, cell) => (column.key === "label" ? cell.label : cell_value(column, cell));
  const drawn = (column, cell) => {
    if (column.key === "tick") {
      const box = element("input", { type: "checkbox", checked: ticked.has(cell.name), "aria-label": `draw ${cell.label}` });
      box.addEventListener("change", () => {
        ticked[box.checked ? "add" : "delete"](cell.name);
        on_tick();
      });
      return box;
    }
    if (column.key === "label") return element("a", { href: address_of({ cell: cell.name }) }, cell.label);
    const text = shown(value(column, cell), column);
    return column.key === "verdict" ? element("span", { className: `verdict ${text}` }, text) : document.createTextNode(text);
  };
  const table = new globalThis.DataTable("#table", {
    data: page.cells,
    // Every value goes into the page as a node, so that nothing in it is read as markup.
    columns: columns.map((column) => ({
      title: column.label,
      visible: column.shown,
      orderable: column.key !== "tick",
      className: column.numeric ? "number" : "",
      type: column.numeric ? "num" : "string",
      data: (cell, kind) => {
        if (kind === "display") return drawn(column, cell);
        // DataTables would read what it searches as HTML. The filters below search instead.
        if (kind === "filter") return "";
        const own = column.key === "tick" ? null : value(column, cell);
        return kind === "type" || kind === "sort" ? (own ?? (column.numeric ? -Infinity : "")) : own;
      },
    })),
    order: [],
    pageLength: 25,
    deferRender: true,
    autoWidth: false,
    layout: { topStart: null, topEnd: null, bottomStart: "info", bottomEnd: "paging" },
    language: { info: "_START_ to _END_ of _TOTAL_", infoFiltered: "(of _MAX_)", infoEmpty: "none", zeroRecords: "no cell passes the filters" },
    headerCallback: (head) => [...head.cells].forEach((cell) => cell.setAttribute("scope", "col")),
  });

  const filters = element("tr");
  const inputs = columns.map((column, i) => {
    const input = element("input", { type: "text", "aria-label": `filter ${column.label}`, placeholder: column.numeric ? "> < .." : "" });
    input.addEventListener("input", () => {
      input.setAttribute("aria-invalid", !understood(input.value, column));
      table.column(i).search("").draw();
      rejudge();
    });
    return column.key === "tick" ? null : input;
  });
  globalThis.DataTable.ext.search.push((settings, _, place) =>
    columns.every((column, i) => !inputs[i]?.value || passes(inputs[i].value, value(column, page.cells[place]), column)),
  );
  const rejudge = () => {
    show_verdicts();
    const wrong = columns.filter((column, i) => inputs[i]?.getAttribute("aria-invalid") === "true");
    $("misread").textContent = wrong.map((column) => `${column.label}: write a number, "> 0.9" or "0.1..0.5". `).join("");
  };
  const lay = () => {
    filters.replaceChildren(
      ...columns.flatMap((column, i) => (table.column(i).visible() ? [element("td", {}, inputs[i])] : [])),
    );
    $("table").tHead.append(filters);
  };
  lay();
  columns.forEach((column, i) => {
    const head = table.column(i).header();
    head.title = column.meaning ? `${column.meaning}${column.unit && column.unit !== "1" ? ` (${column.unit})` : ""}` : "";
  });

  const choose = columns.flatMap((column, i) => {
    if (i < 2) return [];
    const box = element("input", { type: "checkbox", checked: column.shown });
    box.addEventListener("change", () => {
      table.column(i).visible(box.checked);
      if (!box.checked && inputs[i].value) {
        inputs[i].value = "";
        inputs[i].dispatchEvent(new Event("input"));
      }
      lay();
    });
    return [element("label", { title: column.meaning ?? "" }, box, ` ${column.label}`)];
  });
  $("columns").querySelector(".menu").append(...choose);

  const verdict_input = inputs[columns.findIndex((column) => column.key === "verdict")];
  const show_verdicts = () => {
    const counts = new Map();
    for (const cell of page.cells) counts.set(verdict_of(cell.row), (counts.get(verdict_of(cell.row)) ?? 0) + 1);
    $("verdicts").replaceChildren(
      ...["ok", "borderline", "degenerate", "stopped", "diverged", "missing"].filter((name) => counts.has(name)).map((name) => {
        const pressed = verdict_input.value === name;
        const button = element("button", { type: "button", "aria-pressed": pressed }, element("span", { className: `verdict ${name}` }, `${counts.get(name)} ${name}`));
        button.addEventListener("click", () => {
          verdict_input.value = pressed ? "" : name;
          verdict_input.dispatchEvent(new Event("input"));
        });
        return [button, " "];
      }).flat(),
    );
  };
  show_verdicts();

  return {
    listed: () => table.rows({ search: "applied" }).data().toArray(),
    redraw: () => table.rows().invalidate("data").draw(false),
  };
}
