// Draws the plots of `#data`: the curves of each training, the token lengths of each data set. Copies digests.
const data = JSON.parse(document.getElementById("data").textContent);
const hue = (alpha) => `rgb(${ink("accent")} / ${alpha})`;

// Mean over a window around each point, a twentieth of all points wide.
function smooth(values) {
  const half = Math.max(1, Math.floor(values.length / 40));
  return values.map((_, i) => {
    const near = values.slice(Math.max(0, i - half), i + half + 1).filter((v) => v !== null);
    return near.length ? near.reduce((a, b) => a + b, 0) / near.length : null;
  });
}

const points = (xs, ys) => xs.map((x, i) => ({ x, y: ys[i] })).filter((p) => p.y !== null && p.y !== undefined);

// A logarithmic axis where values differ by more than fifty times; zero cannot stand on one.
function scale(values, title) {
  return axis(title, plain, ranged(values, plain, { apart: 50 }));
}

const line = (label, values, color, more = {}) => ({
  label, data: values, borderColor: color, backgroundColor: color, borderWidth: 2, pointRadius: 0, pointHitRadius: 6, ...more,
});

function plot(id, height, make) {
  draw(id, height, () => {
    const made = make();
    const several = made.datasets.length > 1;
    return {
      type: made.type ?? "line",
      data: { labels: made.labels, datasets: made.datasets },
      options: {
        maintainAspectRatio: false, animation: false, parsing: made.labels ? undefined : false,
        interaction: { mode: "nearest", axis: "x", intersect: false },
        layout: { padding: { top: made.mark ? 14 : 0, right: 8 } },
        scales: made.scales,
        plugins: {
          legend: { display: several, labels: { color: ink("ink"), boxWidth: 12 } },
          tooltip: { callbacks: { label: (c) => ` ${c.dataset.label}: ${plain(c.parsed.y)}`, title: made.title } },
          mark: made.mark ?? {},
        },
      },
      plugins: [mark],
    };
  });
}

data.training.forEach(({ curve }, i) => {
  const steps = () => axis("step", (v) => v.toLocaleString("en"), { type: "linear", min: 0 });
  const title = (items) => `step ${items[0].parsed.x.toLocaleString("en")}`;
  const held = curve.held_out.map(([x, y]) => ({ x, y }));
  plot(`plot-loss-${i}`, 280, () => ({
    title,
    datasets: [
      ...(curve.loss.length ? [
        line("single steps", points(curve.step, curve.loss), hue(0.3), { borderWidth: 1 }),
        line("training", points(curve.step, smooth(curve.loss)), hue(1)),
      ] : []),
      ...(held.length ? [line("held out", held, ink("onnx"), { pointRadius: 3 })] : []),
    ],
    scales: { x: steps(), y: scale([...curve.loss, ...held.map((p) => p.y)], "") },
  }));
  const rates = points(curve.step, curve.learning_rate);
  const norms = points(curve.step, curve.gradient_norm);
  if (!rates.length && !norms.length) { leave(`plot-rate-${i}`); return; }
  plot(`plot-rate-${i}`, 280, () => ({
    title,
    datasets: [
      line("learning rate", rates, ink("adapter")),
      ...(norms.length ? [line("gradient norm", norms, ink("soft") + "90", { yAxisID: "norm", borderWidth: 1 })] : []),
    ],
    scales: {
      x: steps(), y: axis("", (v) => (v === 0 ? "0" : v.toExponential(0)), { beginAtZero: true }),
      ...(norms.length ? { norm: { ...scale(norms.map((p) => p.y), ""), position: "right", grid: { display: false } } } : {}),
    },
  }));
});

data.data.forEach(({ lengths, max_length: most }, i) => {
  if (!lengths) return;
  const names = lengths.edges.map((low) => (lengths.width === 1 ? `${low}` : `${low}–${low + lengths.width - 1}`));
  plot(`plot-lengths-${i}`, 240, () => ({
    type: "bar", labels: names,
    title: (items) => `${items[0].label} tokens`,
    datasets: [["train", "train", "model"], ["test", "held out", "onnx"]].filter(([key]) => lengths[key]).map(([key, label, color]) => ({
      label, data: lengths[key], backgroundColor: ink(color), barPercentage: 1, categoryPercentage: 0.92, stack: "all",
    })),
    scales: {
      x: { ...axis("tokens of an example", (v) => names[v]), stacked: true, grid: { display: false } },
      y: { ...axis("examples", plain, { beginAtZero: true }), stacked: true },
    },
  }));
});

// --- digests, and the parts that open ---

const told = document.getElementById("told");
async function copy(button) {
  const text = button.dataset.full;
  try {
    await navigator.clipboard.writeText(text);
  } catch {  // no permission: what is selected can be copied by hand
    const range = document.createRange();
    button.textContent = text;
    range.selectNodeContents(button);
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    told.textContent = "selected";
    return;
  }
  button.classList.add("copied");
  told.textContent = `copied ${text}`;
  setTimeout(() => button.classList.remove("copied"), 1500);
}
document.addEventListener("click", (event) => {
  const button = event.target.closest(".digest");
  if (button) copy(button);
});

function reveal() {
  const part = location.hash.length > 1 && document.getElementById(location.hash.slice(1));
  if (part instanceof HTMLDetailsElement) part.open = true;
}
addEventListener("hashchange", reveal);
reveal();

// On paper nothing can be opened.
let closed = [];
addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details.stage:not([open])")];
  for (const part of closed) part.open = true;
});
addEventListener("afterprint", () => { for (const part of closed) part.open = false; });
