// Elements and words. All text goes in as text: nothing that a stage wrote is ever read as markup.

const fill = (element, attributes, children) => {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...nodes(children));
  return element;
};
const nodes = (children) => children.flat(9).filter((c) => c !== null && c !== undefined && c !== false && c !== "");

export const h = (name, attributes, ...children) => fill(document.createElement(name), attributes, children);
export const s = (name, attributes, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);

// Put children into an element, unless it has the same already: so what people read, select or focus stays.
export const put = (element, key, make) => {
  const text = JSON.stringify(key ?? null);
  if (element.put === text) return element;
  element.put = text;
  element.replaceChildren(...nodes([make()]));
  return element;
};

export const path = (...words) => "/" + words.map((w) => encodeURIComponent(w)).join("/");
export const link = (href, ...children) => h("a", { href }, ...children);

export const state = (status, more) => h("span", { class: `state ${kind(status)}` }, more ?? status);
export const kind = (status) => String(status).replace(/[^a-z]+/g, "-");

let skew = 0; // seconds that the server's clock is ahead of this one's
export const setNow = (seconds) => { skew = seconds - Date.now() / 1000; };
export const now = () => Date.now() / 1000 + skew;

export const duration = (seconds) => {
  if (seconds === null || seconds === undefined) return "–";
  const t = Math.max(0, seconds);
  if (t < 10) return `${t.toFixed(1)} s`;
  if (t < 100) return `${Math.round(t)} s`;
  if (t < 6000) return `${Math.floor(t / 60)} min ${Math.round(t % 60)} s`;
  return `${Math.floor(t / 3600)} h ${Math.floor((t % 3600) / 60)} min`;
};
// A time that goes on: it is written anew every second.
export const since = (started) => h("span", { "data-since": started }, duration(now() - started));
setInterval(() => {
  for (const e of document.querySelectorAll("[data-since]")) e.textContent = duration(now() - Number(e.dataset.since));
}, 1000);

export const size = (n) => {
  if (typeof n !== "number") return "–";
  const units = ["B", "kB", "MB", "GB", "TB"];
  let i = 0;
  while (n >= 1000 && i < units.length - 1) { n /= 1000; i += 1; }
  return i === 0 || n >= 100 ? `${Math.round(n)} ${units[i]}` : `${n.toFixed(1)} ${units[i]}`;
};
const two = (n) => String(n).padStart(2, "0");
export const when = (seconds) => {
  const d = new Date(seconds * 1000);
  const text = `${d.getFullYear()}-${two(d.getMonth() + 1)}-${two(d.getDate())} ${two(d.getHours())}:${two(d.getMinutes())}`;
  return h("time", { datetime: d.toISOString(), title: d.toString() }, text);
};
const fixed = (n, digits) => n.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
export const count = (n) => fixed(n, Math.abs(n) >= 10 ? 0 : 1);
// `1 step`, `2 steps`, of the word for several.
export const many = (n, noun) => `${n.toLocaleString("en")} ${n === 1 ? noun.replace(/ies$/, "y").replace(/([^s])s$/, "$1") : noun}`;

// A measured value, by what its name says of its unit: those of a kind have as many digits, as in the report.
export const value = (name, v) => {
  if (typeof v === "boolean" || v === null || v === undefined) return v === null || v === undefined ? "–" : String(v);
  if (typeof v !== "number") return typeof v === "object" ? JSON.stringify(v) : String(v);
  if (/bytes$/.test(name)) return size(v);
  if (/per_s(econd)?$/.test(name)) return count(v);
  if (/(^|_)(s|seconds)$/.test(name)) return v < 1 ? `${(v * 1000).toPrecision(3)} ms` : duration(v);
  if (SHARE.test(name)) return fixed(v, 3);
  if (LOSS.test(name)) return fixed(v, 4);
  return figure(v);
};
const SHARE = /accuracy|exact_match|agreement|(^|_)(f1|share)(_|$)/;
const LOSS = /loss(_before)?$/;
// A number of which nothing is known, and those along an axis, which want as few digits as they need.
const figure = (v) => {
  if (Number.isInteger(v)) return v.toLocaleString("en");
  if (Math.abs(v) >= 1000) return count(v);
  return Math.abs(v) < 1e-4 ? Number(v.toPrecision(3)).toExponential() : String(Number(v.toPrecision(4)));
};
export const tick = (name, v) => (SHARE.test(name) || LOSS.test(name) ? figure(v) : value(name, v));
// The words for a name; the unit at its end is said by the value.
export const words = (name) => name
  .replace(/_per_s(econd)?$/, "/s")
  .replace(/(?:^|_)bytes$/, (_, at) => (/(memory|size)$/.test(name.slice(0, at)) ? "" : "_size"))
  .replace(/(?:^|_)(s|seconds)$/, (_, unit, at) => (/time|latency/.test(name.slice(0, at)) ? "" : "_time"))
  .replaceAll("_", " ").trim();

// The order in which states are told, everywhere.
const STATES = ["done", "reused", "running", "waiting", "pending", "failed", "stopped", "died", "not run"];
const place = (status) => (STATES.includes(status) ? STATES.indexOf(status) : STATES.length);
export const inOrder = (statuses) => [...new Set(statuses)].sort((a, b) => place(a) - place(b));

// The first characters of a digest; all of it is shown by pointing at it, and copied by a click.
export const digest = (text) => {
  const short = String(text ?? "").replace("sha256:", "").slice(0, 12) || "–";
  if (!text) return short;
  const button = h("button", { class: "digest", type: "button", title: `${text}: copy` }, short);
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "copied";
    } catch {
      button.textContent = String(text);
    }
    setTimeout(() => { button.textContent = short; }, 1500);
  });
  return button;
};

// A table whose cells have their column's name beside them where a screen is narrow.
export const table = (heads, rows, attributes = {}) =>
  h("div", { class: "wide" }, h("table", attributes,
    h("thead", null, h("tr", null, heads.map((t) => h("th", { scope: "col" }, t)))),
    h("tbody", null, rows.map((cells) => (cells instanceof Node ? cells :
      h("tr", null, cells.map((c, i) => h(i ? "td" : "th", { scope: i ? null : "row", "data-head": heads[i] }, c))))))));

export const trouble = (error) => {
  const place = document.getElementById("trouble");
  place.hidden = !error;
  place.textContent = error ? [error.where ? `${error.where}: ` : "", error.what, error.fix ? `. ${error.fix}` : ""].join("") : "";
};
