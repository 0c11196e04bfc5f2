// Two runs side by side: what was changed, what came of it, and the curves of both in one plot.
import { digest, duration, h, link, path, state, table, value, words } from "./dom.js";
import { plots } from "./charts.js";
import { get } from "./live.js";
import { go } from "./app.js";

const CAUSES = [["params", "parameter"], ["inputs", "input"], ["data", "data"], ["software", "software"], ["where", "machine"]];
const TELLING = ["accuracy", "exact_match", "macro_f1", "eval_loss", "train_loss", "perplexity", "mean_kl", "top1_agreement",
  "model_bytes", "peak_memory_bytes", "prefill_tokens_per_s", "decode_tokens_per_s", "took_seconds"];
const LEAST = 0.01; // a smaller part of a value is not told unasked
const SAME = { "same": "the same", "same bytes": "made anew, the same bytes", "changed": "changed",
  "only before": "only in the first", "only after": "only in the second" };

export const compare = async (main, a, b) => {
  document.title = `Runs ${a} and ${b} · Microstages`;
  main.append(h("h1", null, `Run ${a} and run ${b}`));
  const [data, list] = await Promise.all([get(`/api/compare/${a}/${b}`), get("/api/runs?last=200")]);
  const names = [`run ${a}`, `run ${b}`];
  const drawing = plots();
  const choose = (number, other) => h("select", { "aria-label": other ? "second run" : "first run",
    onchange: (e) => go(other ? path("compare", a, e.target.value) : path("compare", e.target.value, b)) },
  [...new Set([Number(number), ...list.runs.map((r) => r.id)])].sort((x, y) => y - x).map((id) => {
    const found = list.runs.find((r) => r.id === id);
    return h("option", { value: id, selected: String(id) === number }, `run ${id}${found ? `: ${found.pipeline}, ${found.status}` : ""}`);
  }));
  const side = (s, number) => h("div", null, link(path("runs", number), s.name), " ", state(s.status), h("div", { class: "soft" },
    [s.pipeline, s.when?.replace("T", " ").replace("Z", " UTC"), s.seconds === undefined ? "" : duration(s.seconds)].filter(Boolean).join(" · ")));

  const causes = data.stages.flatMap((s) => [
    ...(s.code ? [[s.stage, s.code.name, shown("code", s.code.before), shown("code", s.code.after)]] : []),
    ...CAUSES.flatMap(([key, word]) => s[key].map((c) => [s.stage, `${word} ${c.name}`, shown(c.name, c.before), shown(c.name, c.after)])),
    ...(s.status ? [[s.stage, "state", s.status.before, s.status.after]] : []),
  ]);
  const measured = data.stages.flatMap((s) => [
    ...s.results.filter((c) => typeof (c.before ?? c.after) === "number").map((c) => ({ stage: s.stage, ...c })),
    ...(s.seconds ? [{ stage: s.stage, better: 0, ...s.seconds, name: "took_seconds" }] : [])]);
  const place = h("div");
  const all = h("input", { type: "checkbox", onchange: () => results() });
  const results = () => {
    const rows = measured.filter((c) => all.checked || (TELLING.includes(c.name) && c.before !== c.after &&
      !(Math.abs(c.difference) <= LEAST * Math.abs(c.before))));
    place.replaceChildren(rows.length ? table(["Stage", "Measure", ...names, "Difference"], rows.map((c) => [
      link(path("runs", b, "stages", c.stage), c.stage), c.name === "took_seconds" ? "time it took" : words(c.name), value(c.name, c.before), value(c.name, c.after), change(c)]),
    { class: "cards" }) : h("p", { class: "soft" }, "Nothing that matters differs."));
  };
  results();
  const curves = h("section", null, h("h2", null, "Curves"), drawing.element);
  main.append(
    h("div", { class: "bar" }, choose(a, false), choose(b, true), a !== b && link(path("compare", b, a), "the other way round")),
    h("div", { class: "sides" }, side(data.before, a), side(data.after, b)),
    h("h2", null, "What changed"),
    causes.length ? table(["Stage", "What", ...names], causes, { class: "cards" }) :
      h("p", { class: "soft" }, "No parameter, input or code differs."),
    h("h2", null, "What was measured"),
    h("label", null, all, " all measures"), place, curves,
    h("h2", null, "Stages"),
    table(["Stage", "Result", "Because of"], data.stages.map((s) => [s.stage, SAME[s.state] ?? s.state, because(s)]), { class: "cards" }));

  const series = data.stages.flatMap((s) => ["before", "after"].flatMap((which, i) =>
    Object.entries(s.curves[which]?.lines ?? {}).map(([key, points]) => ({
      name: key, label: `${words(key)}, ${s.stage}, ${names[i]}`, points, dash: /^eval/.test(key),
      color: which === "before" ? "--stopped" : "--running", resumed: s.curves[which].resumed, who: names[i] }))));
  curves.hidden = !series.length;
  await drawing.update(series);
  return drawing.stop;
};

const shown = (name, v) => (typeof v === "string" && v.startsWith("sha256:") ? digest(v) :
  v === null || v === undefined ? "–" : typeof v === "number" ? value(name, v) : typeof v === "object" ? h("code", null, JSON.stringify(v)) : String(v));

const change = (c) => {
  if (typeof c.difference !== "number" || c.difference === 0) return c.before === c.after ? "=" : "–";
  const part = c.before ? ` (${c.difference > 0 ? "+" : "−"}${percent(Math.abs(c.difference / c.before) * 100)} %)` : "";
  const way = Math.sign(c.difference) * c.better;
  const sign = c.difference > 0 ? "+" : "−";
  return h("span", { class: way > 0 ? "better" : way < 0 ? "worse" : null },
    `${sign}${value(c.name, Math.abs(c.difference))}`, h("span", { class: "soft" }, part), way ? h("span", { class: "soft" }, way > 0 ? " better" : " worse") : "");
};

const percent = (x) => (x >= 10 ? Math.round(x).toLocaleString("en") : Number(x.toPrecision(2)));

const because = (s) => [s.code && "code", s.params.length && "parameters", s.inputs.length && "inputs from outside",
  s.follows.length && `${s.follows.join(", ")} of stages before it`].filter(Boolean).join(", ");
