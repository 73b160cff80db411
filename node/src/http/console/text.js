// Text as it is shown. Keys and values are anybody's: what can't be seen, or would change how the text around it looks, is shown as an
// escape, in a colour of its own.

const UNSEEN = /[\p{Cc}\p{Cf}\p{Co}\p{Cn}\p{Cs}\p{Zl}\p{Zp}\u00a0\u034f\u115f\u1160\u17b4\u17b5\u2000-\u200a\u202f\u205f\u2800\u3000\u3164\ufe00-\ufe0f\uffa0\u{e0100}-\u{e01ef}]/u;
const SHORT_ESCAPES = { "\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b", "\f": "\\f" };

function escapeOf(character) {
  const code = character.codePointAt(0);
  const long = code > 0xffff ? `\\u{${code.toString(16)}}` : `\\u${code.toString(16).padStart(4, "0")}`;
  return SHORT_ESCAPES[character] ?? long;
}

// The text in pieces: `[text, false]` as it is, `[escape, true]` in the place of what can't be seen. `lines`: line ends and tabs are left.
function pieces(text, lines) {
  const found = [];
  let plain = "";
  for (const character of text) {
    if (UNSEEN.test(character) && !(lines && (character === "\n" || character === "\t"))) {
      if (plain) found.push([plain, false]);
      plain = "";
      found.push([escapeOf(character), true]);
    } else {
      plain += character;
    }
  }
  if (plain) found.push([plain, false]);
  return found;
}

// The same as one text, where there is no room for colours: labels and announcements.
function plainText(text, most = 120) {
  const all = pieces(text.slice(0, most + 1), false).map(([piece]) => piece).join("");
  return text.length > most ? `${all}…` : all;
}

const byteCount = (text) => new TextEncoder().encode(text).length;

function bytesText(bytes) {
  if (bytes < 1024) return `${bytes} B`;
  const units = ["KiB", "MiB", "GiB", "TiB"];
  let value = bytes;
  let unit = -1;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${value < 10 ? value.toFixed(1) : Math.round(value)} ${units[unit]}`;
}

const numberText = (number) => Math.round(number).toLocaleString("en-GB");

function rateText(number) {
  if (number === null || number === undefined) return "–";
  return number > 0 && number < 10 ? number.toFixed(1) : numberText(number);
}

// Seconds as a time in words: `3 min 20 s`.
function timeText(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min${whole % 60 ? ` ${whole % 60} s` : ""}`;
  if (whole < 86400) return `${Math.floor(whole / 3600)} h ${Math.floor(whole / 60) % 60} min`;
  return `${Math.floor(whole / 86400)} d ${Math.floor(whole / 3600) % 24} h`;
}

// Seconds of a call: `0.4 ms`.
function shortTimeText(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 0.001) return `${Math.round(seconds * 1e6)} µs`;
  return seconds < 1 ? `${(seconds * 1000).toFixed(seconds < 0.01 ? 1 : 0)} ms` : `${seconds.toFixed(1)} s`;
}

const clockText = (ms) => new Date(ms).toLocaleTimeString("en-GB");

function dateText(ms) {
  const date = new Date(ms);
  return Number.isNaN(date.getTime()) ? String(ms) : `${date.toISOString().replace("T", " ").slice(0, 19)} UTC`;
}

// A JSON text with line ends and indents; `null` if it is none, or too deep. Numbers and strings stay as they are written, so
// nothing is rounded and no name that appears twice is lost.
function prettyJson(text) {
  try {
    if (typeof JSON.parse(text) !== "object") return null;
  } catch {
    return null;
  }
  const tokens = text.match(/"(?:[^"\\]|\\.)*"|[{}[\],:]|[^\s{}[\],:"]+/g) ?? [];
  const parts = [];
  let depth = 0;
  tokens.forEach((token, i) => {
    const last = tokens[i - 1];
    const closes = token === "}" || token === "]";
    if (closes) depth -= 1;
    const empty = closes && (last === "{" || last === "[");
    if (i > 0 && !empty && (closes || last === "{" || last === "[" || last === ",")) {
      parts.push("\n", "  ".repeat(Math.min(depth, 40)));
    }
    if (token === "{" || token === "[") depth += 1;
    parts.push(token === ":" ? ": " : token);
  });
  return parts.join("");
}
