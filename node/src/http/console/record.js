// One record: what it is, how old, until when, its value; to change and to delete it.

// A value is shown in parts of so many characters: a long one takes a browser long, and nobody reads it at once.
const PART_CHARACTERS = 16 * 1024;
const LOOK_AGAIN_MS = 5_000;
const FROM = { 0: "unknown", 1: "read from the log", 2: "from another member", 3: "just written" };

// The parts of a value, one after the other on demand.
function valueBox(text) {
  const box = el("pre", { class: "value", tabindex: "0", role: "region", "aria-label": "Value" });
  const more = button("", () => show());
  const rest = el("div", { class: "buttons" }, more);
  let at = 0;
  function show() {
    let end = Math.min(text.length, at + PART_CHARACTERS);
    // Not between the two halves of a character.
    if (end < text.length && /[\ud800-\udbff]/.test(text[end - 1])) end += 1;
    box.append(shown(text.slice(at, end), true));
    at = end;
    const left = text.length - at;
    if (left === 0) rest.remove();
    else setText(more, `Show more (${numberText(left)} characters are left)`);
  }
  show();
  return el("div", { class: "stack tight" }, box, text.length > at && rest);
}

function valuePart(value) {
  const json = prettyJson(value);
  const place = el("div");
  const choose = (text) => place.replaceChildren(valueBox(text));
  choose(json ?? value);
  const options = ["JSON, indented", "As it is"].map((name, i) => {
    const input = el("input", { type: "radio", name: "shown-as", checked: i === 0 });
    input.addEventListener("change", () => choose(i === 0 ? json : value));
    return el("label", { class: "check" }, input, name);
  });
  const chooser = json === null ? el("span", { class: "soft small" }, "Text") : el("fieldset", { class: "options" }, el("legend", { class: "visually-hidden" }, "Show the value"), options);
  const copy = navigator.clipboard && button("Copy", () => navigator.clipboard.writeText(value).then(() => announce("The value is copied."), () => announce("The browser refuses to copy.")), "copy");
  return el("div", { class: "stack tight" }, el("div", { class: "value-bar" }, el("h3", {}, "Value"), chooser, copy), place);
}

// The facts of a record; `tick` brings those that change with time up to date.
function factsOf(record, answer) {
  const [age, left] = [el("span"), el("span")];
  const row = (name, ...value) => [el("dt", {}, name), el("dd", {}, value)];
  const element = el("dl", { class: "facts" },
    row("Version", el("span", { class: "mono" }, answer.position ?? "–")),
    row("Written", age, el("span", { class: "soft" }, ` ago, ${dateText(record.timestamp)}`)),
    row("Expires", left),
    row("Size", bytesText(byteCount(record.value))),
    row("Answered", `by the ${answer.source ?? "node"}, ${FROM[record.source] ?? FROM[0]}`),
    row("Write", el("span", { class: "mono" }, plainText(record.uuid) || "–")));
  function tick() {
    setText(age, timeText((nodeNow() - record.timestamp) / 1000));
    const seconds = (record.ttl - nodeNow()) / 1000;
    setText(left, record.ttl <= 0 ? "never" : seconds > 0 ? `in ${timeText(seconds + 0.999)}` : "It has expired.");
    return record.ttl > 0 && seconds <= 0;
  }
  tick();
  return { element, tick };
}

