// The section in which a sample, a map and a layer are chosen, and patches are read.
const pictureSection = (passes) => {
  const state = { pass: 0, sample: 0, map: null, layer: null, scale: "layer", opacity: 0.8, grey: true,
    grid: true, shown: new Set(["boxes"]), view: 0, cell: null, word: "", maps: null, views: [], images: new Map() };
  const section = make("section", { id: "pictures" }, make("h2", {}, "Pictures"));
  const said = make("p", { class: "live", "aria-live": "polite", role: "status" });
  const hover = make("p", { class: "tip", hidden: true });
  const plain = make("canvas", { role: "img", "aria-label": "The picture" });
  const canvas = make("canvas", { tabindex: "0", role: "application", id: "map",
    "aria-label": "Map on the patches. Arrow keys move from patch to patch.", "aria-describedby": "keys" });
  const holder = {};
  for (const name of ["choice", "thumbs", "strip", "legend", "about", "patch", "layers", "words", "depth"]) {
    holder[name] = make("div", { class: name });
  }
  const pass = () => passes[state.pass];
  const sample = () => pass().samples[state.sample];
  const view = () => state.views[state.view];
  const chosen = () => state.maps.values.get(state.map) || state.maps.words.get(state.map);
  const isWords = () => state.maps.words.has(state.map);
  const place = () => nearest(chosen(), state.layer);

  const ui = { state, holder, passes, canvas, plain, pass, sample, view, chosen, isWords, place };
  const { ramp, draw, drawStrip } = makeDrawing(ui);
  Object.assign(ui, { ramp, draw });
  const { buildChoice, buildThumbs } = makeControls(ui);
  const { buildLegend, buildAbout, describe, buildPatch, buildLayers, buildWords } = makeReading(ui);

  // --- one sample
  const show = async () => {
    const asked = sample();
    const maps = await openMaps(pass(), asked);
    const sources = [...new Set(asked.pictures.map((each) => each.source))];
    await Promise.all(sources.filter((each) => !state.images.has(each)).map(async (source) => {
      const image = new Image();
      image.src = source;
      await image.decode();
      state.images.set(source, image);
    }));
    if (asked !== sample()) return;
    state.maps = maps;
    state.views = listViews(asked);
    state.view = Math.min(state.view, state.views.length - 1);
    const names = [...maps.values.keys(), ...maps.words.keys()];
    if (!names.includes(state.map)) state.map = names[0];
    if (state.layer === null) {
      const layers = chosen().layers;
      state.layer = layers.length ? layers[Math.floor(layers.length * 0.6)] : null;
    }
    const inside = state.cell && state.cell[0] < view().down.length && state.cell[1] < view().across.length;
    if (!inside) state.cell = highest();
    buildChoice();
    buildAbout();
    update();
  };

  // the patch with the highest number
  const highest = () => {
    let best = [0, 0], top = -Infinity;
    view().down.forEach((_, row) => view().across.forEach((_, column) => {
      const token = tokenAt(view(), row, column, state.maps.tokens);
      const value = token === null ? null : chosen().at(place(), token);
      if (value !== null && value > top) { top = value; best = [row, column]; }
    }));
    return best;
  };

  const update = () => {
    if (holder.slider) {
      holder.slider.slider.value = String(place());
      holder.slider.output.textContent = String(chosen().layers[place()] ?? "");
      holder.slider.slider.setAttribute("aria-valuetext", layerName(chosen(), place()));
    }
    buildWords();
    buildLegend();
    buildPatch();
    draw();
    said.textContent = describe(state.cell);
    cancelAnimationFrame(state.later);
    state.later = requestAnimationFrame(() => { drawStrip(); buildLayers(); });
  };

  Object.assign(ui, { show, update });

  // --- pointer and keys
  const point = (event) => {
    const box = event.currentTarget.getBoundingClientRect();
    return findCell(view(), makePlace(view(), box.width), event.clientX - box.left, event.clientY - box.top);
  };
  for (const target of [plain, canvas]) {
    target.addEventListener("pointermove", (event) => {
      if (!state.maps) return;
      state.hover = point(event);
      hover.hidden = !state.hover;
      if (state.hover) hover.textContent = describe(state.hover);
      draw();
    });
    target.addEventListener("pointerleave", () => { state.hover = null; hover.hidden = true; draw(); });
    target.addEventListener("click", (event) => {
      const cell = state.maps && point(event);
      if (cell) { state.cell = cell; update(); }
    });
  }
  canvas.addEventListener("keydown", (event) => {
    const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    const layer = { PageUp: 1, PageDown: -1 }[event.key];
    if (move) {
      const within = (at, count) => Math.max(0, Math.min(count - 1, at));
      state.cell = [within(state.cell[0] + move[0], view().down.length),
        within(state.cell[1] + move[1], view().across.length)];
    } else if (event.key === "Home") {
      state.cell = [0, 0];
    } else if (layer && chosen().layers.length > 1) {
      state.layer = chosen().layers[Math.max(0, Math.min(chosen().layers.length - 1, place() + layer))];
    } else return;
    event.preventDefault();
    update();
  });
  new ResizeObserver(draw).observe(canvas);
  redraws.push(() => { if (state.maps) update(); });

  section.append(holder.choice, holder.about, holder.depth,
    make("div", { class: "stage" },
      make("figure", { class: "plain" }, make("figcaption", {}, "Picture"), make("div", { class: "frame" }, plain)),
      make("figure", {}, make("figcaption", {}, "Map"), make("div", { class: "frame" }, canvas), hover, holder.legend,
        make("p", { class: "quiet", id: "keys" },
          "Point at a patch, or choose one by a click or with the arrow keys (Home: the first); page up and down "
          + "change the layer.")),
      make("div", { class: "reading-side" }, said, holder.patch)),
    make("div", { class: "below" }, holder.layers, holder.words),
    make("div", { class: "left" }, passes.some((each) => each.left_out.length)
      ? opened("What this page leaves out", null, () => make("ul", {}, [...new Set(passes.flatMap((each) =>
        each.left_out.map((text) => (passes.length > 1 ? `${each.name}: ${text}` : text))))].map((text) =>
        make("li", {}, text)), make("li", {}, "lightning report --full writes a page with everything."))) : null));
  buildThumbs();
  show();
  return section;
};
