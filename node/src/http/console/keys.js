// The view of the keys: those below a prefix, a page at a time, and beside them the record of one.
//
// Keys are put into groups at `:` and `/`. A group costs one question: behind its first key the scan goes on after the group.

const PAGE_ENTRIES = 100;
const SCAN_LIMIT = 64;
// Questions for one page at most; what is missing then is on the next page.
const MAX_SCANS = 40;
const AFTER_DELIMITER = { ":": ";", "/": "0" };

// The group below `prefix` that a key is in; `null` if it is in none.
function groupOf(key, prefix) {
  const at = key.slice(prefix.length).search(/[:/]/);
  return at < 0 ? null : key.slice(0, prefix.length + at + 1);
}

const afterGroup = (group) => group.slice(0, -1) + AFTER_DELIMITER[group.at(-1)];

// A page of what is below a prefix, from a place on: `{entries, next}`; `next` is the place of the next page, or null.
async function listPage(prefix, grouped, from) {
  const entries = [];
  let place = from;
  for (let scans = 0; place && scans < MAX_SCANS; scans += 1) {
    const { start, cursor } = place;
    const answer = await call("GET", "/rpc/scan", { params: { prefix, start, cursor, limit: SCAN_LIMIT } });
    if (!answer.ok || !Array.isArray(answer.json?.records)) throw new NoAnswer(failure(answer));
    const { records, cursor: further } = answer.json;
    place = further ? { start, cursor: further } : null;
    for (const record of records) {
      const group = grouped ? groupOf(record.key, prefix) : null;
      if (group !== null && entries.at(-1)?.group === group) continue;
      if (entries.length === PAGE_ENTRIES) return { entries, next: { start: record.key } };
      entries.push(group === null ? { record, size: byteCount(record.value) } : { group });
    }
    const last = records.length ? entries.at(-1) : null;
    if (place && last?.group) place = { start: afterGroup(last.group) };
    if (entries.length === PAGE_ENTRIES) return { entries, next: place };
  }
  return { entries, next: place };
}

function entryLink(entry, prefix, params, first) {
  const tabindex = first ? "0" : "-1";
  const rest = (text) => shown(text.slice(prefix.length) || text);
  if (entry.group !== undefined) {
    return el("a", { class: "group", tabindex, href: placeText("keys", { prefix: entry.group }) },
      el("span", { class: "name mono" }, rest(entry.group)), el("span", { class: "meta" }, "group"));
  }
  const { key, ttl } = entry.record;
  const current = params.key === key ? "true" : false;
  return el("a", { tabindex, "aria-current": current, href: placeText("keys", { ...params, key }), "data-key": key },
    el("span", { class: "name mono" }, rest(key)),
    el("span", { class: "meta" }, `${ttl > 0 ? "expires, " : ""}${bytesText(entry.size)}`));
}

// Arrow keys, Home and End move within a list of links, which is one stop of the Tab key.
function moveWithin(list, event) {
  const links = [...list.querySelectorAll("a")];
  const at = links.indexOf(document.activeElement);
  const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: links.length - 1 }[event.key];
  if (at < 0 || to === undefined || !links[to]) return;
  event.preventDefault();
  links[at].tabIndex = -1;
  links[to].tabIndex = 0;
  links[to].focus();
}

function crumbs(prefix) {
  const parts = [...prefix.matchAll(/[^:/]*[:/]?/g)].map(([part]) => part).filter((part) => part !== "");
  const items = [el("li", {}, prefix === "" ? el("b", {}, "All keys") : el("a", { href: placeText("keys", {}) }, "All keys"))];
  let whole = "";
  parts.forEach((part, i) => {
    whole += part;
    const text = el("span", { class: "mono" }, shown(part));
    items.push(el("li", {}, i === parts.length - 1 ? el("b", {}, text) : el("a", { href: placeText("keys", { prefix: whole }) }, text)));
  });
  return el("nav", { "aria-label": "Prefix" }, el("ol", { class: "crumbs" }, items));
}

function findForm(params, openKey) {
  const input = el("input", { type: "text", class: "mono", id: "find", autocomplete: "off", autocapitalize: "off", spellcheck: "false", value: params.prefix ?? "" });
  const open = () => input.value !== "" && go("keys", { prefix: params.prefix, flat: params.flat, key: input.value });
  const form = el("form", { class: "card", role: "search" }, el("div", { class: "inside padded find" },
    el("div", {}, el("label", { for: "find" }, "Prefix or key"), input),
    el("div", { class: "buttons" }, el("button", { class: "button main" }, "List what begins so"), button("Open this key", open), button("New key", openKey))));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    go("keys", { prefix: input.value, flat: params.flat });
  });
  return form;
}

