"use strict";
// Names come from strangers: they only ever go into text nodes and attributes, never into markup.
const data = JSON.parse(document.getElementById("data").textContent);
const tasks = data.tasks, byId = (id) => document.getElementById(id);
const tip = byId("tip");

function el(tag, attributes, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

function told(node, text) {
  node.setAttribute("aria-label", text);
  node.addEventListener("pointermove", (event) => {
    tip.textContent = text;
    tip.hidden = false;
    const right = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8);
    const below = event.clientY + 16 + tip.offsetHeight > innerHeight ? event.clientY - tip.offsetHeight - 10 : event.clientY + 16;
    tip.style.left = `${Math.max(4, right)}px`;
    tip.style.top = `${Math.max(4, below)}px`;
  });
  node.addEventListener("pointerleave", () => { tip.hidden = true; });
  return node;
}

const show = (value) => value === undefined ? "" : value === 0 ? "0" : Math.abs(value) >= 100 ? value.toFixed(0) : Math.abs(value) < 1e-3 ? value.toExponential(1) : String(Number(value.toPrecision(3)));
const percent = (value) => `${(100 * value).toFixed(1)}%`;
const cut = (text, most) => { // the start and the end: names of one kind differ in either
  const start = Math.floor(most / 3);
  return text.length > most ? `${text.slice(0, start)}…${text.slice(start + 1 - most)}` : text;
};
const width = (texts, most) => 10 + 6.6 * Math.min(most, Math.max(0, ...texts.map((text) => text.length)));
const shade = (share, colour) => `color-mix(in oklab, var(--${colour}) ${Math.round(8 + 92 * Math.min(1, Math.max(0, share)))}%, var(--empty))`;
const colourOf = (t) => `hsl(${Math.round(360 * t / tasks.length + 210) % 360} 70% var(--light))`;

function put(id, svg) {
  byId(id).replaceChildren(svg);
}

function canvas(w, h, label) {
  return el("svg", { width: w, height: h, viewBox: `0 0 ${w} ${h}`, role: "img", "aria-label": label });
}

/* Rows of cells: labels on the left, columns named below. cell(r, c) gives {share, colour, tip, text, pick, chosen} or nothing. */
function grid(label, rows, columns, size, tall, cell, most = 34) {
  const left = width(rows, most), slanted = columns.some((name) => name.length > 3 && 7 * name.length > size + 2);
  const longest = Math.min(22, Math.max(0, ...columns.map((name) => name.length))), steep = size < 26;
  const foot = slanted ? 16 + longest * (steep ? 6 : 3.4) : 20;
  const svg = canvas(left + columns.length * size + (slanted ? longest * (steep ? 2.6 : 6) : 8), rows.length * tall + foot, label);
  rows.forEach((name, r) => {
    const y = r * tall;
    const text = el("text", { x: left - 6, y: y + tall / 2 + 4, "text-anchor": "end" }, cut(name, most));
    svg.append(name.length > most ? told(text, name) : text);
    columns.forEach((_, c) => {
      const found = cell(r, c);
      if (!found) return;
      const box = told(el("rect", {
        x: left + c * size, y, width: size, height: tall, rx: 2, class: `cell${found.pick ? " pick" : ""}${found.chosen ? " chosen" : ""}`,
        style: `fill: ${shade(found.share, found.colour || "hot")}`,
      }), found.tip);
      if (found.pick) box.addEventListener("click", found.pick);
      svg.append(box);
      if (found.text && size >= 34) {
        svg.append(el("text", {
          x: left + (c + 0.5) * size, y: y + tall / 2 + 4, "text-anchor": "middle", "pointer-events": "none",
          style: `fill: ${found.share > 0.5 ? "var(--card)" : "var(--ink)"}`,
        }, found.text));
      }
    });
  });
  const every = slanted ? Math.ceil(11 / size) : Math.ceil(width(columns, 22) / size / 1.3);
  columns.forEach((name, c) => {
    if (!slanted && c % every) return;
    const x = left + (c + 0.5) * size, y = rows.length * tall + 13;
    const attributes = slanted ? { x, y, transform: `rotate(${steep ? 65 : 28} ${x} ${y})` } : { x, y, "text-anchor": "middle" };
    svg.append(el("text", { ...attributes, class: "soft" }, cut(name, 22)));
  });
  return svg;
}

