// Draws the picture, the map, and small maps of all layers.
const SET_DASHES = [[], [5, 4], [2, 3], [9, 3]];
const STRIP = 64;

const makeDrawing = (ui) => {
  const { state, holder, canvas, plain, sample, view, chosen, isWords, place } = ui;
  const ramp = (at = place()) => makeRamp(...endsOf(chosen(), at, state.scale, state.maps.tokens));
  const fill = (at, token, colours) => {
    if (isWords() && state.word) {
      const rank = chosen().said(at, token).findIndex((each) => each.word === state.word);
      if (rank < 0) return null;
      return [colours.colour(colours.high - (colours.high - colours.low) * rank / chosen().k * 0.7), rank];
    }
    const value = chosen().at(at, token);
    return value === null ? null : [colours.colour(value), value];
  };
  const paint = (context, where, at, colours, texts) => {
    const tokens = state.maps.tokens;
    context.font = "11px system-ui, sans-serif";
    context.textAlign = "center";
    context.textBaseline = "middle";
    view().down.forEach((_, row) => view().across.forEach((_, column) => {
      const token = tokenAt(view(), row, column, tokens);
      const filled = token === null ? null : fill(at, token, colours);
      const box = cellBox(view(), where, row, column);
      if (filled) {
        context.fillStyle = rgb(filled[0], state.opacity);
        context.fillRect(...box);
      }
      if (texts && token !== null && box[2] >= 30 && (filled || !state.word)) {
        const under = filled && state.opacity > 0.5 ? filled[0] : [128, 128, 128];
        drawWord(context, chosen().first(at, token), box, readable(under));
      }
    }));
  };
  const drawMarks = (context, where) => {
    const marks = [...state.shown];
    if (marks.includes("boxes")) drawBoxes(context, sample().boxes, where, []);
    if (marks.includes("boxes of other objects")) drawBoxes(context, sample().distractors, where, [6, 4]);
    [...state.maps.sets].forEach(([name, inside], k) => {
      if (state.shown.has(`patches: ${name}`)) {
        drawSet(context, view(), where, inside, state.maps.tokens, SET_DASHES[k % SET_DASHES.length]);
      }
    });
  };
  const draw = () => {
    if (!state.maps || !canvas.parentElement.clientWidth) return;
    const image = view().picture ? state.images.get(view().picture.source) : null;
    for (const target of [plain, canvas]) {
      const where = makePlace(view(), target.parentElement.clientWidth);
      const context = prepare(target, where);
      drawPicture(context, view(), image, where, target === canvas && state.grey);
      if (target === canvas) paint(context, where, place(), ramp(), isWords());
      if (state.grid) drawGrid(context, view(), where);
      drawMarks(context, where);
      drawCell(context, view(), where, state.cell, true);
      if (state.hover) drawCell(context, view(), where, state.hover, false);
    }
  };
  // small maps of all layers; they are drawn again when something else than the layer changes
  const drawStrip = () => {
    const map = chosen(), image = view().picture ? state.images.get(view().picture.source) : null;
    const drawn = [state.pass, state.sample, state.map, state.scale, state.word, state.view, isDark()].join("|");
    const again = holder.strip.dataset.drawn !== drawn;
    const opacity = state.opacity;
    state.opacity = 1;
    [...holder.strip.children].forEach((button, k) => {
      button.setAttribute("aria-pressed", String(k === place()));
      if (!again || map.layers.length < 2) return;
      const where = makePlace(view(), STRIP);
      const context = prepare(button.firstChild, where);
      drawPicture(context, view(), image, where, true);
      paint(context, where, k, ramp(k), false);
    });
    state.opacity = opacity;
    holder.strip.dataset.drawn = drawn;
  };
  return { ramp, draw, drawStrip };
};
