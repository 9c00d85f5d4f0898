/* Lines over two axes, from plain series. */
const PALETTE = ["#0a7d78", "#b3521b", "#5b57b8", "#a8336b", "#5f7d0e", "#2374b8", "#9a6a00", "#7a4ca0", "#3f7f4f", "#b03a3a"];
const BRIGHT = ["#4fc6bf", "#f0955a", "#a19dff", "#ee82b4", "#a9cc52", "#6cb4f2", "#e0b14a", "#c596ea", "#7fcf92", "#f08585"];
const DASHES = ["", "7 4", "2 3", "9 3 2 3"];

function groupsOf(section, all) {
  byId(section).hidden = all.length === 0;
  for (const group of all) {
    const box = make("div", { className: "group" }, make("h3", {}, group.title));
    if (group.note) box.append(make("p", { className: "note" }, group.note));
    const tabs = make("div", { className: "tabs", role: "group", "aria-label": "Plot" }), place = make("div", { className: "plot" });
    box.append(tabs, place);
    byId(section).append(box);
    let here = 0;
    const press = choice(tabs, group.plots.map((plot) => plot.title), show);
    tabs.hidden = group.plots.length < 2;
    function show(number) {
      here = number;
      press(number);
      place.replaceChildren(...plotOf(group.plots[number]));
    }
    show(0);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => show(here));
    let wide = innerWidth;
    addEventListener("resize", () => { if (innerWidth !== wide) { wide = innerWidth; show(here); } });
  }
}

/* Numbers -> places, and round numbers along the axis. */
function scaleOf(axis, numbers, from, to) {
  const of = axis.log ? Math.log10 : (n) => n;
  let low = Math.min(...numbers.map(of)), high = Math.max(...numbers.map(of));
  const least = axis.percent && !axis.log ? 0.1 : 0; // a few thousandths of a share are not worth the width of a plot
  if (high - low < least) [low, high] = [(low + high - least) / 2, (low + high + least) / 2];
  if (high - low < 1e-9) { low -= axis.log ? 0.3 : Math.abs(low) * 0.1 || 1; high += axis.log ? 0.3 : Math.abs(high) * 0.1 || 1; }
  const pad = (high - low) * 0.05;
  low -= pad;
  high += pad;
  const place = (n) => from + ((of(n) - low) / (high - low)) * (to - from);
  return { place, ticks: axis.log ? logTicks(low, high) : evenTicks(low, high) };
}

function evenTicks(low, high) {
  const rough = (high - low) / 5, power = 10 ** Math.floor(Math.log10(rough));
  const size = [1, 2, 5, 10].find((step) => step * power >= rough) * power;
  const found = [];
  for (let n = Math.ceil(low / size); n * size <= high; n++) found.push(Number((n * size).toPrecision(12)));
  return found;
}

function logTicks(low, high) {
  const found = [];
  for (let power = Math.floor(low); power <= high; power++) {
    for (const digit of high - low > 2.5 ? [1] : [1, 2, 5]) {
      const at = Math.log10(digit) + power;
      if (at >= low && at <= high) found.push(digit * 10 ** power);
    }
  }
  return found;
}

const written = (axis, n) => (axis.percent ? `${Math.round(1000 * n) / 10}\u00a0%` : Math.abs(n) >= 1e4 ? amount(n).trim() : String(Number(n.toPrecision(3))));

function styles(series) {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches, ink = dark ? "#ebe9e3" : "#1d1c1a", grey = dark ? "#9a968c" : "#7d796f";
  let loud = 0, quiet = 0, level = 0;
  return series.map((line) => {
    if (line.level && !line.quiet) return { stroke: ink, dash: "", width: 1.5 };
    if (line.level) return { stroke: grey, dash: ["1 4", "12 6"][level++ % 2], width: 1.5 };
    if (line.quiet) return { stroke: grey, dash: DASHES[1 + (quiet++ % 3)], width: 1.5 };
    const number = loud++;
    return { stroke: (dark ? BRIGHT : PALETTE)[number % 10], dash: DASHES[Math.floor(number / 10) % 4], width: 2.2 };
  });
}

