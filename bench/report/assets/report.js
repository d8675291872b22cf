"use strict";
// The pages are whole without this file: it sorts, filters, draws and turns pages.

const create = (tag, properties = {}, ...children) => {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
};

// What is chosen stands in the address, so that a view can be linked to.
const chosen = () => new URLSearchParams(location.hash.slice(1));
const remember = (name, value) => {
  const all = chosen();
  if (value) all.set(name, value);
  else all.delete(name);
  history.replaceState(null, "", all.size ? `#${all}` : location.pathname + location.search);
};

function choice(name, values, changed, every = "all") {
  const select = create("select", { name });
  if (every) select.append(create("option", { value: "", textContent: every }));
  for (const value of values) select.append(create("option", { value, textContent: value }));
  const wanted = chosen().get(name);
  if (values.includes(wanted)) select.value = wanted;
  select.addEventListener("change", () => {
    remember(name, select.value || every);
    changed();
  });
  return select;
}

// Of each choice, only what goes with the choices before it can be chosen. `rows` hold a value per choice.
function narrow(selects, rows, first = false) {
  let left = rows;
  selects.forEach((select, i) => {
    const there = new Set(left.map((row) => row[i]));
    for (const option of select.options) option.hidden = option.disabled = option.value !== "" && !there.has(option.value);
    if (select.value && !there.has(select.value)) select.value = first ? [...there][0] : "";
    left = left.filter((row) => !select.value || row[i] === select.value);
  });
}

for (const element of document.querySelectorAll("table.sortable")) {
  const heads = [...element.tHead.rows[0].cells].map((cell) => cell.textContent.trim());
  const size = element.tBodies[0].rows.length;
  const first = "first" in element.dataset;
  const table = new DataTable(element, {
    paging: size > 300,
    pageLength: 100,
    order: [],
    autoWidth: false,
    layout: { topStart: null, topEnd: null, bottomStart: null, bottomEnd: "paging" },
  });
  const filters = (element.dataset.filters || "").split(",").map((name) => heads.indexOf(name)).filter((i) => i >= 0);
  const texts = filters.map((index) => table.column(index).nodes().toArray().map((cell) => cell.textContent.trim()));
  if (size <= 8 && !texts.some((values) => new Set(values).size > 1)) continue;
  const rows = Array.from({ length: size }, (_, i) => texts.map((values) => values[i]));
  const show = () => {
    narrow(selects, rows, first);
    selects.forEach((select, i) => {
      const column = table.column(filters[i]).search(select.value, { exact: Boolean(select.value) });
      // What every row would repeat takes room that a phone has not got.
      column.visible(!select.value, false);
    });
    table.draw();
  };
  const selects = filters.map((index, i) => choice(heads[index], [...new Set(texts[i])], show));
  if (first) selects.forEach((select, i) => chosen().has(select.name) || (select.value = rows[0][i]));
  const search = create("input", { type: "search", ariaLabel: `Search ${element.caption.textContent}` });
  const count = create("span", { className: "dt-info" });
  count.setAttribute("role", "status");
  search.addEventListener("input", () => table.search(search.value).draw());
  table.on("draw", () => {
    const { recordsDisplay, recordsTotal } = table.page.info();
    count.textContent = recordsDisplay < recordsTotal ? `${recordsDisplay} of ${recordsTotal} rows` : "";
  });
  const controls = create("div", { className: "controls" });
  controls.append(...selects.map((select) => create("label", {}, select.name, select)), create("label", {}, "search", search), count);
  element.closest(".scroll").before(controls);
  show();
}

