// An artifact: what it is, its files, what was measured of it, what made it.
import { digest, h, link, many, path, size, table } from "./dom.js";
import { get } from "./live.js";
import { values } from "./stage.js";

export const artifact = async (main, number, stage, output) => {
  const place = path("runs", number, "stages", stage, "outputs", output);
  document.title = `${stage}.${output}, run ${number} · Microstages`;
  main.append(h("p", { class: "crumbs" }, link(path("runs", number), `Run ${number}`), " / ",
    link(path("runs", number, "stages", stage), stage), " / ", output), h("h1", null, `${stage}.${output}`));
  const data = await get(`/api${place}`);
  const shown = h("div", { "aria-live": "polite" });
  const show = async (file) => {
    const address = `/api${place}/${file.picture ? "picture" : "preview"}?file=${encodeURIComponent(file.path)}`;
    shown.replaceChildren(h("h2", null, file.path));
    if (file.picture) {
      shown.append(h("img", { class: "shown", src: address, alt: file.path }));
    } else {
      try {
        const got = await get(address);
        shown.append(got.binary ? h("p", { class: "soft" }, "It is not text.") : h("pre", { class: "log" }, got.text),
          got.whole || got.binary ? "" : h("p", { class: "soft" }, `The first ${size(got.text.length)} of ${size(file.size)}.`));
      } catch (error) {
        shown.append(h("p", { class: "error" }, [error.what ?? error.message, error.fix].filter(Boolean).join(". ")));
      }
    }
    shown.scrollIntoView({ block: "nearest" });
  };
  const rows = data.files.map((f) => [h("button", { class: "file", type: "button", onclick: () => show(f) }, f.path),
    size(f.size), digest(f.sha256)]);
  const made = data.provenance;
  const about = Object.fromEntries(["stage", "version", "started", "finished", "fingerprint", "code", "image"]
    .filter((k) => made[k]).map((k) => [k, made[k]]));
  const inputs = Object.entries(made.inputs ?? {}).map(([k, v]) => [k, digest(v?.digest),
    data.from[k] ? link(path("runs", number, "stages", data.from[k][0], "outputs", data.from[k][1]), data.from[k].join(".")) :
      "outside", h("code", { class: "uri" }, v?.uri ?? "")]);
  main.append(h("div", null,
    h("p", { class: "soft" }, `${data.kind} · ${many(data.files.length, "files")}, ${size(data.size)} · `,
      digest(data.digest)),
    h("p", null, h("code", { class: "uri" }, data.uri)),
    h("h2", null, "Files"), table(["File", "Size", "sha256"], rows, { class: "cards" }), shown,
    Object.keys(data.metrics).length ? [h("h2", null, "Measures"), values(data.metrics)] : "",
    Object.keys(data.metadata).length ? [h("h2", null, "What it is"), values(data.metadata, true)] : "",
    h("h2", null, "What made it"), values(about, true),
    inputs.length ? table(["Input", "Digest", "From", "Where"], inputs, { class: "cards" }) : "",
    ["params", "software", "hardware"].filter((k) => made[k] && Object.keys(made[k]).length).map((k) =>
      h("details", null, h("summary", null, { params: "Parameters", software: "Software", hardware: "Hardware" }[k]),
        values(made[k], true)))));
};
