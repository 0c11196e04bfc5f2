// Which page an address means. A page draws into `main` and returns what ends it.
import { h, trouble } from "./dom.js";
import { runs } from "./runs.js";
import { run } from "./run.js";
import { stage } from "./stage.js";
import { artifact } from "./artifact.js";
import { compare } from "./compare.js";

const PAGES = [
  [/^\/$/, runs],
  [/^\/runs\/(\d+)$/, run],
  [/^\/runs\/(\d+)\/stages\/([^/]+)$/, stage],
  [/^\/runs\/(\d+)\/stages\/([^/]+)\/outputs\/([^/]+)$/, artifact],
  [/^\/compare\/(\d+)\/(\d+)$/, compare],
];
let end = () => {};

export const go = (address) => {
  if (address !== location.pathname) history.pushState(null, "", address);
  show();
};

const show = async () => {
  end();
  end = () => {};
  trouble(null);
  const main = document.getElementById("main");
  main.replaceChildren();
  for (const [pattern, page] of PAGES) {
    const found = location.pathname.match(pattern);
    if (!found) continue;
    let over = false;
    end = () => { over = true; };
    try {
      const stop = await page(main, ...found.slice(1).map(decodeURIComponent));
      if (over) stop?.();
      else end = () => { over = true; stop?.(); };
    } catch (error) {
      if (over) return;
      document.title = "Microstages";
      trouble({ what: error.what ?? error.message, where: error.where, fix: error.fix });
      if (!error.what) throw error;
    }
    return;
  }
  main.append(h("p", null, "There is no such page."));
};

document.addEventListener("click", (event) => {
  const a = event.target.closest?.("a[href]");
  if (!a || event.button || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey || a.target) return;
  const url = new URL(a.href?.baseVal ?? a.href, location.href);
  if (url.origin !== location.origin || url.hash || !PAGES.some(([pattern]) => pattern.test(url.pathname))) return;
  event.preventDefault();
  go(url.pathname);
  window.scrollTo(0, 0);
  document.getElementById("main").focus({ preventScroll: true });
});
window.addEventListener("popstate", show);
show();
