/* Which question, which step, and everything that depends on them. */
const state = { image: 0, question: 0, step: 0 };
const images = [];
for (const entry of data.cases) {
  const known = images.find((image) => image.picture === entry.image && image.name === entry.name);
  if (known) known.cases.push(entry);
  else images.push({ picture: entry.image, name: entry.name, cases: [entry] });
}
const { steps } = data;
const loaded = data.pictures.map(({ src }) => make("img", { src, alt: "" }));
const DENSE = "stock model";
let cards = [];

const differs = (entry, told) => told.answer !== entry.dense;

function header() {
  const names = data.methods.map((method) => method.label);
  const who = names.join("").length > 30 ? `${names.length} methods` : names.join(", ").replace(/, ([^,]*)$/, " and $1");
  byId("title").textContent = `What ${who} ${names.length > 1 ? "do" : "does"} with an image`;
  const versions = Object.entries(data.versions).map(([name, version]) => `${name} ${version}`).join(", ");
  byId("facts").textContent =
    `Model ${data.model} (${data.family}): ${count(images.length, "image")}, ${count(data.cases.length, "question")}, ` +
    `${count(data.methods.length, "method")}, each next to the stock model. Move the slider to follow the tokens through the model.`;
  byId("footer").textContent = `Written with ${versions}. This file needs no network and sends nothing.`;
}

/* -- choosing ---------------------------------------------------------------------------------------------------- */

let pressImage = () => {}, pressQuestion = () => {};

function pickers() {
  const labels = images.map(({ picture, name }) => make("img", { src: data.pictures[picture].src, alt: name }));
  pressImage = choice(byId("images"), labels, (number) => { chooseImage(number); note(); });
  byId("images").hidden = images.length < 2;
}

function chooseImage(number) {
  state.image = number;
  pressImage(number);
  const labels = images[number].cases.map((entry) => {
    const others = entry.told.filter((told) => differs(entry, told)).length;
    const words = others ? `${others} of ${entry.told.length} answer differently` : "all answer as the stock model";
    return make("span", {}, make("span", { className: "words" }, entry.prompt), make("small", { className: others ? "differ" : "" }, words));
  });
  pressQuestion = choice(byId("questions"), labels, (question) => { chooseQuestion(question); note(); });
  chooseQuestion(Math.min(state.question, images[number].cases.length - 1));
}

function chooseQuestion(number) {
  state.question = number;
  pressQuestion(number);
  layCards();
  go(state.step);
}

const current = () => images[state.image].cases[state.question];

/* -- steps --------------------------------------------------------------------------------------------------------- */

function stepper() {
  const slider = byId("slider");
  slider.max = steps.length - 1;
  slider.addEventListener("input", () => move(Number(slider.value)));
  byId("back").addEventListener("click", () => move(state.step - 1));
  byId("on").addEventListener("click", () => move(state.step + 1));
  const names = { image: "Pixels", tower: "Vision tower", language: "Language model", cache: "Cache" };
  const stages = Object.entries(names).map(([stage, name]) => {
    const length = steps.filter((step) => step.stage === stage).length;
    const span = make("span", { title: name, className: length / steps.length < 0.15 ? "narrow" : "" }, name);
    span.style.flex = `${length} 1 0`;
    span.dataset.stage = stage;
    return span;
  });
  byId("stages").append(...stages);
}

function ticks() {
  const marks = steps.map((_, i) => {
    const mark = make("i", { className: current().told.some((told) => told.acts[i].length) ? "act" : "" });
    mark.style.left = `${(100 * i) / (steps.length - 1)}%`;
    return mark;
  });
  byId("ticks").replaceChildren(...marks);
}

function go(step) {
  state.step = Math.min(steps.length - 1, Math.max(0, step));
  const { name, stage } = steps[state.step], slider = byId("slider");
  slider.value = state.step;
  slider.setAttribute("aria-valuetext", name);
  byId("back").disabled = state.step === 0;
  byId("on").disabled = state.step === steps.length - 1;
  const where = `step ${state.step + 1} of ${steps.length}`, fainter = "; the fainter a cell, the fewer layers cache it";
  byId("step").setAttribute("aria-live", document.activeElement === slider ? "off" : "polite"); // the slider says it itself
  byId("step").replaceChildren(name, make("span", {}, where + (stage === "cache" ? fainter : "")));
  for (const span of byId("stages").children) span.classList.toggle("here", span.dataset.stage === stage);
  cards.forEach((card) => card(state.step));
}

function move(step) {
  go(step);
  note();
}

