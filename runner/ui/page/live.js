// What the server tells: answers, and streams of events.
import { setNow, trouble } from "./dom.js";

export const get = async (address) => {
  const response = await fetch(address, { headers: { Accept: "application/json" } });
  const text = await response.text();
  let data = null;
  try { data = JSON.parse(text); } catch { /* a sentence, not JSON */ }
  if (!response.ok) {
    const error = data?.error ?? { what: text.trim() || `status ${response.status}`, where: "", fix: "" };
    throw Object.assign(new Error(error.what), error, { status: response.status });
  }
  return data;
};

// Listen to a stream while the page is seen; `on`: event -> function. Ends after the event `end`. Returns what stops it.
// A stream cannot say why it does not begin: `plain` is the same thing asked for once.
export const listen = (address, on, plain) => {
  let source = null;
  let over = false;
  const close = () => { source?.close(); source = null; };
  const open = () => {
    if (over || source || document.hidden) return;
    source = new EventSource(address());
    for (const [name, hear] of Object.entries(on)) {
      source.addEventListener(name, (e) => { trouble(null); hear(JSON.parse(e.data)); });
    }
    source.addEventListener("time", (e) => setNow(JSON.parse(e.data).now));
    source.addEventListener("trouble", (e) => trouble(JSON.parse(e.data)));
    source.addEventListener("end", () => { over = true; close(); });
    source.onerror = async () => {
      if (over) return;
      close();
      const error = await why(plain);
      if (over) return;
      if (error) trouble(error);
      if (error?.status === 403 || error?.status === 404) over = true;
      else setTimeout(open, 2000);
    };
  };
  const seen = () => (document.hidden ? close() : open());
  document.addEventListener("visibilitychange", seen);
  open();
  return () => { over = true; close(); document.removeEventListener("visibilitychange", seen); };
};

const why = async (address) => {
  try {
    await get(address);
    return null;
  } catch (error) {
    return error.status ? error : { what: "no answer; what is shown may be old", where: "", fix: "Is runner ui still running?" };
  }
};
