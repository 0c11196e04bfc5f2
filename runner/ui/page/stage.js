// A stage of a run: how it stands, its curves, its log, what it read and made, with which parameters.
import { digest, h, link, many, path, put, state, table, value, words } from "./dom.js";
import { plots } from "./charts.js";
import { listen } from "./live.js";
import { logView } from "./log.js";
import { progress, reasons, time } from "./run.js";

export const stage = (main, number, name) => {
  document.title = `${name}, run ${number} · Microstages`;
  const place = path("runs", number, "stages", name);
  let attempt = "";
  const title = h("h1");
  const line = h("p", { class: "soft", "aria-live": "polite" });
  const why = h("div");
  const bar = h("div");
  const results = h("div");
  const curves = h("section", { hidden: true }, h("h2", null, "Curves"));
  const drawing = plots();
  curves.append(drawing.element);
  const suffix = () => (attempt ? `?attempt=${encodeURIComponent(attempt)}` : "");
  const log = logView(() => `/api${place}/log${suffix()}`);
  const tries = h("select", { "aria-label": "attempt", hidden: true, onchange: () => {
    attempt = tries.value;
    log.at = -1;
    stop();
    stop = start();
  } });
  log.element.querySelector(".bar").prepend(tries);
  const more = h("div");
  main.append(h("p", { class: "crumbs" }, link(path("runs", number), `Run ${number}`), " / ", name), title, line, why, bar,
    results, curves, log.element, more);

  const draw = (data) => {
    document.title = `${name}, ${data.status}, run ${number} · Microstages`;
    put(title, [name, data.status], () => [name, " ", state(data.status)]);
    put(line, [data.uses, data.status, data.started, data.finished, data.made_in, data.exit_code], () => [
      data.uses, " · ", time(data), data.exit_code ? ` · exit code ${data.exit_code}` : "",
      data.made_in ? [" · made in ", link(path("runs", data.made_in, "stages", name), `run ${data.made_in}`)] : ""]);
    put(why, [data.reason, data.error], () => h("p", { class: "reason" }, reasons(data)));
    put(bar, [data.status, data.progress], () => data.status === "running" && progress(data.progress));
    put(results, data.results, () => outputs(number, data));
    put(tries, data.logs, () => data.logs.map((l, i) => h("option", { value: i === data.logs.length - 1 ? "" : l },
      `attempt ${i + 1}`)));
    if (!attempt) tries.value = "";
    tries.hidden = data.logs.length < 2;
    log.element.hidden = !data.logs.length;
    put(more, [data.all_metrics, data.params, data.inputs, data.fingerprint], () => details(number, data));
  };
  const start = () => listen(() => `/api/runs/${number}/live?stage=${encodeURIComponent(name)}&at=${log.at}` +
    `&log=${encodeURIComponent(log.name)}` + (attempt ? `&attempt=${encodeURIComponent(attempt)}` : ""), {
    stage: draw,
    log: log.add,
    curves: ({ lines, resumed }) => {
      const series = Object.entries(lines).sort(([a], [b]) => /^eval/.test(a) - /^eval/.test(b))
        .map(([key, points]) => ({ name: key, label: words(key), points, resumed }));
      curves.hidden = !series.length;
      drawing.update(series);
    },
  }, `/api${place}`);
  let stop = start();
  return () => { stop(); drawing.stop(); };
};

const outputs = (number, data) => {
  const rows = Object.entries(data.results).map(([output, o]) => [
    link(path("runs", number, "stages", data.stage, "outputs", output), output), digest(o.digest),
    h("code", { class: "uri" }, o.uri)]);
  return rows.length > 0 && [h("h2", null, "Results"), table(["Result", "Digest", "Where"], rows, { class: "cards" })];
};

const details = (number, data) => {
  const inputs = Object.entries(data.inputs).map(([input, i]) => [input, digest(i.digest),
    i.stage ? link(path("runs", number, "stages", i.stage), i.stage) : "from outside"]);
  return [
    Object.keys(data.all_metrics).length > 0 && [h("h2", null, "Measures"), values(data.all_metrics)],
    inputs.length > 0 && [h("h2", null, "Inputs"), table(["Input", "Digest", "From"], inputs, { class: "cards" })],
    Object.keys(data.params).length > 0 && [h("h2", null, "Parameters"), values(data.params, true)],
    h("h2", null, "Identity"),
    values({ fingerprint: data.fingerprint || "–", attempt: data.attempt || "–", code: data.code || "–" }, true),
  ];
};

// Names and values; what is made of several is folded.
export const values = (found, asIs = false) => h("dl", { class: "values" }, Object.entries(found).map(([k, v]) => h("div", null,
  h("dt", null, asIs ? k : words(k)),
  h("dd", null, v !== null && typeof v === "object" ? folded(v) : asIs ? String(v ?? "–") : value(k, v)))));

const folded = (v) => {
  const text = JSON.stringify(v, null, 1);
  return text.length < 60 ? h("code", null, JSON.stringify(v)) : h("details", null,
    h("summary", null, Array.isArray(v) ? many(v.length, "values") : many(Object.keys(v).length, "entries")), h("pre", null, text));
};
