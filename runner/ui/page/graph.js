// The graph of a run: where its boxes and lines go, the server has decided.
import { kind, path, s } from "./dom.js";

const PAD = 8;

export const graph = (data, run) => {
  const { width, height, boxes, lines } = data;
  const view = `${-PAD} ${-PAD} ${width + 2 * PAD} ${height + 2 * PAD}`;
  const cards = new Map();
  const svg = s("svg", { class: "graph", viewBox: view, width: width + 2 * PAD, height: height + 2 * PAD, role: "group",
    "aria-label": "the stages, and what they hand over" },
  lines.map(([a, b, d, word]) => s("g", { class: "edge" }, s("path", { d }, s("title", null, `${a} → ${b}: ${word}`)),
    tip(d))),
  Object.entries(boxes).map(([name, [x, y, w, high]]) => {
    const small = s("text", { class: "small", x: x + 14, y: y + 36 });
    const bar = s("rect", { class: "part", x: x + 1, y: y + high - 5, width: 0, height: 4, rx: 2 });
    const hint = s("title");
    const card = s("a", { href: path("runs", run, "stages", name), class: "card" }, hint,
      s("rect", { class: "box", x, y, width: w, height: high, rx: 7 }),
      s("rect", { class: "mark", x: x + 5, y: y + 7, width: 4, height: high - 14, rx: 2 }),
      s("text", { x: x + 14, y: y + 20 }, cut(name, w)), small, bar);
    cards.set(name, { card, small, bar, hint, width: w - 2 });
    return card;
  }));

  const update = (stages) => {
    for (const stage of stages) {
      const found = cards.get(stage.stage);
      if (!found) continue;
      const share = part(stage.progress);
      const more = stage.status === "running" && share !== null ? ` ${Math.round(share * 100)} %` : "";
      found.card.setAttribute("class", `card ${kind(stage.status)}`);
      found.small.textContent = stage.status + more;
      found.hint.textContent = [stage.stage, stage.uses, stage.status, stage.reason].filter(Boolean).join(" · ");
      found.bar.setAttribute("width", stage.status === "running" ? found.width * (share ?? 0) : 0);
    }
  };
  return { svg, update };
};

// How much of a stage is done, 0 to 1; null where that is not known.
export const part = (progress) => {
  const { done, total } = progress ?? {};
  return typeof done === "number" && typeof total === "number" && total > 0 ? Math.min(1, Math.max(0, done / total)) : null;
};

const cut = (name, width) => {
  const most = Math.floor((width - 26) / 7.4);
  return name.length > most ? `${name.slice(0, most - 1)}…` : name;
};

const tip = (d) => {
  const [x, y] = d.match(/[-\d.]+,[-\d.]+$/)[0].split(",").map(Number);
  return s("polygon", { points: `${x},${y} ${x - 7},${y - 4} ${x - 7},${y + 4}` });
};
