// Elements, texts and bytes. All text of the run goes through textContent.
const make = (tag, attributes = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined) continue;
    element.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return element;
};

const empty = (element, ...children) => {
  element.replaceChildren(...children.flat(Infinity).filter((child) => child !== null));
  return element;
};

let fields = 0;
const labelled = (text, control, more = null) => {
  control.id = control.id || `field-${++fields}`;
  return make("div", { class: "field" }, make("label", { for: control.id }, text), control, more);
};

const choose = (options, chosen, change) => {
  const list = make("select", { onchange: () => change(list.value) });
  const groups = new Map();
  for (const { value, text, group } of options) {
    const option = make("option", { value }, text);
    option.selected = value === chosen;
    if (!group) list.append(option);
    else {
      if (!groups.has(group)) {
        groups.set(group, make("optgroup", { label: group }));
        list.append(groups.get(group));
      }
      groups.get(group).append(option);
    }
  }
  return list;
};

const inflate = async (text) => {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
};

// as many digits as tell two levels of a map apart, and four or five without levels
const format = (value, step = 0) => {
  if (!Number.isFinite(value)) return "none";
  if (step > 0) return value.toFixed(Math.max(0, Math.min(9, Math.ceil(-Math.log10(step)) + 1)));
  const size = Math.abs(value);
  if (value !== 0 && (size < 1e-4 || size >= 1e6)) return value.toExponential(2);
  return String(Number(value.toPrecision(size >= 1000 ? 6 : 4)));
};
const formatHalf = (step) => `± ${Number((step / 2).toPrecision(2))}`;

const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const isDark = () => matchMedia("(prefers-color-scheme: dark)").matches;
const redraws = [];
const redrawAll = () => redraws.forEach((draw) => draw());
