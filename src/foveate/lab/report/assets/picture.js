/* A frame of tokens over the picture that it lies on. */
const STATES = [
  ["a", "alive", "a token of its own"],
  ["m", "merged", "one colour is one token; the dot is where it stands"],
  ["s", "part skipped", "not in the attention or the FFN of this layer"],
  ["p", "parked", "skips this block, comes back later"],
  ["l", "parked, still read", "lends keys and values to this block"],
  ["r", "restored", "was parked, is back"],
  ["d", "dropped", "left before the language model read it"],
  ["w", "withdrawn", "left after some layers had read it"],
  ["h", "hidden", "cached, not seen by the last word"],
  ["x", "absent", "left earlier, or part of another token"],
];

let colours = {};
function readColours() {
  const style = getComputedStyle(document.documentElement);
  for (const name of ["veil", "grid", "parked", "strike", "restored", "hidden", "plain"]) {
    colours[name] = style.getPropertyValue(`--${name}`).trim();
  }
}

function hue(owner) {
  return (owner * 137.508 + 40) % 360;
}

const shapeOf = (image, frame) => (image ? image.naturalHeight / image.naturalWidth : frame.height / frame.width);
const TALLEST = 560; // CSS pixels: a tall picture is narrower than its card, so that all of it is seen at once

/* Paint `frame` as wide as there is room for. */
function show(canvas, image, frame) {
  canvas.style.maxWidth = `${Math.round(TALLEST / shapeOf(image, frame))}px`;
  paint(canvas, image, frame, canvas.clientWidth || 280);
}

/* Paint `frame` on a canvas `width` CSS pixels wide; `image` may be null, where nobody knows what lies below. */
function paint(canvas, image, frame, width) {
  const height = Math.max(1, Math.round(width * shapeOf(image, frame)));
  const sharp = Math.min(window.devicePixelRatio || 1, 3);
  canvas.width = Math.round(width * sharp);
  canvas.height = Math.round(height * sharp);
  const pen = canvas.getContext("2d");
  pen.scale(sharp, sharp);
  underlay(pen, image, frame, width, height);
  const w = width / frame.width, h = height / frame.height;
  for (let i = 0; i < frame.states.length; i++) {
    cell(pen, frame, i, (i % frame.width) * w, Math.floor(i / frame.width) * h, w, h);
  }
  if (Math.min(w, h) >= 9 && frame.height * frame.width > 1) gridLines(pen, frame, w, h);
  if (frame.owners) groups(pen, frame, w, h);
}

function underlay(pen, image, frame, width, height) {
  if (!image) {
    pen.fillStyle = colours.plain;
    pen.fillRect(0, 0, width, height);
    return;
  }
  pen.imageSmoothingQuality = "high";
  if (!frame.resized) {
    pen.drawImage(image, 0, 0, width, height);
    return;
  }
  const [down, across] = frame.resized;
  const small = document.createElement("canvas");
  small.width = Math.max(1, Math.round(image.naturalWidth * across));
  small.height = Math.max(1, Math.round(image.naturalHeight * down));
  small.getContext("2d").drawImage(image, 0, 0, small.width, small.height);
  pen.imageSmoothingEnabled = false;
  pen.drawImage(small, 0, 0, width, height);
}

function cell(pen, frame, i, x, y, w, h) {
  const state = frame.states[i];
  const fill = (style) => {
    pen.fillStyle = style;
    pen.fillRect(x, y, w + 0.5, h + 0.5);
  };
  if (frame.layers) {
    const gone = 1 - Number(frame.layers[i]) / 9;
    if (gone) fill(`rgba(${colours.veil}, ${0.92 * gone})`);
    if (state === "h") {
      fill(`rgba(${colours.veil}, 0.4)`);
      lines(pen, x, y, w, h, `rgba(${colours.hidden}, 0.95)`, "|");
    }
    return;
  }
  if (state === "m") fill(`hsla(${hue(frame.owners[i])}, 85%, 55%, 0.5)`);
  else if (state === "d" || state === "x") fill(`rgba(${colours.veil}, 0.93)`);
  else if (state === "w") {
    fill(`rgba(${colours.veil}, 0.78)`);
    lines(pen, x, y, w, h, `rgba(${colours.strike}, 0.8)`, "\\");
  } else if (state === "s") {
    fill(`rgba(${colours.veil}, 0.3)`);
    lines(pen, x, y, w, h, `rgba(${colours.parked}, 0.6)`, "/");
  } else if (state === "p" || state === "l") {
    fill(`rgba(${colours.veil}, ${state === "p" ? 0.66 : 0.42})`);
    lines(pen, x, y, w, h, `rgba(${colours.parked}, 0.95)`, state === "p" ? "/" : ".");
  } else if (state === "r") {
    const side = Math.max(2, Math.min(w, h) * 0.3);
    pen.fillStyle = colours.restored;
    pen.beginPath();
    pen.moveTo(x, y);
    pen.lineTo(x + side, y);
    pen.lineTo(x, y + side);
    pen.fill();
  } else if (state === "h") {
    fill(`rgba(${colours.veil}, 0.5)`);
    lines(pen, x, y, w, h, `rgba(${colours.hidden}, 0.95)`, "|");
  }
}