const dark = matchMedia("(prefers-color-scheme: dark)");
function drawCharts() {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const axis = { labelColor: colour("--text"), titleColor: colour("--text"), gridColor: colour("--line"), domainColor: colour("--soft"), tickColor: colour("--soft") };
  const mark = colour("--link");
  const config = {
    background: null,
    font: "system-ui, sans-serif",
    view: { stroke: null },
    axis: { ...axis, labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal" },
    area: { color: mark },
    line: { color: mark },
    point: { color: mark },
  };
  for (const chart of document.querySelectorAll(".chart")) {
    const source = chart.querySelector("script");
    const spec = vegaLite.compile({ ...JSON.parse(source.textContent), config }).spec;
    const at = create("div");
    at.style.width = "100%";
    chart.replaceChildren(source, at);
    new vega.View(vega.parse(spec), { renderer: "svg", container: at, hover: true }).runAsync();
  }
}
if (document.querySelector(".chart")) {
  drawCharts();
  dark.addEventListener("change", drawCharts);
}

const choose = document.querySelector("[data-choose=map]");
if (choose) {
  const maps = [...document.querySelectorAll(".map")];
  const names = [...new Set(maps.map((map) => map.dataset.name))];
  const show = () => maps.forEach((map) => (map.hidden = map.dataset.name !== select.value));
  const select = choice("attack", names, show, "");
  choose.querySelector("select").replaceWith(select);
  show();
}

const source = document.getElementById("cells");
if (source) {
  const PAGE = 12;
  const FIELDS = ["dataset", "model", "attack", "threat", "class", "outcome"];
  const { cells } = JSON.parse(source.textContent);
  const images = cells.flatMap((cell) =>
    cell.images.map(([own, was, wasSure, called, sure, outcome, distance, id, reach], line) => ({
      ...cell, class: own, was, wasSure, called, sure, outcome, distance, id, reach, line,
    })),
  );
  const rows = images.map((image) => FIELDS.map((name) => image[name]));
  const form = document.getElementById("filters");
  let start = 0;
  const selects = FIELDS.map((name, i) => {
    const values = [...new Set(rows.map((row) => row[i]))].sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
    const select = choice(name, values, () => show(0));
    form.append(create("label", {}, name, select));
    return select;
  });
  form.addEventListener("submit", (event) => event.preventDefault());

  const part = (image, column, alt) => {
    const span = create("span");
    span.setAttribute("role", "img");
    span.setAttribute("aria-label", alt);
    span.style.backgroundImage = `url("${image.file}")`;
    const rows = image.images.length;
    span.style.backgroundPosition = `${column * 50}% ${rows > 1 ? (100 * image.line) / (rows - 1) : 0}%`;
    span.style.aspectRatio = `${image.shape[1]} / ${image.shape[0]}`;
    return span;
  };
  const sure = (value) => (value === null ? "" : ` (${value.toFixed(2)})`);
  const drawn = (image) => {
    const triple = create("div", { className: "triple" },
      part(image, 0, `Original, class ${image.class}, called ${image.was}`),
      part(image, 1, `Perturbation of at most ${image.reach} per pixel`),
      part(image, 2, `Adversarial image, called ${image.called}`),
      create("small", { textContent: `${image.was}${sure(image.wasSure)}` }),
      create("small", { textContent: `± ${image.reach}` }),
      create("small", { textContent: `${image.called}${sure(image.sure)}` }),
    );
    const distance = image.distance === null ? "" : `, ${image.norm} distance ${image.distance}`;
    const caption = create("figcaption", {},
      create("strong", { textContent: image.model }), ` · ${image.attack} · ${image.threat}`,
      create("br"), `test image ${image.id}, class ${image.class}: ${image.outcome}${distance}`,
      create("br"), create("small", { textContent: `the attack fools ${image.success} % of n = ${image.n}` }),
    );
    if (image.flags) caption.append(create("br"), create("small", { className: "warn", textContent: image.flags }));
    return create("figure", {}, triple, caption);
  };
  const [previous, next] = document.querySelectorAll("#pager button");
  const show = (from) => {
    start = from;
    narrow(selects, rows);
    const wanted = selects.map((select) => select.value);
    const found = images.filter((_, i) => wanted.every((value, k) => !value || rows[i][k] === value));
    document.getElementById("gallery").replaceChildren(...found.slice(start, start + PAGE).map(drawn));
    const end = Math.min(start + PAGE, found.length);
    document.getElementById("count").textContent = found.length ? `${start + 1}–${end} of ${found.length} images` : "No image is so.";
    previous.disabled = start === 0;
    next.disabled = end >= found.length;
  };
  for (const button of [previous, next]) button.addEventListener("click", () => show(start + PAGE * Number(button.value)));
  show(0);
}