/* Where the pictures begin to differ from the stock model's: before it there is nothing to see. */
function firstStep(entry) {
  const differs = (frame) => frame.resized || [...frame.states].some((letter) => letter !== "a");
  const found = steps.findIndex((_, i) => entry.told.some((told) => told.shown[i].some(([number]) => differs(told.frames[number]))));
  return Math.max(0, found);
}

/* -- cards --------------------------------------------------------------------------------------------------------- */

const ACTION = { reduce: "keeps", merge: "merges", resize: "shrinks the image", park: "parks, goes on with", restore: "restores", hide: "shows", free: "keeps in the caches", skip: "sends through a part", channels: "uses channels", reuse: "reuses" };

function doing(told, step) {
  const acts = told.acts[step].map((act) => {
    if (act.says) return make("span", {}, make("b", {}, `${act.method}:`), ` ${act.says}. `);
    const what = act.patches ? "patches" : "tokens";
    return make("span", {}, make("b", {}, `${act.method} ${ACTION[act.action]}`), ` ${act.before} → ${act.after} ${what}. `);
  });
  return [...acts, make("span", { className: "truth" }, tally(told, step))];
}

/* How many cells are in which state, all grids of the step together. */
function tally(told, step) {
  const frames = told.shown[step].map(([number]) => told.frames[number]);
  const cells = frames.reduce((sum, frame) => sum + frame.states.length, 0);
  const words = STATES.map(([letter, word]) => {
    const found = frames.reduce((sum, frame) => sum + frame.states.split(letter).length - 1, 0);
    const into = letter === "m" ? ` into ${frames.reduce((sum, frame) => sum + (frame.marks ? frame.marks.length : 0), 0)}` : "";
    return found ? `${found} ${word}${into}` : "";
  }).filter(Boolean);
  return `${cells > told.full[step] ? "Patches" : "Tokens"}: ${words.join(", ")}`;
}

function answerOf(entry, text, same) {
  const parts = [make("q", {}, text || "(nothing)")];
  if (same !== null) parts.push(make("span", { className: `mark ${same ? "same" : "differs"}` }, same ? "= same answer" : "≠ differs"));
  let truth = null;
  if (entry.truth !== null) {
    const right = text === entry.truth;
    truth = make("p", { className: "truth" }, make("span", { className: right ? "right" : "wrong" }, right ? "✓ right" : `✗ the right answer is ${entry.truth}`));
  }
  return make("div", { className: "answer" }, make("p", {}, ...parts), truth);
}

function denseCard(entry) {
  const image = data.pictures[entry.image];
  const canvas = make("canvas", { role: "img", "aria-label": `${entry.name}, as the model sees it` });
  const frame = { height: 1, width: 1, states: "a" }, charts = make("div", { className: "bars" }), { full } = entry.told[0];
  const whole = (cost) => entry.told[0][cost].map((pair) => pair && [pair[1], pair[1]]);
  const node = make("article", { className: "card", "aria-label": DENSE },
    make("h3", {}, DENSE), make("p", { className: "spent" }, "everything: 100 % of the tokens, FLOPs and KV cache"), make("div", { className: "views" }, canvas),
    make("p", { className: "doing" }, make("span", { className: "truth" }, `${entry.name}, ${image.width}\u00a0×\u00a0${image.height} pixels on this page`)), charts,
    answerOf(entry, entry.dense, null));
  const point = bars(charts, { ...entry.told[0], tokens: full, flops: whole("flops"), kv: whole("kv") }, move);
  return [node, (step) => {
    show(canvas, loaded[entry.image], frame);
    point(step);
  }];
}

function card(entry, told, method) {
  const views = make("div", { className: "views" }), line = make("p", { className: "doing" }), charts = make("div", { className: "bars" });
  const { tokens, flops, kv } = told.spent;
  const node = make("article", { className: "card", "aria-label": method.label },
    make("h3", {}, method.label),
    make("p", { className: "spent" }, `${percent(tokens)} of the tokens, ${percent(flops)} of the FLOPs, ${percent(kv)} of the KV cache`),
    views, line, charts,
    make("details", {}, make("summary", {}, "all options"), make("code", {}, method.options)),
    answerOf(entry, told.answer, !differs(entry, told)));
  const point = bars(charts, told, move);
  return [node, (step) => {
    const panels = told.shown[step];
    while (views.children.length < panels.length) views.append(make("canvas", { role: "img" }));
    while (views.children.length > panels.length) views.lastChild.remove();
    views.classList.toggle("several", panels.length > 1);
    panels.forEach(([number, picture], i) => {
      const frame = told.frames[number], canvas = views.children[i];
      canvas.setAttribute("aria-label", spoken(method, frame, step));
      show(canvas, picture === null ? null : loaded[picture], frame);
    });
    line.replaceChildren(...doing(told, step));
    point(step);
  }];
}

