/* How cards lie beside each other: in rows that are full, and on a phone, if asked for, two to compare. */
const NARROW = matchMedia("(max-width: 30rem)");
const pair = { on: false, sides: [0, 1] };

function arrange() {
  const box = byId("cards"), nodes = [...box.children], two = pair.on && NARROW.matches;
  box.classList.toggle("two", two);
  nodes.forEach((node, i) => {
    node.hidden = two && !pair.sides.includes(i);
    node.style.order = two ? pair.sides.indexOf(i) : i;
  });
  byId("compare").hidden = !NARROW.matches || nodes.length < 3;
  const rem = parseFloat(getComputedStyle(document.documentElement).fontSize);
  const least = rem * (box.classList.contains("fine") ? 24 : NARROW.matches ? 9 : 17.5), gap = NARROW.matches ? rem / 2 : rem;
  const fit = Math.max(1, Math.floor((box.clientWidth + gap) / (least + gap)));
  box.style.gridTemplateColumns = `repeat(${two ? 2 : columns(nodes.length, fit)}, minmax(0, 1fr))`;
}

/* At most `fit`: as many as leave the fewest empty places in the last row, and of these the most. */
function columns(cards, fit) {
  let best = 1, empty = 0;
  for (let n = 2; n <= Math.min(fit, cards); n++) {
    const left = (n - (cards % n)) % n;
    if (left <= empty || best === 1) [best, empty] = [n, left];
  }
  return best;
}

/* A switch, and which cards are on its two sides. */
function comparing() {
  const names = [DENSE, ...data.methods.map((method) => method.label)];
  const both = make("button", { type: "button", "aria-pressed": "false" }, "Compare two");
  const sides = ["Left", "Right"].map((side, at) => {
    const choose = make("select", { "aria-label": side, disabled: true }, ...names.map((name, i) => make("option", { value: i, selected: i === pair.sides[at] }, name)));
    choose.addEventListener("change", () => {
      const old = pair.sides[at], chosen = Number(choose.value);
      if (pair.sides[1 - at] === chosen) { // they change places
        pair.sides[1 - at] = old;
        sides[1 - at].value = old;
      }
      pair.sides[at] = chosen;
      arrange();
      go(state.step);
    });
    return choose;
  });
  both.addEventListener("click", () => {
    pair.on = !pair.on;
    both.setAttribute("aria-pressed", String(pair.on));
    sides.forEach((side) => { side.disabled = !pair.on; });
    arrange();
    go(state.step);
  });
  byId("compare").append(both, ...sides);
}
