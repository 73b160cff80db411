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
class RecordPanel {
  constructor(key, { changed, back }) {
    this.key = key;
    this.changed = changed;
    this.timers = [];
    this.closed = false;
    this.title = el("h2", { class: "record-key", tabindex: "-1" }, key === null ? "New key" : shown(key));
    this.body = el("div", { class: "stack" });
    this.element = el("div", { class: "inside", id: "record" }, back, el("div", { class: "stack" }, this.title, this.body));
    if (key === null) this.edit(null, null);
    else this.read();
  }

  focus() {
    if (this.key === null) this.body.querySelector("input").focus();
    else this.title.focus();
  }

  close() {
    this.closed = true;
    this.rest();
    setUnsaved(false);
  }

  rest() {
    this.timers.forEach(clearInterval);
    this.timers = [];
  }

  async read() {
    this.rest();
    if (this.body.childNodes.length === 0) this.body.append(el("p", { class: "soft" }, "Reading…"));
    try {
      const answer = await call("GET", "/rpc", { params: { key: this.key } });
      if (this.closed) return;
      if (answer.ok) this.showRecord(answer);
      else if (answer.status === 404) this.showMissing(answer);
      else this.showError(failure(answer));
    } catch (error) {
      if (!this.closed) this.showError(error.message);
    }
  }

  showError(text) {
    this.body.replaceChildren(note("bad", el("p", {}, text), button("Try again", () => this.read())));
  }

  showMissing(answer) {
    const buttons = [button("Write it", () => this.edit(null, null), "main"), button("Read again", () => this.read())];
    this.body.replaceChildren(el("div", { class: "note" }, el("p", {}, "There is no such key at this node."),
      el("p", { class: "soft small" }, `The node answers for the log up to ${answer.position ?? "an unknown position"}.`),
      el("div", { class: "buttons" }, buttons)));
  }

  showRecord(answer) {
    const record = answer.json;
    const facts = factsOf(record, answer);
    const hint = el("div");
    const actions = [button("Change", () => this.edit(record, answer.etag), "main"), button("Read again", () => this.read()),
      button("Delete", () => this.remove(answer.etag), "danger")];
    this.body.replaceChildren(hint, facts.element, el("div", { class: "buttons" }, actions), valuePart(record.value));
    this.timers.push(setInterval(() => {
      if (facts.tick()) this.sayExpired(hint);
    }, 1000));
    this.timers.push(setInterval(() => this.lookAgain(answer.etag, hint), LOOK_AGAIN_MS));
  }

  sayExpired(hint) {
    this.rest();
    hint.replaceChildren(note("warn", el("p", {}, "This key has expired."), button("Read again", () => this.read())));
    announce("The key has expired.");
  }

  // Says when the record is no longer the one that is shown.
  async lookAgain(etag, hint) {
    if (document.hidden || hint.childNodes.length > 0) return;
    const answer = await call("GET", "/rpc", { params: { key: this.key }, headers: { "If-None-Match": etag } }).catch(() => null);
    if (this.closed || !hint.isConnected || !answer || !(answer.ok || answer.status === 404)) return;
    const text = answer.ok ? `This key has changed: it is at version ${answer.position} now.` : "This key is gone by now.";
    hint.replaceChildren(note("warn", el("p", {}, text), button("Show what is there", () => this.read())));
    announce(text);
  }

  async remove(etag) {
    const content = el("div", { class: "stack tight" }, el("p", { class: "record-key" }, shown(this.key)),
      el("p", {}, "It is deleted at every node, if it is still the version that you see."));
    if (!(await confirmed("Delete this key?", content, "Delete"))) return;
    try {
      const headers = { "If-Match": etag, "Idempotency-Key": uuid() };
      this.showRemoved(await call("DELETE", "/rpc", { params: { key: this.key }, headers }));
    } catch (error) {
      this.body.prepend(note("bad", el("p", {}, `${error.message} The key may be deleted all the same.`)));
    }
  }

  showRemoved(answer) {
    if (answer.ok) {
      announce("The key is deleted.");
      this.rest();
      this.body.replaceChildren(note("good", el("p", {}, `Deleted, at ${answer.position}.`), button("Write it again", () => this.edit(null, null))));
      this.title.focus();
      this.changed();
    } else if (answer.status === 412) {
      this.body.prepend(note("warn", el("p", {}, "It was not deleted: it has changed since you read it."), button("Show what is there", () => this.read())));
      this.body.querySelector(".note button").focus();
    } else {
      this.body.prepend(note("bad", el("p", {}, failure(answer))));
    }
  }

  edit(record, etag) {
    this.rest();
    const editor = new Editor({
      key: this.key, record, etag,
      cancel: () => (this.key === null ? go("keys", { ...currentPlace().params, key: "" }, true) : this.read()),
      saved: (key) => {
        this.changed();
        if (this.key === null) go("keys", { ...currentPlace().params, key });
        else this.read().then(() => this.title.focus());
      },
    });
    this.body.replaceChildren(editor.element);
    editor.focus();
  }
}
