// Curves of what was measured, drawn by Chart.js, which is fetched when the first of them is.
import { h, value, words } from "./dom.js";

const COLORS = ["--running", "--failed", "--done", "--stopped", "--reused", "--soft"];
const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const dark = matchMedia("(prefers-color-scheme: dark)");

// Losses belong into one plot; anything else has one of its own.
const group = (name) => (/loss$/.test(name) ? "loss" : name);

// A loss falls steeply at first: where it falls far, a linear axis shows nothing of what comes after.
const wide = (key, lines) => {
  const found = key === "loss" ? lines.flatMap((l) => l.points.map(([, y]) => y)) : [];
  const [least, most] = [Math.min(...found), Math.max(...found)];
  return found.length > 0 && least > 0 && most / least > 20;
};

// A place for plots of curves; `update(series)` draws `[{name, label, points, color, dash}]`, a plot for each group.
export const plots = () => {
  const element = h("div", { class: "plots" });
  const made = new Map();
  let shown = [];

  const update = async (series) => {
    shown = series;
    if (!series.length) return;
    await import("/static/chart.js");
    const groups = new Map();
    for (const one of series) {
      const key = group(one.name);
      groups.set(key, [...(groups.get(key) ?? []), one]);
    }
    for (const [key, plot] of made) if (!groups.has(key)) { plot.chart.destroy(); plot.figure.remove(); made.delete(key); }
    for (const [key, lines] of groups) {
      let plot = made.get(key);
      if (!plot) {
        const canvas = h("canvas", { role: "img" });
        const figure = h("figure", null, h("figcaption", null, words(key)), h("div", { class: "plot" }, canvas));
        element.append(figure);
        plot = { figure, canvas, chart: new globalThis.Chart(canvas, { type: "line", data: { datasets: [] }, options: options(key, lines) }) };
        made.set(key, plot);
      }
      plot.canvas.setAttribute("aria-label", `${words(key)} by step: ${lines.map((l) => {
        const [x, y] = l.points.at(-1) ?? [];
        return `${l.label} is ${value(l.name, y)} at step ${x}`;
      }).join("; ")}`);
      plot.chart.options = options(key, lines);
      plot.chart.data.datasets = lines.map((l, i) => ({
        label: l.label, data: l.points.map(([x, y]) => ({ x, y })), borderColor: ink(l.color ?? COLORS[i % COLORS.length]),
        backgroundColor: "transparent", borderWidth: 1.75, borderDash: l.dash ? [6, 4] : [], tension: 0, animation: false,
        pointRadius: l.points.length < 40 && /^eval/.test(l.name) ? 2.5 : 0, pointHitRadius: 8,
      }));
      plot.chart.update("none");
    }
  };

  const options = (key, lines) => ({
    animation: false, responsive: true, maintainAspectRatio: false, parsing: false, normalized: true,
    interaction: { mode: "nearest", axis: "x", intersect: false },
    plugins: {
      legend: { labels: { color: ink("--ink"), boxWidth: 18, boxHeight: 2 } },
      tooltip: { callbacks: { title: (items) => `step ${items[0]?.parsed.x}`,
        label: (item) => `${item.dataset.label}: ${value(key, item.parsed.y)}` } },
    },
    scales: {
      x: { type: "linear", title: { display: true, text: "step", color: ink("--soft") }, ticks: { color: ink("--soft"), precision: 0 },
        grid: { color: ink("--line") } },
      y: { type: wide(key, lines) ? "logarithmic" : "linear", grid: { color: ink("--line") },
        ticks: { color: ink("--soft"), maxTicksLimit: 7, callback: (v) => value(key, v) } },
    },
  });

  const again = () => update(shown);
  dark.addEventListener("change", again);
  const stop = () => {
    dark.removeEventListener("change", again);
    for (const plot of made.values()) plot.chart.destroy();
    made.clear();
  };
  return { element, update, stop };
};
