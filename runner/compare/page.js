// Draws the plots of `#data`: what `runner compare --json` prints. Each is left out where nothing was measured for it.
const data = JSON.parse(document.getElementById("data").textContent);
const names = data.forms.map((f) => f.name);
const metric = (form, key) => {
  const value = form.metrics[key] ?? (key === "disk_bytes" ? form.metrics.model_bytes : null);
  return typeof value === "number" ? value : null;
};
const values = (key) => data.forms.map((f) => metric(f, key));

const hue = (form) => ink({ model: "model", adapter: "adapter", onnx: "onnx" }[form.form] ?? "soft");
const hues = () => data.forms.map(hue);
const faded = () => hues().map((c) => c + "80");

// Whiskers from `low` to `high` over horizontal bars, where both are known.
const whiskers = {
  id: "whiskers",
  afterDatasetsDraw(chart, _, options) {
    if (!options.low) return;
    const { ctx, scales: { x } } = chart;
    ctx.save();
    ctx.strokeStyle = ink("ink");
    ctx.lineWidth = 1.5;
    chart.getDatasetMeta(0).data.forEach((bar, i) => {
      const [low, high] = [options.low[i], options.high[i]];
      if (low === null || high === null) return;
      const [a, b] = [x.getPixelForValue(low), x.getPixelForValue(high)];
      ctx.beginPath();
      ctx.moveTo(a, bar.y); ctx.lineTo(b, bar.y);
      ctx.moveTo(a, bar.y - 4); ctx.lineTo(a, bar.y + 4);
      ctx.moveTo(b, bar.y - 4); ctx.lineTo(b, bar.y + 4);
      ctx.stroke();
    });
    ctx.restore();
  },
};

// Each point's name beside it, where it does not run into one that is there already.
const labels = {
  id: "labels",
  afterDatasetsDraw(chart, _, options) {
    if (!options.on) return;
    const { ctx, chartArea } = chart;
    ctx.save();
    ctx.font = "11px system-ui, sans-serif";
    ctx.fillStyle = ink("ink");
    ctx.textBaseline = "middle";
    const taken = chart.getDatasetMeta(0).data.map((p) => [p.x - 6, p.y - 6, p.x + 6, p.y + 6]);
    chart.getDatasetMeta(0).data.forEach((point, i) => {
      const text = chart.data.datasets[0].data[i].name;
      const width = ctx.measureText(text).width;
      const left = point.x - 9 - width;
      const middle = Math.min(Math.max(point.x - width / 2, chartArea.left), chartArea.right - width);
      const places = [[point.x + 9, 0], [left, 0]];
      for (const dy of [14, -14, 27, -27, 40, -40, 53, -53]) places.push([middle, dy], [point.x + 9, dy], [left, dy]);
      for (const [x, dy] of places) {
        const box = [x - 1, point.y + dy - 6, x + width + 1, point.y + dy + 6];
        const inside = box[0] >= chartArea.left - 2 && box[2] <= chart.width && box[1] >= 0 && box[3] <= chartArea.bottom;
        if (!inside || taken.some((t) => t[0] < box[2] && box[0] < t[2] && t[1] < box[3] && box[1] < t[3])) continue;
        taken.push(box);
        if (Math.abs(dy) > 14) {
          ctx.strokeStyle = ink("line");
          ctx.beginPath();
          ctx.moveTo(point.x, point.y + Math.sign(dy) * 6);
          ctx.lineTo(Math.min(Math.max(point.x, x), x + width), point.y + dy - Math.sign(dy) * 6);
          ctx.stroke();
        }
        ctx.fillText(text, x, point.y + dy);
        break;
      }
    });
    ctx.restore();
  },
};

