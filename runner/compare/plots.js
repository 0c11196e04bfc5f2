"use strict";
// What the pages here draw with: colours of the style, numbers in words, axes, and plots that follow the theme.
const charts = [];

const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();

const bytes = (x) => {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let i = 0;
  while (x >= 1000 && i < units.length - 1) { x /= 1000; i += 1; }
  return `${x >= 100 || i === 0 ? Math.round(x) : x.toPrecision(2)} ${units[i]}`;
};
const plain = (x) => (x === 0 ? "0" : Math.abs(x) >= 1000 ? Math.round(x).toLocaleString("en") :
  Math.abs(x) < 0.001 ? x.toExponential(0) : String(Number(x.toPrecision(3))));
const milliseconds = (x) => `${plain(x * 1000)} ms`;
const share = (x) => x.toFixed(3);

// Of the many lines of a logarithmic axis only some get a number.
const marked = (v) => ["1", "3"].includes(v.toExponential()[0]);

const axis = (title, write, more = {}) => ({
  title: { display: Boolean(title), text: title, color: ink("soft") },
  ticks: { color: ink("soft"), callback: (v) => (more.type !== "logarithmic" || marked(v) ? write(v) : ""), maxRotation: 0, autoSkipPadding: 16 },
  grid: { color: ink("line") },
  border: { display: false },
  ...more,
});

// A vertical line at a value, with words.
const mark = {
  id: "mark",
  afterDatasetsDraw(chart, _, options) {
    if (options.at === undefined || options.at === null) return;
    const { ctx, chartArea, scales: { x } } = chart;
    const at = x.getPixelForValue(options.at);
    ctx.save();
    ctx.strokeStyle = ctx.fillStyle = ink("soft");
    ctx.setLineDash([4, 4]);
    ctx.beginPath();
    ctx.moveTo(at, chartArea.top); ctx.lineTo(at, chartArea.bottom);
    ctx.stroke();
    ctx.font = "11px system-ui, sans-serif";
    ctx.fillText(options.words, at + 4, chartArea.top - 4);
    ctx.restore();
  },
};

function draw(id, height, make) {
  const figure = document.getElementById(id);
  const box = figure.querySelector(".plot");
  box.style.height = `${height}px`;
  const canvas = box.querySelector("canvas");
  charts.push({ canvas, make, chart: new Chart(canvas, make()) });
}

function leave(id) {
  document.getElementById(id)?.remove();
}

Chart.defaults.font.family = getComputedStyle(document.body).fontFamily;

// Another theme, or paper: the plots are drawn anew in its colours.
function redraw() {
  for (const c of charts) {
    c.chart.destroy();
    c.chart = new Chart(c.canvas, c.make());
  }
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
addEventListener("beforeprint", () => { document.documentElement.classList.add("print"); redraw(); });
addEventListener("afterprint", () => { document.documentElement.classList.remove("print"); redraw(); });
