// Draws a picture, the grid of its patches, and a colour for each.
const mix = (from, to, share) => from.map((part, k) => Math.round(part + (to[k] - part) * share));
const parse = (text) => text.split(" ").map(Number);
const rgb = (colour, alpha = 1) => `rgba(${colour.join(",")},${alpha})`;

// one hue from low to high; two hues around 0 where numbers have both signs
const makeRamp = (low, high) => {
  const stops = ["--ramp-0", "--ramp-1", "--ramp-2"].map((name) => parse(style(name)));
  const other = ["--ramp-0", "--below-1", "--below-2"].map((name) => parse(style(name)));
  const along = (own, share) => (share < 0.5 ? mix(own[0], own[1], share * 2)
    : mix(own[1], own[2], share * 2 - 1));
  if (low < 0 && high > 0) {
    const reach = Math.max(-low, high);
    return { signed: true, low: -reach, high: reach,
      colour: (value) => along(value < 0 ? other : stops, Math.min(1, Math.abs(value) / reach)) };
  }
  const width = high - low || 1;
  return { signed: false, low, high,
    colour: (value) => along(stops, Math.max(0, Math.min(1, (value - low) / width))) };
};

const gradient = (ramp) => {
  const steps = Array.from({ length: 9 }, (_, k) =>
    rgb(ramp.colour(ramp.low + (ramp.high - ramp.low) * k / 8)));
  return `linear-gradient(to right, ${steps.join(",")})`;
};

// all grids of a sample's pictures, with the number of the first token of each
const listViews = (sample) => {
  const views = [];
  let first = 0;
  sample.pictures.forEach((picture, number) => {
    let at = first + picture.ahead;
    picture.views.forEach((view, k) => {
      const name = view.whole ? "whole picture" : picture.views.length > 2 ? `tile ${k + 1}` : "tiles";
      views.push({ ...view, picture, first: at,
        name: sample.pictures.length > 1 ? `picture ${number + 1}, ${name}` : name });
      at += view.down.length * (view.across.length + (view.newline ? 1 : 0));
    });
    first += picture.tokens;
  });
  if (views.length && first === sample.tokens) return views;
  const columns = Math.ceil(Math.sqrt(sample.tokens)), rows = Math.ceil(sample.tokens / columns);
  const even = (count) => Array.from({ length: count }, (_, k) => [k / count, (k + 1) / count]);
  return [{ across: even(columns), down: even(rows), newline: false, picture: null, first: 0,
    name: "tokens in order" }];
};

const tokenAt = (view, row, column, tokens) => {
  const token = view.first + row * (view.across.length + (view.newline ? 1 : 0)) + column;
  return token < tokens ? token : null;
};

// from shares of the picture to pixels of the canvas; padding beside the picture has room
const makePlace = (view, width) => {
  const [aspect, left, right, top, bottom] = [
    view.picture ? view.picture.size[1] / view.picture.size[0] : 1,
    Math.min(0, view.across[0][0]), Math.max(1, view.across.at(-1)[1]),
    Math.min(0, view.down[0][0]), Math.max(1, view.down.at(-1)[1])];
  const height = width * aspect * (bottom - top) / (right - left);
  return { width, height,
    x: (share) => (share - left) / (right - left) * width,
    y: (share) => (share - top) / (bottom - top) * height };
};

const cellBox = (view, place, row, column) => {
  const x = place.x(view.across[column][0]), y = place.y(view.down[row][0]);
  return [x, y, place.x(view.across[column][1]) - x, place.y(view.down[row][1]) - y];
};

const findCell = (view, place, x, y) => {
  const inside = (edges, scale, at) => edges.findIndex(([from, to]) => at >= scale(from) && at < scale(to));
  const column = inside(view.across, place.x, x), row = inside(view.down, place.y, y);
  return row < 0 || column < 0 ? null : [row, column];
};

const prepare = (canvas, place) => {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(place.width * ratio);
  canvas.height = Math.round(place.height * ratio);
  canvas.style.aspectRatio = `${place.width} / ${place.height}`;
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  return context;
};

const drawPicture = (context, view, image, place, grey) => {
  context.fillStyle = style("--surround");
  context.fillRect(0, 0, place.width, place.height);
  if (!image) return;
  context.save();
  context.imageSmoothingEnabled = image.naturalWidth > 128;
  if (grey) context.filter = "grayscale(1)";
  context.drawImage(image, place.x(0), place.y(0), place.x(1) - place.x(0), place.y(1) - place.y(0));
  context.restore();
};

const drawGrid = (context, view, place) => {
  context.strokeStyle = style("--grid");
  context.lineWidth = 0.6;
  context.beginPath();
  view.down.forEach((_, row) => view.across.forEach((_, column) =>
    context.rect(...cellBox(view, place, row, column))));
  context.stroke();
};

const drawBoxes = (context, boxes, place, dash) => {
  for (const [left, top, right, bottom] of boxes || []) {
    for (const [colour, width] of [[style("--surround"), 4], [style("--mark"), 2]]) {
      context.strokeStyle = colour;
      context.lineWidth = width;
      context.setLineDash(colour === style("--mark") ? dash : []);
      context.strokeRect(place.x(left), place.y(top), place.x(right) - place.x(left), place.y(bottom) - place.y(top));
    }
  }
  context.setLineDash([]);
};

// the border of a set of patches
const drawSet = (context, view, place, inside, tokens, dash) => {
  const has = (row, column) => row >= 0 && column >= 0 && row < view.down.length
    && column < view.across.length && inside.has(tokenAt(view, row, column, tokens));
  const path = new Path2D();
  view.down.forEach((_, row) => view.across.forEach((_, column) => {
    if (!has(row, column)) return;
    const [x, y, width, height] = cellBox(view, place, row, column);
    const side = (open, ...ends) => {
      if (!open) { path.moveTo(ends[0], ends[1]); path.lineTo(ends[2], ends[3]); }
    };
    side(has(row - 1, column), x, y, x + width, y);
    side(has(row + 1, column), x, y + height, x + width, y + height);
    side(has(row, column - 1), x, y, x, y + height);
    side(has(row, column + 1), x + width, y, x + width, y + height);
  }));
  for (const [colour, width] of [[style("--surround"), 4], [style("--mark"), 2]]) {
    context.strokeStyle = colour;
    context.lineWidth = width;
    context.setLineDash(colour === style("--mark") ? dash : []);
    context.stroke(path);
  }
  context.setLineDash([]);
};

const drawCell = (context, view, place, [row, column], bold) => {
  const [x, y, width, height] = cellBox(view, place, row, column);
  for (const [colour, thick] of [[style("--halo"), bold ? 6 : 4], [style("--cursor"), bold ? 3 : 1.5]]) {
    context.strokeStyle = colour;
    context.lineWidth = thick;
    context.strokeRect(x, y, width, height);
  }
};

const drawWord = (context, text, [x, y, width, height], ink) => {
  let shown = text;
  while (shown.length > 1 && context.measureText(shown).width > width - 4) shown = shown.slice(0, -1);
  if (shown !== text) shown = `${shown.slice(0, -1)}…`;
  context.fillStyle = ink;
  context.fillText(shown, x + width / 2, y + height / 2);
};

const readable = (colour) => (0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 140 ? "#111" : "#fff");
