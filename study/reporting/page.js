"use strict";
// Sorts every table; filters the runs and opens their details. Texts become text nodes, never markup.

const MOST_CHOICES = 20; // a column with more different values has no drop-down list
const SCREEN = 96 / 150; // figures are drawn at 150 dots per inch
const collator = new Intl.Collator("en", { numeric: true });

function element(tag, properties, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

// Numbers before texts; null, an empty cell, last in both directions.
function compare(a, b, sign) {
  if (a === null || b === null) return (a === null) - (b === null);
  if (typeof a !== typeof b) return typeof a === "number" ? -sign : sign;
  return sign * (typeof a === "number" ? a - b : collator.compare(a, b));
}

// entries: [{keys: a column's sort key each, rows: the <tr> that belong together}]
function sortable(table, entries) {
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => {
    if (!header.textContent) return;
    header.append(element("button", { type: "button" }, ...header.childNodes)); // for the keyboard: its click is the heading's
    const keys = entries.map((entry) => entry.keys[column]).filter((key) => key !== null);
    header.classList.toggle("number", keys.length > 0 && keys.every((key) => typeof key === "number"));
    header.addEventListener("click", () => {
      const sign = header.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      headers.forEach((other) => other.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
      entries.sort((a, b) => compare(a.keys[column], b.keys[column], sign));
      table.tBodies[0].append(...entries.flatMap((entry) => entry.rows));
    });
  });
}

function sortKey(cell) {
  return "key" in cell.dataset ? Number(cell.dataset.key) : cell.textContent || null;
}

function settingsTable(run, data) {
  const rows = data.flags
    .filter((flag) => Object.hasOwn(run.settings, flag) || Object.hasOwn(data.common, flag))
    .map((flag) => {
      const own = Object.hasOwn(run.settings, flag);
      const value = own ? run.settings[flag] : data.common[flag];
      return element("tr", { className: own ? "own" : "" }, element("th", { scope: "row" }, flag), element("td", {}, value));
    });
  return element("table", { className: "settings" }, element("tbody", {}, ...rows));
}

function runPicture(run, [title, link]) {
  const picture = element("img", { alt: `${title} of ${run.name}` });
  const frame = element("a", { href: link }, picture);
  picture.addEventListener("load", () => (picture.width = picture.naturalWidth * SCREEN));
  picture.addEventListener("error", () =>
    frame.replaceWith(element("p", { className: "missing" }, `The figure is missing: ${link}`)),
  );
  picture.src = link;
  return element("figure", {}, element("h3", {}, title), frame);
}

function detailsRow(run, data) {
  const content = element("div", {}, element("h3", {}, run.name), ...run.pictures.map((picture) => runPicture(run, picture)));
  if (data.flags.length) {
    content.append(
      element("h3", {}, "Settings"),
      element("p", { className: "missing" }, "Bold: what differs between the runs of this report."),
      settingsTable(run, data),
    );
  }
  return element("tr", { className: "details" }, element("td", { colSpan: data.columns.length + 2 }, content));
}

// One entry of the run table: {keys, texts, rows: [its row, once opened its details]}
function runEntry(run, data) {
  const toggle = element("button", { type: "button", className: "toggle", ariaExpanded: "false", ariaLabel: `details of ${run.name}` });
  const cells = run.cells.map(([text, key]) => element("td", { className: key === null ? "" : "number" }, text));
  const row = element("tr", { className: "run" }, element("td", {}, toggle), ...cells, element("td", { className: "folder" }, run.name));
  const keys = [null, ...run.cells.map(([text, key]) => key ?? (text || null)), run.name];
  const texts = run.cells.map(([text]) => text);
  const entry = { keys, texts, rows: [row], searched: [...texts, run.name].join("\n").toLowerCase() };
  row.addEventListener("click", (event) => {
    if (event.target !== toggle && String(getSelection())) return; // the click ended a selection of text
    if (entry.rows.length === 1) {
      entry.rows.push(detailsRow(run, data));
      row.after(entry.rows[1]);
    } else {
      entry.rows.pop().remove();
    }
    const open = entry.rows.length === 2;
    row.classList.toggle("open", open);
    toggle.ariaExpanded = String(open);
  });
  return entry;
}

// A drop-down list for every column whose values repeat: [{column, values, select}]
function choices(data, entries) {
  return data.columns.flatMap((label, column) => {
    const keys = new Map(entries.map((entry) => [entry.texts[column], entry.keys[column + 1]]));
    if (keys.size < 2 || keys.size > Math.min(MOST_CHOICES, entries.length / 2)) return [];
    const values = [...keys.keys()].sort((a, b) => compare(keys.get(a), keys.get(b), 1));
    const options = ["all", ...values.map((value) => value || "(empty)")].map((text) => element("option", {}, text));
    return [{ column, values, label, select: element("select", {}, ...options) }];
  });
}

// Returns a function that narrows the table to the runs at some places of the data: those behind a mark of a chart.
function showRuns(part, data) {
  const table = part.querySelector("table");
  const [search, count, clear, source] = ["input", "output", ".clear", ".source"].map((selector) => part.querySelector(selector));
  let picked = null;
  const headers = ["", ...data.columns, "folder"].map((column) => element("th", { scope: "col" }, column));
  headers[0].ariaLabel = "details";
  table.tHead.rows[0].append(...headers);
  const entries = data.runs.map((run, place) => Object.assign(runEntry(run, data), { place }));
  table.tBodies[0].append(...entries.map((entry) => entry.rows[0]));
  sortable(table, entries);
  const lists = choices(data, entries);
  part.querySelector(".filters").append(...lists.map(({ label, select }) => element("label", {}, `${label} `, select)));

  function filter() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const chosen = lists.filter(({ select }) => select.selectedIndex > 0);
    let shown = 0;
    for (const entry of entries) {
      const fits =
        (!picked || picked.has(entry.place)) &&
        words.every((word) => entry.searched.includes(word)) &&
        chosen.every(({ column, values, select }) => entry.texts[column] === values[select.selectedIndex - 1]);
      entry.rows.forEach((row) => (row.hidden = !fits));
      shown += fits;
    }
    count.value = `${shown} of ${entries.length} run${entries.length === 1 ? "" : "s"}`;
    clear.hidden = shown === entries.length;
    source.hidden = !picked;
  }
  function reset() {
    search.value = "";
    lists.forEach(({ select }) => (select.selectedIndex = 0));
    picked = null;
    filter();
  }
  search.addEventListener("input", filter);
  lists.forEach(({ select }) => select.addEventListener("change", filter));
  clear.addEventListener("click", () => {
    reset();
    search.focus();
  });
  filter();
  part.hidden = false;

  return (places, { name, anchor, label }) => {
    reset();
    picked = new Set(places);
    source.replaceChildren("of ", element("a", { href: `#${anchor}` }, name), `: ${label}`);
    filter();
    part.parentElement.scrollIntoView();
  };
}

