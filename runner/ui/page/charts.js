// Curves of what was measured, drawn by Chart.js, which is fetched when the first of them is.
import { h, tick, value, words } from "./dom.js";

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

// Mean over a window around each point, a twentieth of all points wide, as in the report.
const smooth = (points) => {
  const half = Math.max(1, Math.floor(points.length / 40));
  return points.map(([x], i) => {
    const near = points.slice(Math.max(0, i - half), i + half + 1);
    return [x, near.reduce((sum, [, y]) => sum + y, 0) / near.length];
  });
};
// The loss of a training step is of a few rows and goes up and down; that of the held-out rows is not.
const zigzags = (line) => group(line.name) === "loss" && !/^eval/.test(line.name);

// Faint upright lines at the steps where a training went on from a checkpoint.
const again = {
  id: "again",
  afterDatasetsDraw(chart, _, { marks }) {
    const { ctx, chartArea, scales: { x } } = chart;
    ctx.save();
    ctx.globalAlpha = 0.6;
    ctx.setLineDash([3, 4]);
    for (const { step, color } of marks ?? []) {
      if (step < x.min || step > x.max) continue;
      ctx.strokeStyle = color;
      ctx.beginPath();
      ctx.moveTo(x.getPixelForValue(step), chartArea.top);
      ctx.lineTo(x.getPixelForValue(step), chartArea.bottom);
      ctx.stroke();
    }
    ctx.restore();
  },
};

// Where the lines of a plot went on, each place once.
const marksOf = (lines) => {
  const marks = lines.flatMap((l) => (l.resumed ?? []).map((step) => ({ step, color: ink(l.who ? l.color : "--soft") })));
  return [...new Map(marks.map((m) => [`${m.step} ${m.color}`, m])).values()];
};

// A place for plots of curves; `update(series)` draws `[{name, label, points, color, dash, resumed, who}]`, a plot for
// each group. `resumed`: steps of checkpoints; `who`: whose they are, where there are several.
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
        const caption = h("figcaption");
        const figure = h("figure", null, caption, h("div", { class: "plot" }, canvas));
        element.append(figure);
        plot = { figure, caption, canvas, chart: new globalThis.Chart(canvas, { type: "line", data: { datasets: [] }, options: options(key, lines), plugins: [again] }) };
        made.set(key, plot);
      }
      const wentOn = [...new Set(lines.filter((l) => l.resumed?.length).map((l) =>
        `${l.who ? `${l.who} ` : ""}went on from a checkpoint at step ${l.resumed.map((s) => s.toLocaleString("en")).join(", ")}`))];
      plot.caption.textContent = [words(key), lines.some(zigzags) && "the thick line is a mean of the points around",
        wentOn.length && `dashed upright: ${wentOn.join(", ")}`].filter(Boolean).join("; ");
      plot.canvas.setAttribute("aria-label", `${words(key)} by step: ${lines.map((l) => {
        const [x, y] = l.points.at(-1) ?? [];
        return `${l.label} is ${value(l.name, y)} at step ${x}`;
      }).concat(wentOn).join("; ")}`);
      plot.chart.options = options(key, lines);
      plot.chart.data.datasets = lines.flatMap((l, i) => {
        const color = ink(l.color ?? COLORS[i % COLORS.length]);
        const line = (points, more) => ({
          label: l.label, data: points.map(([x, y]) => ({ x, y })), borderColor: color, backgroundColor: "transparent",
          borderWidth: 1.75, borderDash: l.dash ? [6, 4] : [], tension: 0, animation: false,
          pointRadius: l.points.length < 40 && /^eval/.test(l.name) ? 2.5 : 0, pointHitRadius: 8, ...more });
        const raw = { label: `${l.label}, single steps`, borderColor: `${color}4d`, borderWidth: 1, raw: true };
        return zigzags(l) ? [line(l.points, raw), line(smooth(l.points), { borderWidth: 2 })] : [line(l.points)];
      });
      plot.chart.update("none");
    }
  };

  const options = (key, lines) => ({
    animation: false, responsive: true, maintainAspectRatio: false, parsing: false, normalized: true,
    interaction: { mode: "nearest", axis: "x", intersect: false },
    plugins: {
      legend: { labels: { color: ink("--ink"), boxWidth: 18, boxHeight: 2, filter: ({ datasetIndex: i }, data) => !data.datasets[i].raw },
        onClick: (_, { datasetIndex: i }, { chart }) => {  // a line hides with its single steps
          const seen = !chart.isDatasetVisible(i);
          chart.setDatasetVisibility(i, seen);
          if (chart.data.datasets[i - 1]?.raw) chart.setDatasetVisibility(i - 1, seen);
          chart.update();
        } },
      again: { marks: marksOf(lines) },
      tooltip: { callbacks: { title: (items) => `step ${items[0]?.parsed.x}`,
        label: (item) => `${item.dataset.label}: ${value(key, item.parsed.y)}` } },
    },
    scales: {
      x: { type: "linear", title: { display: true, text: "step", color: ink("--soft") }, ticks: { color: ink("--soft"), precision: 0 },
        grid: { color: ink("--line") } },
      y: { type: wide(key, lines) ? "logarithmic" : "linear", grid: { color: ink("--line") },
        ticks: { color: ink("--soft"), maxTicksLimit: 7, callback: (v) => tick(key, v) } },
    },
  });

  const anew = () => update(shown);
  dark.addEventListener("change", anew);
  const stop = () => {
    dark.removeEventListener("change", anew);
    for (const plot of made.values()) plot.chart.destroy();
    made.clear();
  };
  return { element, update, stop };
};