const inLayers = data.layers.filter((layer) => layer.layer !== null);
const stacks = [...new Set(inLayers.map((layer) => layer.stack))];
const numbers = [...new Set(inLayers.map((layer) => layer.layer))].sort((a, b) => a - b);
const outside = data.layers.some((layer) => layer.layer === null);
const layerName = (layer) => layer.layer === null ? (stacks.length > 1 ? "outside" : "–") : stacks.length > 1 ? `${layer.stack} ${layer.layer}` : String(layer.layer);
const where = (cell) => cell.layer === null ? cell.label : `${cell.label}, layer ${cell.layer}`;

/* --- module types by layers ------------------------------------------------------------------------------------ */
let chosen = null;

function worstPair(matrix) {
  let best = [0, 0, -1];
  matrix.forEach((row, i) => row.forEach((value, j) => { if (i < j && value > best[2]) best = [i, j, value]; }));
  return best[2] < 0 ? "" : `${tasks[best[0]]} and ${tasks[best[1]]}: ${show(best[2])} times chance`;
}

function drawField() {
  const measure = byId("measure").value;
  const cells = data.cells.filter((cell) => cell.interference);
  const types = data.groups.filter((group) => group.interference);
  const columns = outside && cells.some((cell) => cell.layer === null) ? [null, ...numbers] : numbers;
  const at = new Map(cells.map((cell) => [`${cell.group} ${cell.shape} ${cell.layer}`, cell]));
  const top = Math.max(...cells.map((cell) => cell.interference[measure]));
  const size = Math.max(11, Math.min(44, 520 / columns.length));
  put("field", grid("interference by module type and layer", types.map((type) => type.label), columns.map((n) => n === null ? "–" : String(n)), size, 24, (r, c) => {
    const cell = at.get(`${types[r].group} ${types[r].shape} ${columns[c]}`);
    if (!cell) return null;
    const found = cell.interference;
    return {
      share: found[measure] / top, text: show(Number(found[measure].toPrecision(2))), chosen: cell === chosen,
      tip: `${where(cell)} (${cell.shape.join(" × ")})\ninterference ${show(found.before)}, ${show(found.times_chance)} times chance\nleft by TSV-M: ${show(found.left)}\n${worstPair(cell.clashes)}`,
      pick: () => { chosen = cell; drawField(); drawPairs(); },
    };
  }));
}

function drawPairs() {
  const key = byId("between").value, source = chosen || data.total, matrix = source[key];
  byId("pairs-title").textContent = chosen ? where(chosen) : "all layers";
  if (!matrix) return byId("pairs").replaceChildren();
  let top = key === "cosines" ? 0.1 : 0; // less than that is next to nothing, and shall look so
  matrix.forEach((row, i) => row.forEach((value, j) => { if (i !== j) top = Math.max(top, Math.abs(value)); }));
  const size = Math.max(16, Math.min(44, 380 / tasks.length));
  put("pairs", grid("between tasks", tasks, tasks, size, Math.max(16, Math.min(32, size)), (i, j) => {
    if (i === j) return null;
    const value = matrix[i][j], name = `${tasks[i]} and ${tasks[j]}`;
    const words = { clashes: `${show(value)} times chance`, cosines: `cosine ${show(value)}`, opposed: `${percent(value)} of the entries that both changed go opposite ways` };
    const share = key === "opposed" ? Math.abs(value - 0.5) * 2 : top ? Math.abs(value) / top : 0;
    const towards = key === "clashes" ? "hot" : (key === "cosines" ? value >= 0 : value <= 0.5) ? "blue" : "orange";
    return { share, colour: towards, tip: `${name}\n${words[key]}`, text: key === "opposed" ? (100 * value).toFixed(0) : value.toFixed(key === "cosines" ? 2 : 1) };
  }, 24));
  return undefined;
}