function spoken(method, frame, step) {
  const found = STATES.map(([letter, word]) => [word, frame.states.split(letter).length - 1]).filter(([, n]) => n);
  return `${method.label} at ${steps[step].name}: ${found.map(([word, n]) => `${n} cells ${word}`).join(", ")}`;
}

/* Cells from left to right, where there are most: so many have to be told apart on a card. */
function finest(entry) {
  const across = (told) => told.shown.flatMap((panels) => panels.map(([number]) => told.frames[number].width * Math.min(3, panels.length)));
  return Math.max(...entry.told.flatMap(across));
}

function layCards() {
  const entry = current();
  byId("cards").classList.toggle("fine", finest(entry) > 40);
  const made = [denseCard(entry), ...entry.told.map((told, i) => card(entry, told, data.methods[i]))];
  byId("cards").replaceChildren(...made.map(([node]) => node));
  arrange();
  cards = made.map(([, show]) => show);
  ticks();
}

function legend() {
  const letters = new Set(data.cases.flatMap((entry) => entry.told.flatMap((told) => told.frames.flatMap((frame) => [...frame.states]))));
  const items = STATES.filter(([letter]) => letters.has(letter)).map(([letter, word, meaning]) => {
    const canvas = make("canvas", { "aria-hidden": "true" });
    swatch(canvas, letter);
    return make("li", {}, canvas, make("b", {}, word), make("span", {}, meaning));
  });
  const sample = draw("svg", { viewBox: "0 0 26 26", "aria-hidden": "true", class: "bars" },
    ...[[3, 20], [15, 9]].flatMap(([x, height]) => [draw("rect", { class: "full", x, y: 3, width: 8, height: 20 }), draw("rect", { class: "part", x, y: 23 - height, width: 8, height })]));
  items.push(make("li", {}, sample, make("b", {}, "bars"), make("span", {}, "what a step spends; outlined, what the stock model does. Press one to go there")));
  byId("legend").replaceChildren(...items);
}

/* -- all answers --------------------------------------------------------------------------------------------------- */

function table() {
  const cell = (tag, text, className = "") => make(tag, { className }, folded(text));
  const head = make("tr", {}, ...["image", "question", ...(data.cases.some((entry) => entry.truth !== null) ? ["right answer"] : []), DENSE, ...data.methods.map((method) => method.label)].map((text) => make("th", { scope: "col" }, text)));
  const rows = images.flatMap(({ name, cases }) => cases.map((entry, i) => make("tr", { className: i ? "" : "first" },
    cell("td", i ? "" : name), cell("td", entry.prompt),
    ...(head.children.length > 3 + data.methods.length ? [cell("td", entry.truth ?? "")] : []),
    cell("td", entry.dense || "(nothing)"),
    ...entry.told.map((told) => (differs(entry, told) ? cell("td", `≠ ${told.answer || "(nothing)"}`, "differs") : cell("td", told.answer || "(nothing)"))))));
  const mean = (pick) => data.methods.map((_, i) => data.cases.reduce((sum, entry) => sum + pick(entry.told[i], entry), 0) / data.cases.length);
  const blank = head.children.length - 3 - data.methods.length;
  const foot = [
    ["same answer as the stock model", mean((told, entry) => (differs(entry, told) ? 0 : 1))],
    ["visual tokens per decoder layer", mean((told) => told.spent.tokens)],
    ["FLOPs of the whole call", mean((told) => told.spent.flops)],
    ["KV cache", mean((told) => told.spent.kv)],
  ].map(([name, values]) => make("tr", {}, cell("td", ""), cell("td", name), ...Array.from({ length: blank }, () => cell("td", "")), cell("td", "100 %"), ...values.map((value) => cell("td", percent(value)))));
  byId("table").append(make("thead", {}, head), make("tbody", {}, ...rows), make("tfoot", {}, ...foot));
  hint();
  byId("table-note").textContent = "Shares are over the stock model's, means over the questions. A few questions show how methods work, not how good they are.";
}

/* Said where a part of the table is out of sight: not every system shows a bar for it. */
function hint() {
  const { scrollWidth, clientWidth } = byId("table").parentElement;
  byId("table-hint").hidden = scrollWidth <= clientWidth + 1;
}

function start() {
  readColours();
  byId("marks").open = innerWidth > 480; // on a phone the pictures come first
  header();
  pickers();
  stepper();
  legend();
  comparing();
  restore();
  addEventListener("popstate", restore);
  table();
  groupsOf("curves", data.curves);
  groupsOf("bench", data.bench);
  const again = () => { readColours(); legend(); go(state.step); };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
  let width = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; arrange(); hint(); go(state.step); } });
}

Promise.all(loaded.map((image) => image.decode().catch(() => {}))).then(start);
