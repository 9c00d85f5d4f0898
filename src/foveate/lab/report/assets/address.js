/* What is looked at, in the address: a link leads there, and "back" goes to what was looked at before. */
const TOGETHER = 500; // milliseconds: what follows so closely, as along the slider, is one move
let moved = 0;

function note() {
  const address = `#image=${state.image + 1}&question=${state.question + 1}&step=${state.step + 1}`;
  if (address === location.hash) return;
  history[Date.now() - moved < TOGETHER ? "replaceState" : "pushState"](null, "", address);
  moved = Date.now();
}

/* Show what the address says; what it leaves out is the first image, its first question, and the first step with something to see. */
function restore() {
  const given = new URLSearchParams(location.hash.slice(1));
  const number = (name, most, otherwise) => {
    const found = Number(given.get(name));
    return Number.isInteger(found) && found >= 1 && found <= most ? found - 1 : otherwise;
  };
  moved = 0;
  const image = number("image", images.length, 0);
  state.question = number("question", images[image].cases.length, 0);
  chooseImage(image);
  go(number("step", steps.length, firstStep(current())));
}
