// A log as it grows. What a stage overwrote on its line (a progress bar) is overwritten here.
import { h, put, size } from "./dom.js";
import { get } from "./live.js";

const KEPT = 3_000_000; // characters that stay on the page
const BY_STEPS = 100; // px from the end within which new lines are followed

export const logView = (address) => {
  const text = h("pre", { class: "log", tabindex: "0", "aria-label": "log" });
  const tail = document.createTextNode("");
  text.append(tail);
  const line = h("span", { class: "soft" });
  const earlier = h("button", { type: "button", hidden: true }, "Earlier lines");
  const wrap = h("input", { type: "checkbox", checked: true, onchange: () => text.classList.toggle("long", !wrap.checked) });
  const head = h("div", { class: "bar" }, line, earlier, h("label", null, wrap, " wrap lines"));
  const view = { element: h("section", { class: "words" }, h("h2", null, "Log"), head, text), name: "", at: -1 };
  let pieces = []; // {node, start}: the text before the line that is not whole
  let last = "";
  let follows = true;

  text.addEventListener("scroll", () => {
    follows = text.scrollHeight - text.scrollTop - text.clientHeight < BY_STEPS;
  });
  const told = (part) => put(line, [part.size, pieces[0]?.start], () => (part.size ?
    `${size(part.size)}${pieces[0]?.start ? `, shown from ${size(pieces[0].start)} on` : ""}` : "no word yet"));
  const clean = (whole) => whole.split("\n").map(overwritten).join("\n");

  view.add = (part) => {
    if (part.name !== view.name || part.start !== view.at) {
      pieces.forEach((p) => p.node.remove());
      pieces = [];
      last = "";
      view.name = part.name;
    }
    const all = last + part.text;
    const cut = all.lastIndexOf("\n") + 1;
    last = all.slice(cut);
    if (cut || !pieces.length) {
      const node = document.createTextNode(clean(all.slice(0, cut)));
      tail.before(node);
      pieces.push({ node, start: part.start });
    }
    tail.data = overwritten(last);
    view.at = part.stop;
    for (let held = pieces.reduce((n, p) => n + p.node.length, 0); held > KEPT && pieces.length > 1;) {
      held -= pieces[0].node.length;
      pieces.shift().node.remove();
    }
    earlier.hidden = !pieces[0]?.start;
    told(part);
    if (follows) text.scrollTop = text.scrollHeight;
  };

  earlier.addEventListener("click", async () => {
    const first = pieces[0];
    const separator = address().includes("?") ? "&" : "?";
    earlier.disabled = true; // a second click would ask for the same piece
    const part = await get(`${address()}${separator}stop=${first.start}`).finally(() => {
      earlier.disabled = false;
    });
    if (pieces[0] !== first) return; // another log is shown by now
    const node = document.createTextNode(clean(part.text));
    const from = text.scrollHeight - text.scrollTop;
    first.node.before(node);
    pieces.unshift({ node, start: part.start });
    text.scrollTop = text.scrollHeight - from;
    earlier.hidden = !part.start || part.start === part.stop;
    told(part);
  });
  return view;
};

// What is seen of a line after its carriage returns.
const overwritten = (line) => {
  const text = line.replace(/\r+$/, "");
  return text.slice(text.lastIndexOf("\r") + 1);
};
