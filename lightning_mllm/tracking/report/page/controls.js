// Where sample, map, layer and marks are chosen.
const SCALES = [
  { value: "layer", text: "this layer" },
  { value: "sample", text: "all layers of this sample" },
  { value: "all", text: "all samples and layers" }];

const makeControls = (ui) => {
  const { state, holder, passes, pass, sample, view, chosen, place } = ui;
  const [show, update, draw] = [() => ui.show(), () => ui.update(), () => ui.draw()];
  const step = (by) => {
    state.sample = (state.sample + by + pass().samples.length) % pass().samples.length;
    return show();
  };
  const buildChoice = () => {
    const focused = document.activeElement && document.activeElement.id;
    const samples = choose(pass().samples.map((each, k) => ({ value: String(k),
      text: `${k + 1}. ${each.question || each.sample_id}` })), String(state.sample),
    (value) => { state.sample = Number(value); show(); });
    samples.id = "sample";
    const button = (text, name, by) => make("button", { type: "button", id: name, "aria-label": `${text} sample`,
      title: `${text} sample`, onclick: () => step(by) }, by < 0 ? "←" : "→");
    const map = choose([
      ...[...state.maps.values.keys()].map((value) => ({ value, text: value, group: "numbers" })),
      ...[...state.maps.words.keys()].map((value) => ({ value, text: `words: ${value}`, group: "words" })),
    ], state.map, (value) => {
      state.map = value;
      if (state.layer === null) state.layer = chosen().layers[Math.floor(chosen().layers.length / 2)] ?? null;
      buildChoice();
      update();
    });
    map.id = "colour";
    const scale = choose(SCALES, state.scale, (value) => { state.scale = value; update(); });
    scale.id = "scale";
    const opacity = make("input", { type: "range", id: "opacity", min: "0", max: "100",
      value: String(Math.round(state.opacity * 100)),
      oninput: () => { state.opacity = opacity.valueAsNumber / 100; draw(); } });
    const tick = (text, id, on, change) => {
      const box = make("input", { type: "checkbox", id, onchange: () => { change(box.checked); update(); } });
      box.checked = on;
      return make("label", { class: "tick", for: id }, box, text);
    };
    const marks = [...(sample().boxes || []).length ? ["boxes"] : [],
      ...(sample().distractors || []).length ? ["boxes of other objects"] : [],
      ...[...state.maps.sets.keys()].map((name) => `patches: ${name}`)];
    const pick = passes.length > 1 ? labelled("Pass", choose(passes.map((each, k) => ({
      value: String(k), text: `${each.name} (${each.samples.length} samples)` })), String(state.pass), (value) => {
      Object.assign(state, { pass: Number(value), sample: 0, map: null, layer: null });
      buildThumbs();
      show();
    })) : null;
    empty(holder.choice,
      make("fieldset", {}, make("legend", {}, "Sample"), pick,
        labelled("Sample", samples, make("span", { class: "pair" }, button("Previous", "previous", -1),
          button("Next", "next", 1))), holder.thumbs),
      make("fieldset", {}, make("legend", {}, "Map"), make("div", { class: "row" },
        labelled("Colour the patches by", map), labelled("Colours from lowest to highest of", scale),
        labelled("Opacity", opacity),
        state.views.length > 1 ? labelled("View", choose(state.views.map((each, k) => ({ value: String(k),
          text: each.name })), String(state.view), (value) => {
          state.view = Number(value);
          state.cell = [0, 0];
          update();
        })) : null),
      make("div", { class: "row ticks", role: "group", "aria-label": "What is drawn" },
        tick("grid", "grid", state.grid, (on) => { state.grid = on; }),
        tick("grey picture under the map", "grey", state.grey, (on) => { state.grey = on; }),
        marks.map((name, k) => tick(name, `mark-${k}`, state.shown.has(name),
          (on) => { if (on) state.shown.add(name); else state.shown.delete(name); })))));
    [...holder.thumbs.children].forEach((each, k) => {
      each.setAttribute("aria-pressed", String(k === state.sample));
      each.tabIndex = k === state.sample ? 0 : -1;
      if (k === state.sample) holder.thumbs.scrollLeft = each.offsetLeft - holder.thumbs.clientWidth / 2;
    });
    buildSlider();
    if (focused && document.getElementById(focused)) document.getElementById(focused).focus();
  };
  const buildThumbs = () => {
    empty(holder.thumbs, pass().samples.map((each, k) => make("button", { type: "button", tabindex: "-1",
      "aria-label": `Sample ${k + 1}: ${each.question || each.sample_id}`, title: each.question || each.sample_id,
      onclick: () => { state.sample = k; show(); } },
    each.pictures.length ? make("img", { src: each.pictures[0].source, alt: "", loading: "lazy" }) : String(k + 1))));
    holder.thumbs.setAttribute("role", "group");
    holder.thumbs.setAttribute("aria-label", "Samples; arrow keys move");
    holder.thumbs.onkeydown = (event) => {
      const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!by) return;
      event.preventDefault();
      step(by).then(() => holder.thumbs.children[state.sample].focus());
    };
  };
  const buildSlider = () => {
    const layers = chosen().layers;
    if (layers.length < 2) {
      holder.slider = null;
      empty(holder.strip);
      empty(holder.depth, make("p", { class: "quiet" }, layers.length ? `Only at layer ${layers[0]}.`
        : "These numbers are of all layers together."));
      return;
    }
    const output = make("output", { for: "layer" });
    const slider = make("input", { type: "range", id: "layer", min: "0", max: String(layers.length - 1), step: "1",
      value: String(place()), list: null, oninput: () => { state.layer = layers[slider.valueAsNumber]; update(); } });
    holder.slider = { slider, output };
    empty(holder.depth, make("div", { class: "field wide" }, make("label", { for: "layer" }, "Layer ", output),
      slider), holder.strip, make("p", { class: "quiet" },
      "Layer l is in front of decoder layer l, counted from 0, or inside it; the last one is behind all layers."));
    buildStrip();
  };
  const buildStrip = () => {
    const map = chosen();
    holder.strip.dataset.drawn = "";
    empty(holder.strip, map.layers.map((layer, k) => make("button", { type: "button", tabindex: "-1",
      "aria-label": `Layer ${layer}`, onclick: () => { state.layer = layer; update(); } },
    make("canvas", {}), make("span", {}, String(layer)))));
  };
  return { buildChoice, buildThumbs };
};
