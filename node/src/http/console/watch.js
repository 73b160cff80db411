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
    const response = await fetch(url, { headers: withToken(), signal: end.signal, cache: "no-store" });
    if (response.ok) return "The watch ended. It can be started again.";
    if (response.status === 401) askForToken();
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
    // An expiry has no time of its own but that of its record.
    clockText(data.reason === "expired" ? nodeNow() : Number(data.timestamp)),
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

// The rows of what has changed, drawn a few times a second, however much comes.
class WatchRows {
  constructor() {
    this.listing = table("Changes, the newest first", WATCH_COLUMNS, [], "changes");
    this.rows = this.listing.querySelector(".rows");
    this.empty = el("p", { class: "empty" }, "Nothing has changed yet. Changes appear here as they happen.");
    this.element = el("section", { class: "card", "aria-label": "Changes", hidden: true }, this.listing, this.empty);
    this.clear();
  }

  clear() {
    this.rows.replaceChildren();
    this.waiting = [];
    this.counts = { set: 0, delete: 0 };
  }

  total() {
    return this.counts.set + this.counts.delete;
  }

  add(name, data) {
    this.counts[name] += 1;
    this.waiting.push({ name, data });
    if (this.waiting.length > 2 * MAX_ROWS) this.waiting = this.waiting.slice(-MAX_ROWS);
  }

  draw() {
    if (this.waiting.length > 0) {
      const fresh = this.waiting.slice(-MAX_ROWS).reverse().map(changeRow);
      fresh.forEach((row) => row.classList.add("fresh"));
      this.rows.prepend(...fresh);
      while (this.rows.childElementCount > MAX_ROWS) this.rows.lastElementChild.remove();
      this.waiting = [];
    }
    this.empty.hidden = this.rows.childElementCount > 0;
    this.listing.hidden = this.rows.childElementCount === 0;
  }
}

class WatchView {
  constructor(params) {
    this.state = el("div", { class: "state-line" });
    this.message = el("div", { "aria-live": "polite" });
    this.rows = new WatchRows();
    this.stop = button("Stop", () => this.end("Stopped."));
    this.stop.hidden = true;
    this.source = null;
    this.timers = [];
    const form = watchForm(params, (options) => {
      history.replaceState(null, "", placeText("watch", { ...options, on: "1" }));
      this.begin(options, "");
    });
    this.element = el("div", { class: "stack" },
      heading("Watch", "Every change of the keys that you choose, as this node applies it. A slow reader gets the newest state of a key, not each one before it."),
      form, this.message, el("div", { class: "value-bar" }, this.state, this.stop), this.rows.element);
    if (params.on) this.begin(params, params.since);
  }

  extras() {
    return this.source && watchToken ? { since: watchToken } : {};
  }

  close() {
    this.end("");
  }

  showState(kind, text) {
    const { set, delete: deleted } = this.rows.counts;
    replace(this.state, pill(kind, text), el("span", { class: "soft" }, `${numberText(set)} set, ${numberText(deleted)} deleted or expired`),
      this.rows.total() > MAX_ROWS && el("span", { class: "soft" }, `the newest ${MAX_ROWS} are shown`));
  }

  begin(options, since) {
    this.end("");
    this.rows.clear();
    this.message.replaceChildren();
    this.rows.element.hidden = false;
    this.stop.hidden = false;
    this.now = ["", "connecting"];
    const url = address("/watch", { prefix: options.prefix, initial: options.initial && "true", values: options.values === "0" ? "false" : "", since });
    const source = token ? new TokenEvents(url) : new EventSource(url);
    this.source = source;
    source.onopen = () => (this.now = ["good", "watching"]);
    source.onerror = () => {
      this.now = ["warn", "connecting again"];
      if (source.readyState === EventSource.CLOSED && source === this.source) this.refused(url, () => this.begin(options, since));
    };
    EVENT_NAMES.forEach((name) => source.addEventListener(name, (event) => this.take(name, event)));
    let said = 0;
    this.timers = [setInterval(() => this.draw(), RENDER_MS), setInterval(() => {
      if (this.rows.total() > said) announce(`${numberText(this.rows.total() - said)} changes.`);
      said = this.rows.total();
    }, SUMMARY_MS)];
    this.draw();
  }

  end(text) {
    this.source?.close();
    this.timers.forEach(clearInterval);
    this.draw();
    this.source = null;
    this.stop.hidden = true;
    watchToken = "";
    if (text) {
      this.showState("", "stopped");
      announce(text);
    }
  }

  draw() {
    this.rows.draw();
    if (this.source) this.showState(...this.now);
  }

  async refused(url, again) {
    this.end("");
    this.showState("bad", "not watching");
    this.rows.element.hidden = this.rows.total() === 0;
    this.message.replaceChildren(note("bad", el("p", {}, await whyRefused(url)), button("Try again", again)));
  }

  take(name, event) {
    let data = null;
    try {
      data = JSON.parse(event.data);
    } catch {
      return;
    }
    if (event.lastEventId) watchToken = event.lastEventId;
    if (name === "set" || name === "delete") this.rows.add(name, data);
    else if (name === "current") this.now = ["good", "up to date"];
    else if (name === "progress" && data.behind) this.now = ["warn", "without the log"];
    else if (name === "bye") this.now = ["warn", "the node ends the watch"];
    else if (name === "gap") {
      const why = plainText(String(data.reason ?? "the node could not go on from there"), 300);
      this.message.replaceChildren(note("warn", el("p", {}, `Changes were missed: ${why}. What is there now follows.`)));
    }
  }
}
