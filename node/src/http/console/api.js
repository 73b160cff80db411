// Calls of this node's API. Nothing here trusts an answer further than its JSON.

const CALL_TIMEOUT_MS = 10_000;
// By how much the node's clock is ahead of the browser's, in ms, if that is more than a second or two: ages and times to live are
// the node's.
let clockAhead = 0;
const nodeNow = () => Date.now() + clockAhead;

// The token that calls show: in the memory of this page only, and gone with it.
let token = "";
const withToken = (headers = {}) => (token ? { ...headers, authorization: `Bearer ${token}` } : headers);

// Asks for a token, once a call was refused for want of a good one.
function askForToken() {
  const place = byId("token");
  if (place.firstChild) return;
  const input = el("input", { type: "password", id: "token-input", class: "mono", autocomplete: "off", spellcheck: "false" });
  const form = el("form", { class: "note-bar", "aria-label": "Token" }, el("div", { class: "note warn" },
    el("p", {}, el("label", { for: "token-input" }, token ? "The node does not know this token. Another one:" : "This node asks for a token. The page forgets it when you leave:")),
    el("p", {}, input, " ", el("button", { class: "button main" }, "Use it"))));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    // What can be in a header.
    token = input.value.replace(/[^!-~]/g, "");
    place.replaceChildren();
    announce("The token is used from now on.");
    if (!hasUnsaved()) showPlace(true);
  });
  place.replaceChildren(form);
}

// A call that had no answer. `message` is a sentence.
class NoAnswer extends Error {}

function noteClock(response) {
  const date = Date.parse(response.headers.get("date") ?? "");
  if (Number.isNaN(date)) return;
  const ahead = date + 500 - Date.now();
  clockAhead = Math.abs(ahead) > 2_000 ? ahead : 0;
}

function address(path, params = {}) {
  const given = Object.entries(params).filter(([, value]) => value !== undefined && value !== null && value !== "");
  try {
    return path + (given.length ? `?${given.map(([name, value]) => `${name}=${encodeURIComponent(value)}`).join("&")}` : "");
  } catch {
    throw new NoAnswer("The text has half of a character (a lone surrogate), which can't be sent.");
  }
}

// Makes a call: status, headers that matter, text and, if it is JSON, what it says.
async function call(method, path, { params, headers, body, timeout = CALL_TIMEOUT_MS } = {}) {
  const url = address(path, params);
  const began = performance.now();
  const end = new AbortController();
  const timer = setTimeout(() => end.abort(), timeout);
  try {
    const response = await fetch(url, { method, headers: withToken(headers), body, signal: end.signal, cache: "no-store", redirect: "error" });
    const text = await response.text();
    noteClock(response);
    if (response.status === 401) askForToken();
    const header = (name) => response.headers.get(name);
    let json = null;
    if ((header("content-type") ?? "").includes("json") && text) json = JSON.parse(text);
    const { status, ok } = response;
    const position = header("bitacora-position");
    return { status, ok, text, json, position, etag: header("etag"), source: header("bitacora-source"), ms: performance.now() - began };
  } catch (error) {
    if (end.signal.aborted) throw new NoAnswer(`The node did not answer within ${timeout / 1000} s.`);
    if (error instanceof SyntaxError) throw new NoAnswer("The answer is not the JSON that a node gives.");
    throw new NoAnswer("The node can't be reached.");
  } finally {
    clearTimeout(timer);
  }
}

// What went wrong, as a sentence; of a write, whether it may still take effect.
function failure(answer) {
  const said = answer.json?.message ?? `The node answered ${answer.status}.`;
  const sentence = plainText(String(said).charAt(0).toUpperCase() + String(said).slice(1), 600);
  const may = answer.json?.mayTakeEffect;
  if (may === true) return `${sentence} It may still take effect.`;
  return may === false ? `${sentence} It will not take effect.` : sentence;
}

// A uuid. `crypto.randomUUID` is only there on pages of https and of this machine.
function uuid() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join("-");
}

// The series of a scrape: from the name with its labels to the number.
function parseMetrics(text) {
  const series = new Map();
  for (const line of text.split("\n")) {
    if (line === "" || line.startsWith("#")) continue;
    const space = line.lastIndexOf(" ");
    series.set(line.slice(0, space), Number(line.slice(space + 1)));
  }
  return series;
}

// The sum of all series of a name whose labels pass; `null` if there is none.
function sumOf(series, name, passes = () => true) {
  let sum = null;
  for (const [full, value] of series) {
    const own = full.startsWith(name) && (full.length === name.length || full[name.length] === "{");
    if (own && passes(full)) sum = (sum ?? 0) + value;
  }
  return sum;
}