// The list of one prefix with its pages.
function keyList(params) {
  const prefix = params.prefix ?? "";
  const grouped = params.flat !== "1";
  const pages = [{ start: "" }];
  const list = el("ul", { class: "entries", "aria-label": "Keys and groups" });
  list.addEventListener("keydown", (event) => moveWithin(list, event));
  const [state, count] = [el("div"), el("span", { class: "soft small" })];
  const [before, after] = [button("Previous", () => show(-1)), button("Next", () => show(1))];
  before.setAttribute("aria-label", "Previous page");
  after.setAttribute("aria-label", "Next page");
  let number = 0;
  let asked = 0;

  async function show(step) {
    const asking = (asked += 1);
    before.disabled = after.disabled = true;
    const focused = document.activeElement === before || document.activeElement === after;
    replace(state, el("p", { class: "inside soft" }, "Reading…"));
    try {
      const page = await listPage(prefix, grouped, pages[number + step]);
      if (asking !== asked) return;
      number += step;
      pages[number + 1] = page.next;
      list.replaceChildren(...page.entries.map((entry, i) => el("li", {}, entryLink(entry, prefix, params, i === 0))));
      replace(state, page.entries.length === 0 && emptyText(prefix));
      const text = page.entries.length ? `Page ${number + 1}: ${page.entries.length}${page.next ? "" : ", the last"}` : "";
      setText(count, text);
      if (step !== 0) announce(text);
      if (focused) (list.querySelector("a") ?? list).focus();
    } catch (error) {
      if (asking !== asked) return;
      state.replaceChildren(el("div", { class: "inside" }, note("bad", el("p", {}, error.message), button("Try again", () => show(step)))));
    }
    before.disabled = number === 0;
    after.disabled = !pages[number + 1];
  }

  const flat = el("input", { type: "checkbox", id: "flat", checked: grouped });
  flat.addEventListener("change", () => go("keys", { prefix, flat: flat.checked ? "" : "1" }));
  show(0);
  const element = el("section", { class: "card list-side", "aria-label": "Keys" },
    el("div", { class: "title" }, crumbs(prefix)),
    el("div", { class: "inside buttons" }, el("label", { class: "check" }, flat, "In groups at : and /"), button("Read again", () => show(0))),
    state, list, el("div", { class: "pages" }, before, count, after));
  return { element, reload: () => show(0), mark: (key) => markKey(list, key) };
}

function markKey(list, key) {
  for (const link of list.querySelectorAll("a[data-key]")) {
    if (link.dataset.key === key) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
}

function emptyText(prefix) {
  return el("div", { class: "empty" }, el("p", {}, prefix === "" ? "There are no keys yet." : "No key begins so."),
    prefix === "" ? el("p", {}, "Write the first one with “New key”.") : el("p", {}, el("a", { href: placeText("keys", {}) }, "All keys")));
}

function keysView(params) {
  const side = el("section", { class: "card record-side", "aria-label": "Record" });
  const body = el("div", { class: "keys" });
  let list = keyList(params);
  let record = null;

  const openKey = () => open(null);
  // Shows a key, or the form for a new one (`null`), or nothing (`undefined`).
  function open(key) {
    record?.close();
    record = null;
    body.toggleAttribute("data-open", key !== undefined);
    list.mark(key);
    if (key === undefined) {
      side.replaceChildren(el("div", { class: "empty" }, el("p", {}, "Choose a key to see its record.")));
      return;
    }
    const back = el("a", { class: "button back", href: placeText("keys", { ...params, key: "" }), onclick: () => key === null && open(undefined) }, "Back to the list");
    record = new RecordPanel(key, { changed: () => list.reload(), back });
    side.replaceChildren(record.element);
    record.focus();
  }

  body.append(list.element, side);
  open(params.key || undefined);
  const element = el("div", { class: "stack" }, heading("Keys", "What this node holds. A page of the list shows up to a hundred keys or groups, in the order of their bytes."),
    findForm(params, openKey), body);
  return {
    element,
    // The same list with another key beside it.
    moved(next) {
      if ((next.prefix ?? "") !== (params.prefix ?? "") || (next.flat ?? "") !== (params.flat ?? "")) return false;
      const last = params.key;
      params = next;
      open(next.key || undefined);
      if (!next.key) [...body.querySelectorAll("a[data-key]")].find((link) => link.dataset.key === last)?.focus();
      return true;
    },
    close: () => record?.close(),
  };
}