function lines(pen, x, y, w, h, style, kind) {
  pen.strokeStyle = pen.fillStyle = style;
  pen.lineWidth = Math.max(0.6, Math.min(w, h) * 0.07);
  pen.beginPath();
  if (kind === "/") {
    pen.moveTo(x, y + h);
    pen.lineTo(x + w, y);
  } else if (kind === "\\") {
    pen.moveTo(x + w * 0.3, y + h * 0.3);
    pen.lineTo(x + w * 0.7, y + h * 0.7);
  } else if (kind === "|") {
    pen.moveTo(x + w / 2, y + h * 0.1);
    pen.lineTo(x + w / 2, y + h * 0.9);
  } else {
    pen.arc(x + w / 2, y + h / 2, Math.max(0.8, Math.min(w, h) * 0.13), 0, 7);
    pen.fill();
    return;
  }
  pen.stroke();
}

function gridLines(pen, frame, w, h) {
  pen.strokeStyle = `rgba(${colours.grid}, 0.13)`;
  pen.lineWidth = 0.5;
  pen.beginPath();
  for (let x = 1; x < frame.width; x++) {
    pen.moveTo(x * w, 0);
    pen.lineTo(x * w, frame.height * h);
  }
  for (let y = 1; y < frame.height; y++) {
    pen.moveTo(0, y * h);
    pen.lineTo(frame.width * w, y * h);
  }
  pen.stroke();
}

/* Borders where a merged token ends, and a dot where it stands. */
function groups(pen, frame, w, h) {
  const at = (x, y) => (x < 0 || y < 0 || x >= frame.width || y >= frame.height ? -2 : y * frame.width + x);
  const merged = (i) => i >= 0 && frame.states[i] === "m";
  const borders = new Path2D();
  for (let i = 0; i < frame.states.length; i++) {
    const x = i % frame.width, y = Math.floor(i / frame.width);
    for (const [j, x0, y0, x1, y1] of [[at(x + 1, y), x + 1, y, x + 1, y + 1], [at(x, y + 1), x, y + 1, x + 1, y + 1]]) {
      if (j < 0 || !(merged(i) || merged(j)) || frame.owners[i] === frame.owners[j]) continue;
      borders.moveTo(x0 * w, y0 * h);
      borders.lineTo(x1 * w, y1 * h);
    }
  }
  pen.strokeStyle = "rgba(255, 255, 255, 0.9)";
  pen.lineWidth = Math.max(0.8, Math.min(w, h) * 0.08);
  pen.stroke(borders);
  const radius = Math.max(1.2, Math.min(w, h) * 0.16);
  for (const [y, x] of frame.marks) {
    pen.beginPath();
    pen.arc(x * w, y * h, radius, 0, 7);
    pen.fillStyle = "#fff";
    pen.fill();
    pen.lineWidth = Math.max(0.8, radius * 0.4);
    pen.strokeStyle = "#111";
    pen.stroke();
  }
}

/* One cell of a state, for the legend. */
function swatch(canvas, state) {
  const merged = state === "m";
  const frame = {
    height: merged ? 2 : 1, width: merged ? 2 : 1, states: merged ? "mmmm" : state,
    owners: merged ? [0, 0, 3, 3] : undefined, marks: merged ? [[0.5, 1], [1.5, 1]] : undefined,
  };
  paint(canvas, null, frame, 26);
}