function bars(id, keys, write, { words = {}, log = false, interval = null, line = null, most = undefined } = {}) {
  const shown = keys.filter((k) => values(k).some((v) => v !== null));
  if (!shown.length) { leave(id); return; }
  draw(id, names.length * (shown.length > 1 ? 34 : 26) + (shown.length > 1 ? 80 : 55), () => ({
    type: "bar",
    data: {
      labels: names,
      datasets: shown.map((key, i) => ({
        label: words[key] ?? key, data: values(key), backgroundColor: i ? faded() : hues(), borderRadius: 3,
        barPercentage: 0.85, categoryPercentage: 0.8,
      })),
    },
    options: {
      indexAxis: "y", maintainAspectRatio: false, animation: false,
      layout: { padding: { top: line?.at === undefined ? 0 : 14 } },
      scales: {
        x: axis("", write, log ? ranged(shown.flatMap(values), write, { bars: true }) : { beginAtZero: true, max: most }),
        y: { ticks: { color: ink("ink"), autoSkip: false }, grid: { display: false }, border: { color: ink("line") } },
      },
      plugins: {
        legend: { display: shown.length > 1, labels: { color: ink("ink"), boxWidth: 12 } },
        tooltip: { callbacks: { label: (c) => ` ${c.dataset.label}: ${write(c.raw)}` } },
        whiskers: interval ? { low: values(interval[0]), high: values(interval[1]) } : {},
        mark: line ?? {},
      },
    },
    plugins: [whiskers, mark],
  }));
}

// The ends of an axis with a quarter of its values' range to spare: an accuracy has no values outside 0 to 1.
function within(key, found) {
  const [low, high] = [Math.min(...found), Math.max(...found)];
  const spare = (high - low) / 4 || 0.1;
  if (key !== "accuracy") return {};
  return { ...(low - spare < 0 ? { min: 0 } : {}), ...(high + spare > 1 ? { max: 1 } : {}) };
}

function scatter(id, key, title, write) {
  const quality = values("accuracy").some((v) => v !== null) ? ["accuracy", "accuracy (more is better)", share] :
    ["loss", "loss (less is better)", plain];
  const good = data.forms.filter((form) => {
    const [right, frequent] = [metric(form, "accuracy"), metric(form, "majority_share")];
    return right === null || frequent === null || right >= frequent;
  });
  const points = good.map((f) => ({ x: metric(f, key), y: metric(f, quality[0]), name: f.name, form: f }))
    .filter((p) => p.x !== null && p.y !== null);
  if (points.length < 2) { leave(id); return; }
  draw(id, 340, () => ({
    type: "scatter",
    data: {
      datasets: [{
        data: points, pointRadius: 6, pointHoverRadius: 8, backgroundColor: points.map((p) => hue(p.form)),
        borderColor: ink("card"),
      }],
    },
    options: {
      maintainAspectRatio: false, animation: false, layout: { padding: { right: 24, top: 12 } }, clip: false,
      scales: {
        x: axis(title, write, { beginAtZero: true, grace: "10%" }),
        y: axis(quality[1], quality[2], { grace: "25%", ...within(quality[0], points.map((p) => p.y)) }),
      },
      plugins: {
        legend: { display: false },
        tooltip: { callbacks: { label: (c) => ` ${c.raw.name}: ${write(c.raw.x)}, ${quality[2](c.raw.y)}` } },
        labels: { on: true },
      },
    },
    plugins: [labels],
  }));
}

const majority = values("majority_share").find((v) => v !== null);
bars("plot-accuracy", ["accuracy"], share, {
  words: { accuracy: "accuracy" }, interval: ["accuracy_low", "accuracy_high"], most: 1,
  line: majority === undefined ? null : { at: majority, words: "most frequent class" },
});
bars("plot-loss", ["loss"], plain, { words: { loss: "loss" }, log: true });
bars("plot-kl", ["kl_mean"], plain, { words: { kl_mean: "KL" }, log: true });
bars("plot-neutral", ["neutral_perplexity"], plain, { words: { neutral_perplexity: "perplexity" } });
bars("plot-speed", ["decode_tokens_per_s", "prefill_tokens_per_s"], plain, {
  words: { decode_tokens_per_s: "decode", prefill_tokens_per_s: "prefill" }, log: true,
});
bars("plot-first", ["time_to_first_token_p50_s", "time_to_first_token_p95_s"], milliseconds, {
  words: { time_to_first_token_p50_s: "median", time_to_first_token_p95_s: "95th percentile" },
});
bars("plot-memory", ["peak_memory_bytes", "disk_bytes"], bytes, {
  words: { peak_memory_bytes: "peak memory", disk_bytes: "size on disk" },
});
scatter("plot-size-quality", "disk_bytes", "size on disk", bytes);
scatter("plot-speed-quality", "decode_tokens_per_s", "decode, tokens/s", plain);
