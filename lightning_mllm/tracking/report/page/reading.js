// Says what is drawn: legend, sample, the numbers and words of the chosen patch.
const makeReading = (ui) => {
  const { state, holder, ramp, sample, view, chosen, isWords, place } = ui;
  const update = () => ui.update();
  const buildLegend = () => {
    const colours = ramp(), map = chosen(), at = place();
    const bar = make("div", { class: "ramp" });
    bar.style.background = gradient(colours);
    const name = isWords() ? (state.word ? `rank of “${state.word}” among the first ${map.k} words`
      : `${map.label} of the first word`) : map.label;
    const ends = isWords() && state.word ? [`${map.k}th`, "1st"] : [format(colours.low, map.step(at)), format(colours.high, map.step(at))];
    empty(holder.legend, make("div", { class: "ends" }, make("span", {}, ends[0]), bar, make("span", {}, ends[1])),
      make("p", { class: "quiet" }, `${name}, ${layerName(map, at)}`
        + (colours.signed ? "; two hues, 0 in the middle" : "")
        + (map.step(at) > 0 && !(isWords() && state.word) ? `; read to ${formatHalf(map.step(at))}` : "")));
  };
  const buildAbout = () => {
    const rows = [["question", sample().question], ["right answer", sample().reference], ["kind", sample().kind],
      ...Object.entries(sample().notes), ["sample", sample().sample_id]].filter(([name, text]) =>
      text && !(name === "picture" && text === sample().sample_id));
    empty(holder.about, make("dl", { class: "facts" },
      rows.map(([name, text]) => make("div", {}, make("dt", {}, name), make("dd", {}, text)))));
  };
  const describe = ([row, column]) => {
    const token = tokenAt(view(), row, column, state.maps.tokens);
    const where = `Row ${row + 1}, column ${column + 1}`;
    if (token === null) return `${where}: no token`;
    const map = chosen(), at = place(), value = map.at(at, token);
    if (isWords()) {
      const words = map.said(at, token).map((each) => `${each.word} (${format(each.score, map.step(at))})`);
      return `${where}, ${layerName(map, at)}: ${words.join(", ")}`;
    }
    return `${where}, ${layerName(map, at)}: ${map.label} ${value === null ? "none" : format(value, map.step(at))}`;
  };
  const buildPatch = () => {
    const [row, column] = state.cell;
    const token = tokenAt(view(), row, column, state.maps.tokens);
    const cells = [];
    for (const map of state.maps.values.values()) {
      const at = nearest(map, state.layer), value = token === null ? null : map.at(at, token);
      cells.push(make("tr", {}, make("th", { scope: "row" }, map.name),
        make("td", { class: "number", "data-map": map.name }, value === null ? "none" : format(value, map.step(at))),
        make("td", { class: "quiet" }, `${map.step(at) > 0 ? `${formatHalf(map.step(at))}, ` : ""}${layerName(map, at)}`)));
    }
    for (const map of state.maps.words.values()) {
      const at = nearest(map, state.layer);
      const words = token === null ? [] : map.said(at, token);
      cells.push(make("tr", {}, make("th", { scope: "row" }, map.name),
        make("td", { colspan: "2" }, words.map((each) => make("span", { class: "word" },
          each.word || "(blank)", make("small", {}, ` ${format(each.score, map.step(at))}`))),
        make("span", { class: "quiet" }, `${map.label}, ${layerName(map, at)}`))));
    }
    empty(holder.patch, make("h3", {}, `Patch in row ${row + 1}, column ${column + 1}`),
      make("table", {}, make("tbody", {}, cells)));
  };
  const buildLayers = () => {
    const map = chosen();
    if (map.layers.length < 2) { empty(holder.layers); return; }
    const [row, column] = state.cell;
    const token = tokenAt(view(), row, column, state.maps.tokens);
    const every = Array.from({ length: state.maps.tokens }, (_, k) => k);
    const line = (name, tokens, dash) => ({ name, dash,
      points: map.layers.map((layer, at) => [layer, meanOf(map, at, tokens)]) });
    const series = [line("this patch", token === null ? [] : [token], []),
      line("mean of all patches", every, [2, 3]),
      ...[...state.maps.sets].map(([name, inside], k) => line(`mean, ${name}`, [...inside],
        SET_DASHES[(k + 1) % SET_DASHES.length]))];
    empty(holder.layers, make("h3", {}, isWords() ? "The first word through the layers" : "Through the layers"), chart(series, {
      xlabel: "layer", ylabel: map.label, height: 210, mark: map.layers[place()] }));
  };
  const buildWords = () => {
    holder.words.hidden = !isWords();
    if (!isWords()) { empty(holder.words); state.word = ""; return; }
    const counts = new Map(), map = chosen(), at = place();
    for (let token = 0; token < state.maps.tokens; token += 1) {
      const word = map.first(at, token);
      counts.set(word, (counts.get(word) || 0) + 1);
    }
    const often = [...counts].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1)).slice(0, 10);
    const focused = document.activeElement && document.activeElement.id;
    const input = make("input", { type: "text", id: "word", value: state.word, autocomplete: "off",
      onchange: () => { state.word = input.value.trim(); update(); } });
    empty(holder.words, make("h3", {}, "Words of the patches"),
      labelled("Show the patches that say", input),
      make("ul", { class: "key" }, often.map(([word, count], k) => make("li", {}, make("button", {
        type: "button", id: `often-${k}`, "aria-pressed": String(word === state.word), onclick: () => {
          state.word = state.word === word ? "" : word;
          update();
        } }, `${word || "(blank)"} ${count}`)))));
    if (focused && document.getElementById(focused)) document.getElementById(focused).focus();
  };
  return { buildLegend, buildAbout, describe, buildPatch, buildLayers, buildWords };
};
