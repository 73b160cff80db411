// The form that writes a record, on a condition or without, and what it shows when the condition does not hold.

let unsaved = false;
const setUnsaved = (state) => (unsaved = state);
const hasUnsaved = () => unsaved;
const allowLeaving = () => setUnsaved(false);
addEventListener("beforeunload", (event) => hasUnsaved() && event.preventDefault());

// Whether a text field would change a text (line ends) or hide a part of it.
const needsEscapes = (text) => [...text].some((character) => character !== "\n" && character !== "\t" && UNSEEN.test(character));

// A text with escapes, as a string of JSON has them, and back.
const AS_THEY_ARE = { '\\"': '"', "\\n": "\n", "\\t": "\t" };
const withEscapes = (text) => JSON.stringify(text).slice(1, -1).replace(/\\["\\nt]/g, (escape) => AS_THEY_ARE[escape] ?? escape)
  .replace(new RegExp(UNSEEN, "gu"), (c) => (c === "\n" || c === "\t" ? c
    : [...Array(c.length).keys()].map((i) => `\\u${c.charCodeAt(i).toString(16).padStart(4, "0")}`).join("")));

function withoutEscapes(text) {
  try {
    return JSON.parse(`"${text.replace(/\n/g, "\\n").replace(/\t/g, "\\t").replace(/(?<!\\)((?:\\\\)*)"/g, '$1\\"')}"`);
  } catch {
    throw new NoAnswer("An escape is not one of JSON: \\n, \\t, \\\\, \\\" and \\u with four digits are.");
  }
}

// A text field that can show escapes: `{element, input, text(), set(text)}`.
function textField(id, label, text, Tag, hint) {
  const input = el(Tag, { id, class: "mono", autocomplete: "off", autocapitalize: "off", spellcheck: "false", "aria-describedby": `${id}-hint`, type: Tag === "input" ? "text" : false });
  const check = el("input", { type: "checkbox" });
  const set = (text) => {
    check.checked = needsEscapes(text);
    input.value = check.checked ? withEscapes(text) : text;
  };
  set(text);
  check.addEventListener("change", () => {
    try {
      input.value = check.checked ? withEscapes(input.value) : withoutEscapes(input.value);
    } catch (error) {
      check.checked = true;
      announce(error.message);
    }
  });
  const element = el("div", {}, el("label", { for: id }, label), input,
    el("div", { class: "options" }, el("label", { class: "check small" }, check, "with escapes such as \\n and \\u202e"), el("p", { class: "hint", id: `${id}-hint` }, hint)));
  return { element, input, set, text: () => (check.checked ? withoutEscapes(input.value) : input.value) };
}

const CONDITIONS = {
  version: "Only if nobody has changed it",
  absent: "Only if there is no such key",
  always: "Whatever is there",
};

function conditionChoice(given, first) {
  const options = given.map((name) => el("label", { class: "check" },
    el("input", { type: "radio", name: "condition", value: name, checked: name === first }), CONDITIONS[name]));
  return el("fieldset", {}, el("legend", { class: "label" }, "Write it"), options);
}

// What is left of a record's time to live, as the field has it.
const leftTtl = (record) => (record && record.ttl > 0 ? `${Math.max(1, Math.round((record.ttl - nodeNow()) / 1000))}s` : "");

class Editor {
  constructor({ key, record, etag, cancel, saved }) {
    this.key = key;
    this.version = etag;
    this.saved = saved;
    // One write: tried again with the same name, it takes effect once.
    this.attempt = uuid();
    this.keyField = key === null ? textField("edit-key", "Key", "", "input", "At most 1,024 bytes.") : null;
    this.valueField = textField("edit-value", "Value", record?.value ?? "", "textarea", "At most 1 MiB, unless the node is set otherwise.");
    this.ttl = el("input", { type: "text", id: "edit-ttl", class: "mono", value: leftTtl(record), placeholder: "for ever", "aria-describedby": "edit-ttl-hint", autocomplete: "off" });
    this.conditions = conditionChoice(etag ? ["version", "always"] : ["absent", "always"], etag ? "version" : "absent");
    this.result = el("div", { "aria-live": "polite" });
    this.save = el("button", { class: "button main" }, "Save");
    this.element = this.form(() => {
      setUnsaved(false);
      cancel();
    });
  }

  form(cancel) {
    const ttl = el("div", {}, el("label", { for: "edit-ttl" }, "Time to live"), this.ttl,
      el("p", { class: "hint", id: "edit-ttl-hint" }, "Empty for ever; or a number with its unit: 500ms, 30s, 5m, 2h, 7d."));
    const form = el("form", { class: "stack", "aria-label": this.key === null ? "New key" : "Change the record" }, this.keyField?.element,
      this.valueField.element, ttl, this.conditions, this.result, el("div", { class: "buttons" }, this.save, button("Cancel", cancel)));
    form.addEventListener("input", () => {
      setUnsaved(true);
      this.attempt = uuid();
    });
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.result.replaceChildren();
      this.write(form.elements.condition.value);
    });
    return form;
  }

  focus() {
    (this.keyField ?? this.valueField).input.focus();
  }

  async write(condition) {
    // Not disabled, which would take the focus away.
    if (this.saving) return;
    this.saving = true;
    try {
      await this.tryToWrite(condition);
    } catch (error) {
      this.result.replaceChildren(note("bad", el("p", {}, `${error.message} Save again: if it was written meanwhile, that is noticed.`)));
    }
    this.saving = false;
  }

  async tryToWrite(condition) {
    const key = this.key ?? this.keyField.text();
    const headers = { "Content-Type": "text/plain; charset=utf-8" };
    if (condition === "version") headers["If-Match"] = this.version;
    if (condition === "absent") headers["If-None-Match"] = "*";
    if (condition !== "always") headers["Idempotency-Key"] = this.attempt;
    // What is read next from this node shows it.
    const params = { key, ttl: this.ttl.value.trim(), visible: "here" };
    const answer = await call("POST", "/rpc", { params, headers, body: this.valueField.text(), timeout: 20_000 });
    if (answer.ok) {
      setUnsaved(false);
      announce(`Saved at ${answer.position}.`);
      this.saved(key);
    } else if (answer.status === 412) {
      this.showConflict(answer.json.current, answer);
    } else {
      this.result.replaceChildren(note("bad", el("p", {}, failure(answer))));
    }
  }

  // What is there instead, and the two ways on: mine over it, or from it.
  showConflict(current, { position, etag }) {
    const what = current
      ? [el("p", {}, "Somebody else has written it: it is at version ", el("span", { class: "mono" }, position ?? "?"), " now."),
        el("h3", {}, "What is there"), valueBox(prettyJson(current.value) ?? current.value)]
      : [el("p", {}, "It is gone: somebody has deleted it, or it has expired.")];
    const over = button(current ? "Save mine over it" : "Write it anew", () => {
      this.goOnFrom(etag);
      this.write(current ? "version" : "absent");
    }, "danger");
    const take = current && button("Take what is there", () => this.take(current, etag));
    const conflict = el("div", { class: "note warn", role: "alert", tabindex: "-1" }, el("p", {}, el("b", {}, "Nothing was written.")), what,
      el("div", { class: "buttons" }, take, over));
    this.result.replaceChildren(conflict);
    conflict.focus();
  }

  goOnFrom(etag) {
    this.version = etag;
    this.attempt = uuid();
    const conditions = conditionChoice(etag ? ["version", "always"] : ["absent", "always"], etag ? "version" : "absent");
    this.conditions.replaceWith(conditions);
    this.conditions = conditions;
  }

  take(current, etag) {
    this.valueField.set(current.value);
    this.ttl.value = leftTtl(current);
    this.goOnFrom(etag);
    this.result.replaceChildren();
    this.valueField.input.focus();
    announce("The form has what is there now.");
  }
}