function plotOf(plot) {
  const width = Math.min(920, Math.max(300, byId("answers").clientWidth - 34)), height = width < 500 ? 300 : 400;
  const [left, right, top, bottom] = [50, 14, 12, 28];
  const points = plot.series.flatMap((line) => (line.level ? [] : line.points));
  const heights = plot.series.flatMap((line) => line.points.flatMap(([, y, low, high]) => [y, low ?? y, high ?? y]));
  const x = scaleOf(plot.x, (points.length ? points : plot.series[0].points).map(([n]) => n), left, width - right);
  const y = scaleOf(plot.y, heights.filter((n) => !plot.y.log || n > 0), height - bottom, top);
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${plot.title}: ${plot.y.label} over ${plot.x.label}; the numbers are in the table below` });
  for (const n of y.ticks) svg.append(draw("line", { class: "axis", x1: left, x2: width - right, y1: y.place(n), y2: y.place(n) }), draw("text", { x: left - 8, y: y.place(n) + 4, "text-anchor": "end" }, written(plot.y, n)));
  const every = Math.ceil((x.ticks.length * 62) / (width - left - right));
  x.ticks.forEach((n, i) => {
    svg.append(draw("line", { class: "axis", x1: x.place(n), x2: x.place(n), y1: height - bottom, y2: height - bottom + 5 }));
    if (i % every === 0) svg.append(draw("text", { x: x.place(n), y: height - bottom + 20, "text-anchor": "middle" }, written(plot.x, n)));
  });
  const style = styles(plot.series);
  const lines = plot.series.map((line, i) => lineOf(line, style[i], plot, x, y, left, width - right));
  svg.append(...lines);
  const [above, below] = [plot.y, plot.x].map((axis, i) => make("p", { className: i ? "axis below" : "axis" }, axis.label));
  return [above, svg, below, keysOf(plot, style, lines), numbersOf(plot), ...(plot.note ? [make("p", { className: "note" }, plot.note)] : [])];
}

function lineOf(line, { stroke, dash, width }, plot, x, y, left, right) {
  const node = draw("g", { stroke, fill: stroke });
  const points = line.level ? [[null, ...line.points[0].slice(1)]] : line.points;
  const at = points.map(([n, value]) => [n === null ? left : x.place(n), y.place(value)]);
  if (line.level) at.push([right, at[0][1]]);
  node.append(draw("path", { d: `M${at.map((each) => each.join(" ")).join("L")}`, fill: "none", "stroke-width": width, "stroke-dasharray": dash }));
  points.forEach(([n, value, low, high], i) => {
    if (line.level) return;
    const dot = draw("circle", { cx: at[i][0], cy: at[i][1], r: 3.2, stroke: "none" });
    const range = low === undefined ? "" : ` (${written(plot.y, low)} to ${written(plot.y, high)})`;
    dot.append(draw("title", {}, `${line.label}: ${written(plot.x, n)}, ${written(plot.y, value)}${range}`));
    if (low !== undefined && (!plot.y.log || low > 0)) node.append(draw("line", { x1: at[i][0], x2: at[i][0], y1: y.place(low), y2: y.place(high), "stroke-width": 1, opacity: 0.45 }));
    node.append(dot);
  });
  return node;
}

/* A key for each line; pressing it dims the others. */
function keysOf(plot, style, lines) {
  let alone = null;
  const buttons = plot.series.map((line, i) => {
    const sample = draw("svg", { viewBox: "0 0 26 10", "aria-hidden": "true" });
    sample.append(draw("line", { x1: 0, x2: 26, y1: 5, y2: 5, stroke: style[i].stroke, "stroke-width": style[i].width, "stroke-dasharray": style[i].dash }));
    const button = make("button", { type: "button", "aria-pressed": "false" }, sample, line.label);
    button.addEventListener("click", () => {
      alone = alone === i ? null : i;
      buttons.forEach((each, j) => each.setAttribute("aria-pressed", String(alone === j)));
      lines.forEach((each, j) => each.setAttribute("opacity", alone === null || alone === j ? 1 : 0.13));
    });
    return button;
  });
  return make("ul", { className: "keys", "aria-label": "Lines; press one to see it alone" }, ...buttons.map((button) => make("li", {}, button)));
}

/* What the picture shows, for who cannot see it. */
function numbersOf(plot) {
  const head = make("tr", {}, ...["line", plot.x.label, plot.y.label].map((text) => make("th", { scope: "col" }, text)));
  const rows = plot.series.flatMap((line) => line.points.map(([x, y, low, high]) => make("tr", {},
    make("td", {}, line.label), make("td", {}, line.level ? "any" : written(plot.x, x)),
    make("td", {}, written(plot.y, y) + (low === undefined ? "" : ` (${written(plot.y, low)} to ${written(plot.y, high)})`)))));
  return make("details", {}, make("summary", {}, "the numbers"), make("div", { className: "scroll", tabIndex: 0 }, make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows))));
}
