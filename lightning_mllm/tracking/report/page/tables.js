// Tables of numbers: rows are made when a table is opened, a hundred at a time.
const ROWS_AT_ONCE = 100;
const isNumber = (text) => text !== "" && Number.isFinite(Number(text));

const shorten = (text) => {
  const number = Number(text);
  return isNumber(text) && /\.\d{5,}/.test(text) ? format(number) : text;
};

const tableOf = (columns, rows, caption) => {
  const right = columns.map((_, k) => rows.slice(0, 50).every((row) => !row[k] || isNumber(row[k])));
  const head = make("tr", {}, columns.map((name, k) =>
    make("th", { scope: "col", class: right[k] ? "number" : null }, name)));
  const body = make("tbody");
  const add = (from) => {
    for (const row of rows.slice(from, from + ROWS_AT_ONCE)) {
      body.append(make("tr", {}, row.map((cell, k) =>
        make("td", { class: right[k] ? "number" : cell.length < 28 ? "short" : null }, shorten(cell)))));
    }
  };
  add(0);
  const table = make("table", {}, caption ? make("caption", {}, caption) : null,
    make("thead", {}, head), body);
  const box = make("div", { class: "scroll", tabindex: "0", role: "region",
    "aria-label": caption || "table" }, table);
  if (rows.length <= ROWS_AT_ONCE) return box;
  let shown = ROWS_AT_ONCE;
  const more = make("button", { type: "button", onclick: () => {
    add(shown);
    shown = Math.min(shown + ROWS_AT_ONCE, rows.length);
    more.textContent = `Show more rows (${shown} of ${rows.length})`;
    if (shown === rows.length) more.remove();
  } }, `Show more rows (${shown} of ${rows.length})`);
  return make("div", {}, box, more);
};

const filtered = ({ columns, rows, count, name }) => {
  const place = make("div", {});
  const said = make("p", { class: "quiet", "aria-live": "polite" });
  const show = (text) => {
    const wanted = text.toLowerCase().split(/\s+/).filter(Boolean);
    const kept = wanted.length ? rows.filter((row) => {
      const line = row.join(" ").toLowerCase();
      return wanted.every((word) => line.includes(word));
    }) : rows;
    said.textContent = `${kept.length} of ${rows.length} rows`
      + (count > rows.length ? `; the file has ${count.toLocaleString("en")}` : "");
    empty(place, tableOf(columns, kept, name));
  };
  show("");
  if (rows.length < 12) return make("div", {}, place, count > rows.length ? said : null);
  const box = make("input", { type: "search", oninput: () => show(box.value) });
  return make("div", {}, labelled("Rows that contain", box), said, place);
};

const opened = (title, note, build, open = false) => {
  const place = make("div", { class: "inside" });
  const details = make("details", { ontoggle: () => {
    if (details.open && !place.childElementCount) place.append(build());
  } }, make("summary", {}, title, note ? make("span", { class: "quiet" }, ` ${note}`) : null), place);
  if (open) details.open = true;
  return details;
};