/* --- bars by layer --------------------------------------------------------------------------------------------- */
function drawLayers() {
  const layers = data.layers.filter((layer) => layer.interference);
  const top = Math.max(...layers.map((layer) => layer.interference.before)) || 1;
  const left = 56, high = 150, step = Math.max(14, Math.min(64, 900 / layers.length)), named = layers.map(layerName);
  const slanted = named.some((name) => name.length > 3 && 7 * name.length > step), every = slanted ? 1 : Math.ceil(22 / step);
  const svg = canvas(left + layers.length * step + (slanted ? 110 : 10), high + (slanted ? 90 : 34), "interference by layer");
  for (const share of [0, 0.5, 1]) {
    const y = 10 + high * (1 - share);
    svg.append(el("line", { x1: left, x2: left + layers.length * step, y1: y, y2: y, class: "axis" }));
    svg.append(el("text", { x: left - 6, y: y + 4, "text-anchor": "end", class: "soft" }, show(Number((top * share).toPrecision(2)))));
  }
  layers.forEach((layer, i) => {
    const found = layer.interference, x = left + i * step;
    const text = `${layer.layer === null ? "outside the layers" : `layer ${layerName(layer)}`}\nbefore ${show(found.before)}, ${show(found.times_chance)} times chance\nleft by TSV-M: ${show(found.left)}`;
    for (const [key, colour, at] of [["before", "hot", 0.12], ["left", "blue", 0.52]]) {
      const tall = Math.max(1, high * found[key] / top);
      svg.append(el("rect", { x: x + at * step, y: 10 + high - tall, width: 0.36 * step, height: tall, rx: 1, style: `fill: var(--${colour})` }));
    }
    svg.append(told(el("rect", { x, y: 10, width: step, height: high, fill: "transparent" }), text));
    const middle = x + step / 2, y = high + 26;
    if (i % every) return;
    svg.append(el("text", slanted ? { x: middle, y, transform: `rotate(28 ${middle} ${y})`, class: "soft" } : { x: middle, y, "text-anchor": "middle", class: "soft" }, cut(named[i], 22)));
  });
  put("layers", svg);
}

/* --- spectra --------------------------------------------------------------------------------------------------- */
const withSpectra = data.groups.filter((group) => group.spectra);

