// The view of what changes, row by row as it happens, from GET /watch.

const MAX_ROWS = 200;
const RENDER_MS = 200;
const SUMMARY_MS = 5_000;
const WATCH_COLUMNS = [{ name: "Key" }, { name: "What" }, { name: "When" }, { name: "Position" }, { name: "Value", wide: true }];
const EVENT_NAMES = ["set", "delete", "current", "progress", "gap", "bye"];
const VALUE_SHOWN = 160;

// The token of the last event, so that the watch goes on at the member that the page moves to.
let watchToken = "";

// Why a watch was refused, which an EventSource does not tell.
async function whyRefused(url) {
  const end = new AbortController();
  const timer = setTimeout(() => end.abort(), 5_000);
  try {
    const response = await fetch(url, { signal: end.signal, cache: "no-store" });
    if (response.ok) return "The watch ended. It can be started again.";
    const { message } = await response.json();
    if (response.status === 404) return "This node can't be watched: it is of a version without GET /watch.";
    return plainText(`The node refuses: ${message}`, 400);
  } catch {
    return "The node can't be reached.";
  } finally {
    clearTimeout(timer);
    end.abort();
  }
}

function changeRow({ name, data }) {
  const key = String(data.key ?? "");
  const removed = data.reason === "expired" ? pill("warn", "expired") : pill("bad", "deleted");
  const value = typeof data.value === "string" ? data.value : null;
  const text = value === null ? "" : value.length > VALUE_SHOWN ? `${value.slice(0, VALUE_SHOWN)}…` : value;
  return table("", WATCH_COLUMNS, [[
    el("a", { class: "mono", href: placeText("keys", { key }) }, shown(key)),
    name === "set" ? pill("good", "set") : removed,
    clockText(Number(data.timestamp)),
    el("span", { class: "mono" }, plainText(String(data.position ?? ""))),
    value === null ? el("span", { class: "soft" }, "–") : el("span", { class: "mono cut" }, shown(text)),
  ]]).querySelector(".rows [role=row]");
}

function watchForm(params, start) {
  const prefix = el("input", { type: "text", id: "watch-prefix", class: "mono", value: params.prefix ?? "", placeholder: "every key", autocomplete: "off", autocapitalize: "off", spellcheck: "false" });
  const option = (text, checked) => {
    const input = el("input", { type: "checkbox", checked });
    return [input, el("label", { class: "check" }, input, text)];
  };
  const [initial, initialLabel] = option("begin with what is there", params.initial === "1");
  const [values, valuesLabel] = option("with values", params.values !== "0");
  const submit = el("button", { class: "button main" }, "Watch");
  const form = el("form", { class: "card" }, el("div", { class: "inside padded find" },
    el("div", {}, el("label", { for: "watch-prefix" }, "Keys that begin with"), prefix),
    el("div", { class: "buttons" }, submit), el("div", { class: "options" }, initialLabel, valuesLabel)));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    start({ prefix: prefix.value, initial: initial.checked ? "1" : "", values: values.checked ? "" : "0" });
  });
  return form;
}

function watchView(params) {
  const state = el("div", { class: "state-line" });
  const message = el("div", { "aria-live": "polite" });
  const listing = table("Changes, the newest first", WATCH_COLUMNS, [], "changes");
  const rows = listing.querySelector(".rows");
  const empty = el("p", { class: "empty" }, "Nothing has changed yet. Changes appear here as they happen.");
  const box = el("section", { class: "card", "aria-label": "Changes", hidden: true }, listing, empty);
  const stop = button("Stop", () => end("Stopped."));
  stop.hidden = true;
  let source = null;
  let waiting = [];
  let counts = { set: 0, delete: 0 };
  let said = 0;
  let timers = [];

  const total = () => counts.set + counts.delete;
  function showState(kind, text) {
    replace(state, pill(kind, text), el("span", { class: "soft" }, `${numberText(counts.set)} set, ${numberText(counts.delete)} deleted or expired`),
      total() > MAX_ROWS && el("span", { class: "soft" }, `the newest ${MAX_ROWS} are shown`));
  }
  let shownState = ["", "connecting"];

  function end(text) {
    source?.close();
    source = null;
    timers.forEach(clearInterval);
    timers = [];
    draw();
    stop.hidden = true;
    watchToken = "";
    if (text) {
      showState("", "stopped");
      announce(text);
    }
  }

  function draw() {
    if (waiting.length > 0) {
      const fresh = waiting.slice(-MAX_ROWS).reverse().map(changeRow);
      fresh.forEach((row) => row.classList.add("fresh"));
      rows.prepend(...fresh);
      while (rows.childElementCount > MAX_ROWS) rows.lastElementChild.remove();
      waiting = [];
    }
    empty.hidden = rows.childElementCount > 0;
    listing.hidden = rows.childElementCount === 0;
    if (source) showState(...shownState);
  }

  function take(name, event) {
    let data = null;
    try {
      data = JSON.parse(event.data);
    } catch {
      return;
    }
    if (event.lastEventId) watchToken = event.lastEventId;
    if (name === "set" || name === "delete") {
      counts[name] += 1;
      waiting.push({ name, data });
      if (waiting.length > 2 * MAX_ROWS) waiting = waiting.slice(-MAX_ROWS);
    } else if (name === "current") {
      shownState = ["good", "up to date"];
    } else if (name === "gap") {
      message.replaceChildren(note("warn", el("p", {}, `Changes were missed: ${plainText(String(data.why ?? data.message ?? "the node could not go on from there"), 300)}. What is there now follows.`)));
    } else if (name === "bye") {
      shownState = ["warn", "the node stops"];
    }
  }

  function begin(options, since) {
    end("");
    rows.replaceChildren();
    counts = { set: 0, delete: 0 };
    message.replaceChildren();
    box.hidden = false;
    const url = address("/watch", { prefix: options.prefix, initial: options.initial && "true", values: options.values === "0" ? "false" : "", since });
    shownState = ["", "connecting"];
    source = new EventSource(url);
    const own = source;
    source.onopen = () => (shownState = ["good", "watching"]);
    source.onerror = async () => {
      shownState = ["warn", "connecting again"];
      if (own.readyState !== EventSource.CLOSED || own !== source) return;
      end("");
      showState("bad", "not watching");
      const why = await whyRefused(url);
      message.replaceChildren(note("bad", el("p", {}, why), button("Try again", () => begin(options, since))));
    };
    EVENT_NAMES.forEach((name) => source.addEventListener(name, (event) => take(name, event)));
    timers = [setInterval(draw, RENDER_MS), setInterval(() => {
      if (total() > said) announce(`${numberText(total() - said)} changes.`);
      said = total();
    }, SUMMARY_MS)];
    said = 0;
    stop.hidden = false;
    draw();
  }

  const start = (options) => {
    history.replaceState(null, "", placeText("watch", { ...options, on: "1" }));
    begin(options, "");
  };
  if (params.on) begin(params, params.since);
  return {
    element: el("div", { class: "stack" }, heading("Watch", "Every change of the keys that you choose, as this node applies it. A slow reader gets the newest state of a key, not each one before it."),
      watchForm(params, start), message, el("div", { class: "value-bar" }, state, stop), box),
    extras: () => (source && watchToken ? { since: watchToken } : {}),
    close: () => end(""),
  };
}
