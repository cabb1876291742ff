"use strict";
// Draws the charts, each panel by Vega-Lite, with one legend for all panels of a figure. Texts become text nodes, never markup.

const INK = "#1b1f23"; // on white paper, also where the page is dark
const CONFIG = {
  background: null,
  font: "system-ui, sans-serif",
  view: { stroke: null },
  axis: {
    labelColor: INK, titleColor: INK, gridColor: "#e3e6e9", domainColor: "#57606a", tickColor: "#57606a", labelFontSize: 11,
    titleFontSize: 12, titleFontWeight: "normal", labelLimit: 160, titleLimit: 0,
  },
  legend: { labelColor: INK, titleColor: INK, titleFontWeight: "normal", titleLimit: 0 },
  text: { color: INK },
};
const MOST_NAMES = 3; // of runs in a tooltip

function drawing(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  Object.entries(attributes).forEach(([name, value]) => node.setAttribute(name, value));
  node.append(...children);
  return node;
}

// The line and the marker of a series, as the panels have them.
function swatch({ colour, shape, dash, hollow }) {
  const picture = drawing("svg", { viewBox: "-15 -7 30 14", width: 30, height: 14, "aria-hidden": "true" });
  if (dash) picture.append(drawing("path", { d: "M-15,0H15", stroke: colour, "stroke-width": 2, "stroke-dasharray": dash.join(" ") }));
  if (shape) picture.append(drawing("path", { d: shape, transform: "scale(4.5)", fill: hollow ? "#fff" : colour, stroke: colour, "stroke-width": 0.3 }));
  return picture;
}

function shownNumber(value) {
  return String(Number(Number(value).toPrecision(4)));
}

// What a mark says: lines of text. names: of the runs behind it.
function told(panel, datum, names) {
  if ("v" in datum) return [`${datum.y}, ${datum.x}: ${datum.t.join(" %, by chance ")} %`];
  const one = names.length === 1 && "r" in datum;
  const lines = [one ? `${names[0]} (${panel.labels[datum.s]})` : panel.labels[datum.s]];
  if ("x" in datum) lines.push(`${panel.x.split("\n")[0]}: ${panel.names[Math.round(datum.x)] ?? shownNumber(datum.x)}`);
  const bounds = "l" in datum ? ` [${shownNumber(datum.l)}, ${shownNumber(datum.h)}]` : "";
  lines.push(`${panel.y}: ${shownNumber(datum.y)}${bounds}`);
  if ("t" in datum) lines.push(`${panel.texts}: ${datum.t}`);
  if (names.length && !one) {
    const more = names.length > MOST_NAMES ? ` and ${names.length - MOST_NAMES} more` : "";
    lines.push(`${names.length} run${names.length === 1 ? "" : "s"}: ${names.slice(0, MOST_NAMES).join(", ")}${more}`);
  }
  if (names.length) lines.push("A click shows what is behind it in the table of runs.");
  return lines;
}

const tip = Object.assign(document.createElement("div"), { className: "tip", hidden: true });
tip.setAttribute("role", "tooltip");
document.body.append(tip);

function showTip(event, lines) {
  tip.replaceChildren(...lines.map((line) => Object.assign(document.createElement("p"), { textContent: line })));
  tip.hidden = false;
  const room = { x: innerWidth - tip.offsetWidth - 8, y: innerHeight - tip.offsetHeight - 8 };
  tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, room.x))}px`;
  tip.style.top = `${event.clientY + 14 > room.y ? Math.max(4, event.clientY - tip.offsetHeight - 14) : event.clientY + 14}px`;
}

class Figure {
  // runs: names in the order of the page's data; pick(places, what) narrows the table of runs.
  constructor(frame, chart, runs, pick) {
    Object.assign(this, { frame, chart, runs, pick, views: [], hidden: new Set(), drawn: false });
    const grid = Object.assign(document.createElement("div"), { className: "panels" });
    grid.style.setProperty("--columns", chart.columns);
    this.boxes = chart.panels.map((panel) => {
      const box = Object.assign(document.createElement("div"), { className: "panel" });
      const title = Object.assign(document.createElement("p"), { className: "panel-title", textContent: panel.title });
      const canvas = Object.assign(document.createElement("div"), { className: "canvas" });
      canvas.style.minHeight = `${panel.spec.height}px`;
      box.append(title, canvas);
      grid.append(box);
      return canvas;
    });
    frame.append(this.legend(), grid);
  }

  legend() {
    const list = Object.assign(document.createElement("div"), { className: "entries" });
    list.setAttribute("role", "group");
    list.setAttribute("aria-label", "series: press to hide or show");
    if (this.chart.legend) list.append(Object.assign(document.createElement("span"), { textContent: `${this.chart.legend} ` }));
    for (const entry of this.chart.entries) {
      const button = Object.assign(document.createElement("button"), { type: "button", className: "entry", ariaPressed: "true" });
      button.append(swatch(entry), entry.label);
      button.addEventListener("click", () => this.toggle(entry.label, button));
      list.append(button);
    }
    list.hidden = !this.chart.entries.length;
    return list;
  }

  toggle(label, button) {
    if (!this.hidden.delete(label)) this.hidden.add(label);
    button.ariaPressed = String(!this.hidden.has(label));
    this.views.forEach(([view, panel]) => this.hide(view, panel));
  }

  hide(view, panel) {
    if (panel.labels.length) view.signal("hidden", [...panel.labels.keys()].filter((s) => this.hidden.has(panel.labels[s]))).runAsync();
  }

  async draw() {
    if (this.drawn) return;
    this.drawn = true;
    for (const [index, panel] of this.chart.panels.entries()) {
      const options = {
        mode: "vega-lite", renderer: "svg", ast: true, actions: false, defaultStyle: false, config: CONFIG,
        tooltip: (_, event, item, value) => (value ? showTip(event, told(panel, item.datum, this.behind(panel, item.datum))) : (tip.hidden = true)),
      };
      const { view } = await vegaEmbed(this.boxes[index], panel.spec, options);
      view.addEventListener("click", (_, item) => this.clicked(panel, item?.datum));
      this.views.push([view, panel]);
      if (this.hidden.size) this.hide(view, panel);
    }
    this.frame.dataset.drawn = "";
  }

  places(panel, datum) {
    return datum.r ?? panel.runs[datum.s] ?? [];
  }

  behind(panel, datum) {
    return this.places(panel, datum).map((place) => this.runs[place]);
  }

  clicked(panel, datum) {
    const places = datum && "s" in datum ? this.places(panel, datum) : [];
    if (!places.length) return;
    tip.hidden = true;
    this.pick(places, { name: this.frame.dataset.name, anchor: this.frame.dataset.anchor, label: panel.labels[datum.s] });
  }
}

// Those in view are drawn first, the others while nothing else is to be done.
function drawCharts(charts, runs, pick) {
  const figures = new Map();
  for (const frame of document.querySelectorAll(".chart")) figures.set(frame, new Figure(frame, charts[frame.dataset.chart], runs, pick));
  const near = new IntersectionObserver(
    (seen) => seen.filter((one) => one.isIntersecting).forEach((one) => figures.get(one.target).draw()),
    { rootMargin: "300px" },
  );
  figures.forEach((_, frame) => near.observe(frame));
  const later = window.requestIdleCallback ?? ((callback) => setTimeout(callback, 50));
  const left = [...figures.values()];
  const next = async () => {
    const figure = left.shift();
    if (!figure) return;
    await figure.draw();
    later(next);
  };
  later(next);
}
