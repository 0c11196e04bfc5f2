// A run: its graph, and its stages with how they stand, why they ran, and what they measured.
import { duration, h, link, many, path, put, since, state, value, when, words } from "./dom.js";
import { graph, part } from "./graph.js";
import { listen } from "./live.js";

// What a row has place for, the most telling first.
const TELLING = ["accuracy", "exact_match", "eval_loss", "train_loss", "perplexity", "kl_divergence", "kl", "loss",
  "decode_tokens_per_s", "tokens_per_second", "rows_per_second", "model_bytes", "bytes"];

export const run = (main, number) => {
  document.title = `Run ${number} · Microstages`;
  const title = h("h1", null, `Run ${number} `);
  const line = h("p", { class: "soft", "aria-live": "polite" });
  const picture = h("div", { class: "picture" });
  const body = h("tbody");
  const heads = ["Stage", "State", "Took", "Progress and measures", "Why"];
  const list = h("div", { class: "wide" }, h("table", { class: "stages cards" },
    h("thead", null, h("tr", null, heads.map((t) => h("th", { scope: "col" }, t)))), body));
  const links = h("p", { class: "bar" });
  main.append(title, line, links, picture, list);
  const rows = new Map();
  let drawn = { shape: "", update: () => {} };

  const row = (stage) => {
    let tr = rows.get(stage.stage);
    if (!tr) {
      tr = h("tr", null, h("th", { scope: "row" }), heads.slice(1).map((t) => h("td", { "data-head": t })));
      rows.set(stage.stage, tr);
      body.append(tr);
    }
    const [name, status, took, measures, why] = tr.children;
    put(name, [stage.stage, stage.uses], () => [link(path("runs", number, "stages", stage.stage), stage.stage),
      h("div", { class: "soft" }, stage.uses)]);
    put(status, [stage.status, stage.tries, stage.made_in], () => [state(stage.status),
      stage.tries > 1 && h("div", { class: "soft" }, `attempt ${stage.tries}`),
      stage.made_in && h("div", { class: "soft" }, "made in ", link(path("runs", stage.made_in), `run ${stage.made_in}`))]);
    put(took, [stage.status, stage.started, stage.finished], () => time(stage));
    put(measures, [stage.status, stage.progress, stage.metrics], () => (stage.status === "running" ?
      progress(stage.progress) : telling(stage.metrics)));
    put(why, [stage.reason, stage.error, stage.status], () => reasons(stage));
  };

  const draw = (data) => {
    document.title = `Run ${data.id}, ${data.status} · ${data.pipeline}`;
    document.getElementById("where").textContent = data.pipeline;
    put(title, [data.id, data.status], () => [`Run ${data.id} `, state(data.status)]);
    put(line, [data.pipeline, data.status, data.finished, data.code], () => [h("strong", null, data.pipeline), " · begun ", when(data.started), " · ",
      data.finished ? `took ${duration(data.finished - data.started)}` :
        data.status === "running" ? since(data.started) : "its runner was killed: `runner up` takes it up again",
      data.code ? ` · exit code ${data.code}` : ""]);
    put(links, [data.id, data.status], () => [
      h("a", { href: path("runs", data.id, "report"), target: "_blank", rel: "noopener" }, "Report"),
      data.before && link(path("compare", data.before, data.id), `Compare with run ${data.before}`)]);
    const shape = JSON.stringify(data.graph);
    if (shape !== drawn.shape) {
      const made = graph(data.graph, number);
      picture.replaceChildren(made.svg);
      drawn = { shape, update: made.update };
    }
    drawn.update(data.stages);
    data.stages.forEach(row);
  };
  return listen(() => `/api/runs/${number}/live`, { run: draw }, `/api/runs/${number}`);
};

export const time = (stage) => {
  if (stage.status === "running" && stage.started) return since(stage.started);
  if (stage.status === "reused") return h("span", { class: "soft" }, stage.took ? `(${duration(stage.took)})` : "–");
  return stage.started && stage.finished ? duration(stage.finished - stage.started) : "–";
};

export const progress = (p) => {
  if (!p) return h("span", { class: "soft" }, "started");
  const share = part(p);
  const left = p.left === null ? "" : duration(p.left);
  const figures = p.done === null ? "" : (p.total ? `${Math.round(p.done).toLocaleString("en")} / ` : "") +
    many(Math.round(p.total || p.done), p.unit).trim();
  return h("div", { class: "progress" },
    h("progress", { max: 1, value: share, "aria-label": p.label || "progress" }),
    h("div", { class: "soft" }, [p.label, share === null ? "" : `${Math.round(share * 100)} %`, figures, left && `${left} left`]
      .filter(Boolean).join(" · ")),
    h("div", null, Object.entries(p.values).map(([k, v]) => h("span", { class: "measure" }, h("b", null, words(k)), " ",
      value(k, v)))));
};

export const telling = (metrics) => {
  const known = TELLING.filter((k) => k in metrics).slice(0, 3);
  return known.map((k) => h("span", { class: "measure" }, h("b", null, words(k)), " ", value(k, metrics[k])));
};

export const reasons = (stage) => [stage.reason, stage.error && h("div", { class: "error" }, stage.error)];
