/* Bars along the steps of the forward pass: what a method spends there, before what the stock model does. */
const BARS = [
  ["tokens", (told, i) => [told.tokens[i], told.full[i]], (n) => `${Math.round(n * 10) / 10}`],
  ["FLOPs", (told, i) => told.flops[i], (n) => amount(n)],
  ["KV entries", (told, i) => told.kv[i], (n) => `${n}`],
];

/* Three charts; `go` is called with the step that is clicked. Gives a function that points at a step. */
function bars(parent, told, go) {
  const steps = data.steps.length;
  const charts = BARS.map(([words, pick, say]) => {
    const pairs = data.steps.map((_, i) => pick(told, i));
    const most = Math.max(1e-9, ...pairs.filter(Boolean).map((pair) => Math.max(...pair)));
    const svg = draw("svg", { viewBox: `0 0 ${steps * 10} 34`, preserveAspectRatio: "none", "aria-hidden": "true" });
    const parts = pairs.map((pair, i) => {
      if (!pair) return null;
      const [now, full] = pair.map((n) => (n / most) * 30);
      const bar = (kindOf, height) => draw("rect", { class: kindOf, x: i * 10 + 1, y: 30 - height, width: 8, height });
      const part = bar("part", now);
      svg.append(bar("full", full), part);
      return part;
    });
    const cursor = draw("rect", { class: "cursor", x: 1, y: 32, width: 8, height: 2 });
    svg.append(cursor);
    svg.addEventListener("click", (event) => {
      const box = svg.getBoundingClientRect();
      go(Math.min(steps - 1, Math.max(0, Math.floor(((event.clientX - box.left) / box.width) * steps))));
    });
    const value = make("b");
    const shared = words === "FLOPs" && told.rows > 1 ? ` of ${told.rows} prompts` : "";
    parent.append(make("div", {}, words + shared, value), svg);
    return (i) => {
      parts.forEach((part, j) => part && part.setAttribute("class", i === j ? "here" : "part"));
      cursor.setAttribute("x", i * 10 + 1);
      const pair = pairs[i];
      value.textContent = pair ? `${say(pair[0])} of ${say(pair[1])}` : "–";
    };
  });
  return (i) => charts.forEach((point) => point(i));
}
