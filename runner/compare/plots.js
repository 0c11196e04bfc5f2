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

// The values of a logarithmic axis: 1, 2 and 5 times powers of ten; fewer where their numbers would run into each other.
function ticksOf(low, high, fits) {
  const first = Math.floor(Math.log10(low)), last = Math.ceil(Math.log10(high));
  const powers = Array.from({ length: last - first + 1 }, (_, i) => first + i);
  const choices = [[1, 2, 5], [1, 3], [1]].map((heads) => powers.flatMap((p) => heads.map((h) => Number(`${h}e${p}`))));
  for (let every = 2; every < powers.length; every += 1) choices.push(powers.filter((_, i) => i % every === 0).map((p) => Number(`1e${p}`)));
  const inside = choices.map((values) => values.filter((v) => v >= low && v <= high));
  return inside.find(fits) ?? inside.at(-1);
}

// A logarithmic axis for values that are more than `apart` times apart, from well below the least of them where they are
// `bars`; a linear one from zero for others, and where one is not above zero.
function ranged(values, write, { apart = 20, bars = false } = {}) {
  const known = values.filter((v) => typeof v === "number" && (v > 0 || !bars));  // a zero has no bar anyway
  const least = Math.min(...known), most = Math.max(...known);
  if (!known.length || least <= 0 || most / least < apart) return { beginAtZero: true };
  const low = bars ? 10 ** Math.floor(Math.log10(least / 3)) : least, high = most * 1.1;
  const afterBuildTicks = (scale) => {
    const [from, to] = [Math.min(scale.min, low), Math.max(scale.max, high)].map(Math.log10);
    const lengthOf = (v) => (scale.isHorizontal() ? 7 * write(v).length + 14 : 22);
    const pixels = (a, b) => (Math.log10(b / a) / (to - from)) * ((scale.isHorizontal() ? scale.maxWidth : scale.maxHeight) - 20);
    const fits = (found) => found.every((v, i) => !i || pixels(found[i - 1], v) >= (lengthOf(found[i - 1]) + lengthOf(v)) / 2);
    scale.ticks = ticksOf(low * 0.999, high, fits).map((value) => ({ value }));
  };
  return { type: "logarithmic", min: low, max: high, afterBuildTicks };
}

// A logarithmic axis (`ranged`) says so where it has no other title.
const axis = (title, write, more = {}) => ({
  title: { display: Boolean(title || more.afterBuildTicks), text: title || "logarithmic", color: ink("soft") },
  ticks: { color: ink("soft"), callback: (v) => write(v), maxRotation: 0, autoSkip: !more.afterBuildTicks, autoSkipPadding: 16 },
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
