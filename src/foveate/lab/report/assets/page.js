"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (name) => document.getElementById(name);

/* An element with properties and children; text is always text, never markup. */
function make(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role") node.setAttribute(name, value);
    else node[name] = value;
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

function draw(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const percent = (share) => `${(100 * share).toFixed(share && share < 0.1 ? 1 : 0)}\u00a0%`;
const count = (number, word) => `${number} ${word}${number === 1 ? "" : "s"}`;

function amount(number) {
  for (const [size, sign] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (number >= size) return `${(number / size).toPrecision(3)} ${sign}`;
  }
  return `${Math.round(number * 100) / 100} `;
}

/* Text for a cell of a table: what is long is folded. */
function folded(text) {
  const signs = [...text];
  return signs.length <= 240 ? text : make("details", { className: "long" }, make("summary", {}, `${signs.slice(0, 160).join("")} …`), text);
}

/* Buttons of which one is pressed; arrow keys walk through them. */
function choice(parent, labels, choose) {
  const buttons = labels.map((label, i) => {
    const button = make("button", { type: "button", "aria-pressed": "false" }, label);
    button.addEventListener("click", () => choose(i));
    button.addEventListener("keydown", (event) => {
      const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (!by) return;
      event.preventDefault();
      const next = (i + by + buttons.length) % buttons.length;
      buttons[next].focus();
      choose(next);
    });
    return button;
  });
  parent.replaceChildren(...buttons);
  return (pressed) => buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(i === pressed)));
}