function drawSpectra() {
  const group = withSpectra[byId("type").selectedIndex], key = byId("curve").value;
  if (!group) return;
  const { ranks } = group.spectra, lines = group.spectra[key], last = Math.max(2, ranks[ranks.length - 1]);
  const w = 640, h = 280, left = 54, foot = 38, plotW = w - left - 14, plotH = h - foot - 12;
  const top = key === "kept" ? 1 : Math.max(...lines.flat());
  const floor = key === "kept" ? 0 : Math.max(top * 1e-4, Math.min(...lines.flat().filter((value) => value > 0)));
  const x = (rank) => left + plotW * Math.log(rank) / Math.log(last);
  const y = (value) => 12 + plotH * (1 - (key === "kept" ? value : Math.log(Math.max(value, floor) / floor) / Math.log(top / floor || 2)));
  const svg = canvas(w, h, "spectra");
  const marks = key === "kept" ? [0, 0.25, 0.5, 0.75, 1] : [0, 1, 2, 3, 4].map((n) => floor * (top / floor) ** (n / 4));
  for (const value of marks) {
    svg.append(el("line", { x1: left, x2: w - 14, y1: y(value), y2: y(value), class: "axis" }));
    svg.append(el("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end", class: "soft" }, key === "kept" ? `${100 * value}%` : show(Number(value.toPrecision(2)))));
  }
  for (let rank = 1; rank <= last; rank *= 2) svg.append(el("text", { x: x(rank), y: h - 20, "text-anchor": "middle", class: "soft" }, String(rank)));
  svg.append(el("text", { x: left + plotW / 2, y: h - 4, "text-anchor": "middle", class: "soft" }, "rank k"));
  svg.append(el("line", { x1: x(group.rank), x2: x(group.rank), y1: 12, y2: 12 + plotH, class: "mark" }));
  svg.append(el("text", { x: Math.min(x(group.rank) + 5, w - 60), y: 12 + plotH - 6, class: "soft" }, `k = ${group.rank}`));
  const drawn = lines.map((line, t) => {
    const path = el("path", { class: "line", style: `stroke: ${colourOf(t)}`, d: line.map((value, i) => `${i ? "L" : "M"}${x(ranks[i]).toFixed(1)} ${y(value).toFixed(1)}`).join("") });
    svg.append(path);
    return path;
  });
  const hit = el("rect", { x: left, y: 12, width: plotW, height: plotH, fill: "transparent" });
  hit.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect(), px = (event.clientX - box.left) * w / box.width, py = (event.clientY - box.top) * h / box.height;
    let i = 0, t = 0;
    ranks.forEach((rank, n) => { if (Math.abs(x(rank) - px) < Math.abs(x(ranks[i]) - px)) i = n; });
    lines.forEach((line, n) => { if (Math.abs(y(line[i]) - py) < Math.abs(y(lines[t][i]) - py)) t = n; });
    drawn.forEach((path, n) => path.classList.toggle("faint", n !== t));
    hit.dataset.tip = `${tasks[t]}\nrank ${ranks[i]}: ${key === "kept" ? percent(lines[t][i]) : show(lines[t][i])}`;
    tip.textContent = hit.dataset.tip;
    tip.hidden = false;
    tip.style.left = `${Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8)}px`;
    tip.style.top = `${event.clientY + 16}px`;
  });
  hit.addEventListener("pointerleave", () => { tip.hidden = true; drawn.forEach((path) => path.classList.remove("faint")); });
  svg.append(hit);
  put("spectra", svg);
  byId("legend").replaceChildren(...tasks.map((task, t) => {
    const row = document.createElement("div"), dash = document.createElement("i");
    dash.style.background = colourOf(t);
    row.append(dash, task);
    row.addEventListener("pointerenter", () => drawn.forEach((path, n) => path.classList.toggle("faint", n !== t)));
    row.addEventListener("pointerleave", () => drawn.forEach((path) => path.classList.remove("faint")));
    return row;
  }));
}

/* --- norms ----------------------------------------------------------------------------------------------------- */
function drawNorms() {
  const top = Math.max(...data.layers.flatMap((layer) => layer.norms)) || 1;
  const size = Math.max(11, Math.min(56, 800 / data.layers.length));
  put("norms", grid("norms by task and layer", tasks, data.layers.map(layerName), size, 24, (t, c) => {
    const value = data.layers[c].norms[t];
    return { share: value / top, colour: "blue", text: show(Number(value.toPrecision(2))), tip: `${tasks[t]}, ${data.layers[c].layer === null ? "outside the layers" : `layer ${layerName(data.layers[c])}`}\nnorm ${show(value)}` };
  }, 24));
}

for (const group of withSpectra) byId("type").append(new Option(`${group.label} (${group.shape.join(" × ")})`));
const widest = withSpectra.findIndex((group) => group.kind === "linear");
if (widest > 0) byId("type").selectedIndex = widest;
byId("measure").addEventListener("change", drawField);
byId("between").addEventListener("change", drawPairs);
byId("type").addEventListener("change", drawSpectra);
byId("curve").addEventListener("change", drawSpectra);
byId("all").addEventListener("click", () => { chosen = null; drawField(); drawPairs(); });
if (data.total.interference) {
  drawField();
  drawLayers();
}
drawPairs();
drawSpectra();
drawNorms();
