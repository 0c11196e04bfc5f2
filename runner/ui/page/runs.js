// The list of the runs: when, what ran, how it ended, how long it took. Two that are chosen are compared.
import { duration, h, inOrder, kind, link, path, put, since, state, when } from "./dom.js";
import { go } from "./app.js";
import { get, listen } from "./live.js";

const PAGE = 50;

export const runs = (main) => {
  document.title = "Runs · Microstages";
  document.getElementById("where").textContent = "";
  let known = new Map();
  let more = false;
  const chosen = new Set();
  const rows = new Map();
  const wanted = { pipeline: "", status: "" };

  const title = h("h1", null, "Runs");
  const store = h("p", { class: "soft" });
  const pipelines = h("select", { "aria-label": "pipeline", onchange: () => { wanted.pipeline = pipelines.value; draw(); } });
  const states = h("select", { "aria-label": "how it ended", onchange: () => { wanted.status = states.value; draw(); } });
  const button = h("button", { type: "button", disabled: true, onclick: () => {
    const [a, b] = [...chosen].sort((x, y) => x - y);
    go(path("compare", a, b));
  } }, "Compare two");
  const older = h("button", { type: "button", hidden: true, onclick: async () => {
    const got = await get(`/api/runs?last=${PAGE}&before=${Math.min(...known.keys())}`);
    take(got.runs);
    more = got.more;
    draw();
  } }, "Older runs");
  const body = h("tbody");
  const empty = h("p", { hidden: true }, "No runs yet: ", h("code", null, "runner up"), " makes one, and it appears here.");
  const heads = ["", "Run", "When", "Pipeline", "Ended", "Stages", "Took"];
  const list = h("div", { class: "wide" }, h("table", { class: "runs cards" },
    h("thead", null, h("tr", null, heads.map((t) => h("th", { scope: "col" }, t)))), body));
  main.append(title, store, h("div", { class: "bar" }, pipelines, states, button), empty, list, older);

  const take = (found) => { for (const r of found) known.set(r.id, r); };
  const choices = (select, name, values, all) => put(select, values, () => [
    h("option", { value: "" }, all), values.map((v) => h("option", { value: v, selected: v === wanted[name] }, v))]);

  const row = (r) => {
    let tr = rows.get(r.id);
    if (!tr) {
      const box = h("input", { type: "checkbox", "aria-label": `compare run ${r.id}`, onchange: () => {
        if (box.checked) chosen.add(r.id); else chosen.delete(r.id);
        button.disabled = chosen.size !== 2;
      } });
      tr = h("tr", null, h("td", { class: "choose" }, box), heads.slice(1).map((t) => h("td", { "data-head": t })));
      rows.set(r.id, tr);
    }
    const [, id, at, pipeline, ended, stages, took] = tr.children;
    put(id, r.id, () => link(path("runs", r.id), h("strong", null, `#${r.id}`)));
    put(at, r.started, () => when(r.started));
    put(pipeline, r.pipeline, () => r.pipeline);
    put(ended, [r.status, r.why], () => [state(r.status), r.why && h("div", { class: "soft why" }, r.why)]);
    put(stages, r.stages, () => [squares(r.stages), " ", h("span", { class: "soft" }, counts(r.stages))]);
    const end = r.finished ?? r.heard;
    put(took, [r.status, end], () => (end ? duration(end - r.started) : r.status === "running" ? since(r.started) : "–"));
    return tr;
  };

  const draw = () => {
    const all = [...known.values()].sort((a, b) => b.id - a.id);
    choices(pipelines, "pipeline", [...new Set(all.map((r) => r.pipeline))].sort(), "all pipelines");
    choices(states, "status", inOrder(all.map((r) => r.status)), "however they ended");
    const shown = all.filter((r) => (!wanted.pipeline || r.pipeline === wanted.pipeline) &&
      (!wanted.status || r.status === wanted.status));
    const trs = shown.map(row);
    if (trs.length !== body.children.length || trs.some((tr, i) => body.children[i] !== tr)) body.replaceChildren(...trs);
    empty.hidden = all.length > 0;
    list.hidden = !all.length;
    older.hidden = !more;
  };

  return listen(() => `/api/live?last=${PAGE}`, {
    runs: (data) => {
      const first = Math.min(...data.runs.map((r) => r.id));
      if (!data.runs.length) known = new Map();
      take(data.runs);
      if (!known.size || Math.min(...known.keys()) >= first) more = data.more;
      put(store, data.store, () => ["store ", h("code", null, data.store)]);
      draw();
    },
  }, "/api/runs?last=1");
};

const squares = (stages) => h("span", { class: "squares", "aria-hidden": "true" },
  stages.slice(0, 60).map(([name, status]) => h("i", { class: kind(status), title: `${name}: ${status}` })));

export const counts = (stages) => {
  const found = stages.map(([, status]) => status);
  return inOrder(found).map((status) => `${found.filter((s) => s === status).length} ${status}`).join(", ");
};