// The panel of a key; `null` for a new one.
function recordPanel(key, { changed, back }) {
  const title = el("h2", { class: "record-key", tabindex: "-1" }, key === null ? "New key" : shown(key));
  const body = el("div", { class: "stack" });
  const element = el("div", { class: "inside", id: "record" }, back, el("div", { class: "stack" }, title, body));
  let timers = [];
  let closed = false;

  function rest() {
    timers.forEach(clearInterval);
    timers = [];
  }

  async function read() {
    rest();
    if (body.childNodes.length === 0) body.append(el("p", { class: "soft" }, "Reading…"));
    try {
      const answer = await call("GET", "/rpc", { params: { key } });
      if (closed) return;
      if (answer.ok) showRecord(answer);
      else if (answer.status === 404) showMissing(answer);
      else showError(failure(answer));
    } catch (error) {
      if (!closed) showError(error.message);
    }
  }

  const showError = (text) => body.replaceChildren(note("bad", el("p", {}, text), button("Try again", read)));

  function showMissing(answer) {
    body.replaceChildren(el("div", { class: "note" }, el("p", {}, "There is no such key at this node."),
      el("p", { class: "soft small" }, `The node answers for the log up to ${answer.position ?? "an unknown position"}.`),
      el("div", { class: "buttons" }, button("Write it", () => edit(null, null), "main"), button("Read again", read))));
  }

  function showRecord(answer) {
    const record = answer.json;
    const facts = factsOf(record, answer);
    const hint = el("div");
    const actions = el("div", { class: "buttons" }, button("Change", () => edit(record, answer.etag), "main"), button("Read again", read), button("Delete", () => remove(answer.etag), "danger"));
    body.replaceChildren(hint, facts.element, actions, valuePart(record.value));
    timers.push(setInterval(() => {
      if (facts.tick()) {
        rest();
        replace(hint, note("warn", el("p", {}, "This key has expired."), button("Read again", read)));
        announce("The key has expired.");
      }
    }, 1000));
    timers.push(setInterval(() => lookAgain(answer.etag, hint), LOOK_AGAIN_MS));
  }

  // Says when the record is no longer the one that is shown.
  async function lookAgain(etag, hint) {
    if (document.hidden || hint.childNodes.length > 0) return;
    const answer = await call("GET", "/rpc", { params: { key }, headers: { "If-None-Match": etag } }).catch(() => null);
    if (closed || !hint.isConnected || !answer || !(answer.ok || answer.status === 404)) return;
    const text = answer.ok ? `This key has changed: it is at version ${answer.position} now.` : "This key is gone by now.";
    hint.replaceChildren(note("warn", el("p", {}, text), button("Show what is there", read)));
    announce(text);
  }

  async function remove(etag) {
    const content = el("div", { class: "stack tight" }, el("p", { class: "record-key" }, shown(key)), el("p", {}, "It is deleted at every node, if it is still the version that you see."));
    if (!(await confirmed("Delete this key?", content, "Delete"))) return;
    try {
      const answer = await call("DELETE", "/rpc", { params: { key }, headers: { "If-Match": etag, "Idempotency-Key": uuid() } });
      if (answer.ok) {
        announce("The key is deleted.");
        rest();
        body.replaceChildren(note("good", el("p", {}, `Deleted, at ${answer.position}.`), button("Write it again", () => edit(null, null))));
        title.focus();
        changed();
      } else if (answer.status === 412) {
        body.prepend(note("warn", el("p", {}, "It was not deleted: it has changed since you read it."), button("Show what is there", read)));
        body.querySelector(".note button").focus();
      } else {
        body.prepend(note("bad", el("p", {}, failure(answer))));
      }
    } catch (error) {
      body.prepend(note("bad", el("p", {}, `${error.message} The key may be deleted all the same.`)));
    }
  }

  function edit(record, etag) {
    rest();
    const editor = editorOf({
      key, record, etag,
      cancel: () => (key === null ? go("keys", { ...currentPlace().params, key: "" }, true) : read()),
      saved(savedKey) {
        changed();
        if (key === null) go("keys", { ...currentPlace().params, key: savedKey });
        else read().then(() => title.focus());
      },
    });
    body.replaceChildren(editor.element);
    editor.focus();
  }

  if (key === null) edit(null, null);
  else read();
  return { element, focus: () => (key === null ? body.querySelector("input").focus() : title.focus()), close() {
    closed = true;
    rest();
    setUnsaved(false);
  } };
}