// A click on a figure, or Enter, shows it whole over the page, to be scrolled; Escape, another click or the button close it.
function zoomable(picture) {
  const button = element("button", { type: "button", className: "zoom", ariaLabel: `${picture.alt}: show it whole` });
  picture.replaceWith(button);
  button.append(picture);
  button.addEventListener("click", () => showWhole(picture, button));
}

function showWhole(picture, button) {
  const whole = element("img", { src: picture.src, alt: picture.alt, width: picture.naturalWidth * SCREEN });
  const close = element("button", { type: "button", className: "close" }, "close");
  const dialog = element("dialog", { className: "whole", ariaLabel: picture.alt }, close, whole);
  const end = () => dialog.close();
  close.addEventListener("click", end);
  whole.addEventListener("click", end);
  dialog.addEventListener("close", () => {
    dialog.remove();
    button.focus();
  });
  document.body.append(dialog);
  dialog.showModal();
}

document.querySelectorAll("main > section > figure > img").forEach(zoomable);
for (const table of document.querySelectorAll("table.sortable")) {
  const rows = [...table.tBodies[0].rows];
  sortable(table, rows.map((row) => ({ keys: [...row.cells].map(sortKey), rows: [row] })));
}
const runData = document.querySelector("script.run-data");
const allRuns = runData ? JSON.parse(runData.textContent) : { runs: [] };
const pickRuns = runData ? showRuns(document.querySelector(".runs"), allRuns) : () => {};
const chartData = document.querySelector("script.chart-data");
if (chartData) drawCharts(JSON.parse(chartData.textContent), allRuns.runs.map((run) => run.name), pickRuns);
