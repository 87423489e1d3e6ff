// Puts the page together.
const SHORT = { "model.checkpoint": "checkpoint", "model.policy.class_path": "policy", "data.class_path": "data",
  "status.command": "command", "status.status": "status", "status.step": "steps", "status.ended": "ended",
  "environment.versions.lightning-mllm": "lightning-mllm" };

const headOf = (report) => {
  const settings = new Map(report.settings);
  const facts = Object.entries(SHORT).filter(([name]) => settings.has(name) && settings.get(name) !== "null")
    .map(([name, short]) => [short, name.endsWith("class_path") ? settings.get(name).split(".").at(-1)
      : settings.get(name).replace(/T(\d\d:\d\d).*$/, " $1")]);
  return [make("p", { class: "kicker" }, "Report of a run"), make("h1", {}, report.name),
    make("dl", { class: "facts" }, facts.map(([name, text]) => make("div", {}, make("dt", {}, name), make("dd", {}, text))))];
};

const tablesSection = ({ tables, figures }) => {
  if (!tables.length && !Object.keys(figures).length) return null;
  const section = make("section", { id: "results" }, make("h2", {}, "Results"));
  const byFolder = new Map();
  const take = (name) => {
    const folder = name.includes("/") ? name.slice(0, name.lastIndexOf("/")) : "";
    if (!byFolder.has(folder)) byFolder.set(folder, { tables: [], figures: [] });
    return byFolder.get(folder);
  };
  tables.forEach((table) => take(table.name).tables.push(table));
  Object.entries(figures).forEach(([name, source]) => take(name).figures.push([name, source]));
  for (let [folder, { tables: own, figures: drawn }] of byFolder) {
    const lists = () => own.map((table) => opened(table.name.slice(folder ? folder.length + 1 : 0),
      `(${table.count.toLocaleString("en")} rows)`, () => filtered(table)));
    if (!folder) {
      const scores = own.find((table) => table.name === "scores");
      if (scores) {
        section.append(make("h3", {}, "Scores of the evaluations"),
          make("p", { class: "quiet" }, "Brackets: 95 % intervals."), filtered(scores));
      }
      own = own.filter((table) => table !== scores);
      if (own.length) section.append(make("div", { class: "results" }, lists()));
      continue;
    }
    const build = () => make("div", {}, drawn.length ? make("div", { class: "drawn" }, drawn.map(([name, source]) =>
      make("img", { src: source, loading: "lazy", alt: `Figure ${name}; its numbers are in the table summary` })))
      : null, lists());
    section.append(make("div", { class: "results" }, opened(folder,
      `(${own.length} ${own.length === 1 ? "table" : "tables"}${drawn.length ? `, ${drawn.length} figures` : ""})`,
      build, drawn.length > 0)));
  }
  return section;
};

const settingsSection = ({ settings }) => {
  if (!settings.length) return null;
  const section = make("section", { id: "settings" }, make("h2", {}, "Settings"));
  const place = make("div", {});
  const unset = make("input", { type: "checkbox", id: "unset" });
  const build = () => {
    const rows = settings.filter(([, value]) => unset.checked || value !== "null");
    empty(place, filtered({ columns: ["option", "value"], rows, count: rows.length, name: "Settings" }));
  };
  unset.addEventListener("change", build);
  build();
  section.append(opened("All settings, versions and state", `(${settings.length})`, () => make("div", {},
    make("label", { class: "tick", for: "unset" }, unset, "options that are not set"), place)));
  return section;
};

const start = async () => {
  const bytes = await inflate(document.getElementById("data").textContent);
  const report = JSON.parse(new TextDecoder().decode(bytes));
  const sections = [
    report.passes.length ? pictureSection(report.passes) : null,
    curvesSection(report.curves), tablesSection(report), settingsSection(report)].filter(Boolean);
  const links = make("nav", { "aria-label": "Sections" }, sections.map((section) =>
    make("a", { href: `#${section.id}` }, section.querySelector("h2").textContent)));
  document.getElementById("top").append(make("div", { class: "inner" }, ...headOf(report)), links);
  empty(document.getElementById("main"), sections);
  document.getElementById("end").append(make("p", { class: "quiet" },
    `Written ${report.written} by lightning report. One file; nothing is loaded from elsewhere. `
    + "Charts: uPlot 1.6.32 (c) 2022 Leon Sorokin, MIT licence."));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawAll);
  document.documentElement.dataset.ready = "true";
};

start().catch((error) => {
  empty(document.getElementById("main"), make("p", { role: "alert" },
    `This page can't be shown: ${error.message}. It needs a browser of 2023 or newer.`));
  throw error;
});
