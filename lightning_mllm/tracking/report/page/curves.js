// Curves with uPlot, and the same numbers as a table.
const LINES = ["--line-1", "--line-2", "--line-3", "--line-4", "--line-5", "--line-6"];
const DASHES = [[], [8, 4], [2, 3], [10, 3, 2, 3], [5, 5], [1, 4]];

// series: [{name, points: [[x, y], ...], dash}]
const chart = (series, { xlabel, ylabel, height = 240, mark = null }) => {
  const xs = [...new Set(series.flatMap((each) => each.points.map(([x]) => x)))].sort((a, b) => a - b);
  const columns = series.map((each) => {
    const at = new Map(each.points);
    return xs.map((x) => (at.has(x) && Number.isFinite(at.get(x)) ? at.get(x) : null));
  });
  const place = make("div", { class: "chart" });
  const reading = make("p", { class: "reading quiet" }, "\u00a0");
  const key = make("ul", { class: "key" });
  let plot = null;
  const hidden = new Set();
  const draw = () => {
    if (plot) plot.destroy();
    const ink = style("--ink"), faint = style("--line");
    const axis = { stroke: ink, grid: { stroke: faint, width: 1 }, ticks: { stroke: faint, width: 1 },
      font: "12px system-ui, sans-serif", labelFont: "12px system-ui, sans-serif" };
    const whole = xs.every(Number.isInteger);
    plot = new uPlot({
      width: Math.max(220, place.clientWidth || 320), height,
      scales: { x: { time: false, range: xs.length > 1 ? undefined : [xs[0] - 1, xs[0] + 1] } },
      legend: { show: false },
      cursor: { drag: { x: true, y: false }, points: { size: 7 } },
      axes: [{ ...axis, label: xlabel, labelSize: 20, size: 34, incrs: whole
        ? [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 1e6] : undefined },
        { ...axis, label: ylabel, labelSize: 20, size: 58 }],
      series: [{ label: xlabel }, ...series.map((each, k) => ({
        label: each.name, stroke: style(LINES[k % LINES.length]), width: 2, show: !hidden.has(k),
        dash: each.dash || DASHES[k % DASHES.length], spanGaps: true,
        points: { show: xs.length < 60, size: 5, fill: style(LINES[k % LINES.length]) },
      }))],
      hooks: {
        setCursor: [(self) => {
          const at = self.cursor.idx;
          if (at === null || at === undefined) { reading.textContent = "\u00a0"; return; }
          const said = series.map((each, k) => (columns[k][at] === null || hidden.has(k) ? null
            : `${each.name} ${format(columns[k][at])}`)).filter(Boolean);
          reading.textContent = `${xlabel} ${format(xs[at])}: ${said.join(" · ")}`;
        }],
        draw: mark === null ? [] : [(self) => {
          const x = self.valToPos(mark, "x", true);
          self.ctx.save();
          self.ctx.strokeStyle = ink;
          self.ctx.setLineDash([3, 3]);
          self.ctx.beginPath();
          self.ctx.moveTo(x, self.bbox.top);
          self.ctx.lineTo(x, self.bbox.top + self.bbox.height);
          self.ctx.stroke();
          self.ctx.restore();
        }],
      },
    }, [xs, ...columns], place);
  };
  series.forEach((each, k) => {
    const swatch = make("span", { class: `swatch s${k % LINES.length}`, "aria-hidden": "true" });
    const button = make("button", { type: "button", "aria-pressed": "true", onclick: () => {
      if (hidden.has(k)) hidden.delete(k); else hidden.add(k);
      button.setAttribute("aria-pressed", String(!hidden.has(k)));
      plot.setSeries(k + 1, { show: !hidden.has(k) });
    } }, swatch, each.name);
    if (series.length > 1) key.append(make("li", {}, button));
  });
  const rows = xs.map((x, at) => [format(x), ...columns.map((column) =>
    (column[at] === null ? "" : String(column[at])))]);
  const table = opened("Numbers", null, () =>
    tableOf([xlabel, ...series.map((each) => each.name)], rows, `${ylabel}, per ${xlabel}`));
  const figure = make("figure", {}, key, place, reading, table);
  let width = 0;
  new ResizeObserver(() => {
    if (place.clientWidth && place.clientWidth !== width) { width = place.clientWidth; draw(); }
  }).observe(place);
  redraws.push(() => { if (plot && figure.isConnected) draw(); });
  return figure;
};

const ORDER = ["loss", "accuracy", "macro_f1"];
const rank = (name) => (ORDER.indexOf(name) + 1 || ORDER.length + 1);

// metrics of one quantity (train/loss, val/loss) share a chart; single numbers share a table
const curvesSection = (curves) => {
  const groups = new Map(), single = [];
  for (const [metric, points] of Object.entries(curves)) {
    if (points.length < 2) { single.push([metric, String(points[0][0]), String(points[0][1])]); continue; }
    const quantity = metric.startsWith("lr-") ? "learning rate" : metric.split("/").at(-1);
    if (!groups.has(quantity)) groups.set(quantity, []);
    groups.get(quantity).push({ name: metric, points });
  }
  const section = make("section", { id: "curves" }, make("h2", {}, "Curves"));
  const quantities = [...groups.keys()].sort((a, b) => rank(a) - rank(b) || (a < b ? -1 : 1));
  const grid = make("div", { class: "charts" });
  const card = (quantity) => make("div", { class: "card" }, make("h3", {}, quantity),
    chart(groups.get(quantity), { xlabel: "step", ylabel: quantity }));
  const first = quantities.filter((each) => rank(each) <= ORDER.length);
  const shown = first.length ? first : quantities.slice(0, 4);
  shown.forEach((quantity) => grid.append(card(quantity)));
  if (quantities.length) section.append(grid);
  const rest = quantities.filter((each) => !shown.includes(each));
  if (rest.length) {
    section.append(opened("More curves", `(${rest.join(", ")})`,
      () => make("div", { class: "charts" }, rest.map(card))));
  }
  if (single.length) {
    section.append(opened("Numbers of a single step", `(${single.length})`,
      () => filtered({ columns: ["metric", "step", "value"], rows: single, count: single.length,
        name: "Numbers of a single step" })));
  }
  return quantities.length || single.length ? section : null;
};
