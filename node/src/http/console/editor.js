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

// A text field that can show escapes: `{element, input, text()}`.
function textField(id, label, text, Tag, hint) {
  const escaped = needsEscapes(text);
  const input = el(Tag, { id, class: "mono", autocomplete: "off", autocapitalize: "off", spellcheck: "false", "aria-describedby": `${id}-hint`, type: Tag === "input" ? "text" : false });
  input.value = escaped ? withEscapes(text) : text;
  const check = el("input", { type: "checkbox", checked: escaped });
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
  return { element, input, text: () => (check.checked ? withoutEscapes(input.value) : input.value) };
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

function editorOf({ key, record, etag, cancel, saved }) {
  let version = etag;
  // One write: tried again with the same name, it takes effect once.
  let attempt = uuid();
  const keyField = key === null ? textField("edit-key", "Key", "", "input", "At most 1,024 bytes.") : null;
  const valueField = textField("edit-value", "Value", record?.value ?? "", "textarea", "At most 1 MiB, unless the node is set otherwise.");
  const ttl = el("input", { type: "text", id: "edit-ttl", class: "mono", value: leftTtl(record), placeholder: "for ever", "aria-describedby": "edit-ttl-hint", autocomplete: "off" });
  const conditions = conditionChoice(version ? ["version", "always"] : ["absent", "always"], version ? "version" : "absent");
  const [result, save] = [el("div", { "aria-live": "polite" }), el("button", { class: "button main" }, "Save")];
  const form = el("form", { class: "stack", "aria-label": key === null ? "New key" : "Change the record" }, keyField?.element, valueField.element,
    el("div", {}, el("label", { for: "edit-ttl" }, "Time to live"), ttl, el("p", { class: "hint", id: "edit-ttl-hint" }, "Empty for ever; or a number with its unit: 500ms, 30s, 5m, 2h, 7d.")),
    conditions, result, el("div", { class: "buttons" }, save, button("Cancel", () => {
      setUnsaved(false);
      cancel();
    })));
  form.addEventListener("input", () => {
    setUnsaved(true);
    attempt = uuid();
  });

  async function write(condition) {
    const name = key ?? keyField.text();
    const headers = { "Content-Type": "text/plain; charset=utf-8" };
    if (condition === "version") headers["If-Match"] = version;
    if (condition === "absent") headers["If-None-Match"] = "*";
    if (condition !== "always") headers["Idempotency-Key"] = attempt;
    const answer = await call("POST", "/rpc", { params: { key: name, ttl: ttl.value.trim() }, headers, body: valueField.text(), timeout: 20_000 });
    if (answer.ok) {
      setUnsaved(false);
      announce(`Saved at ${answer.position}.`);
      saved(name);
    } else if (answer.status === 412) {
      showConflict(answer);
    } else {
      result.replaceChildren(note("bad", el("p", {}, failure(answer))));
    }
  }

  function showConflict(answer) {
    const { current } = answer.json;
    const what = current
      ? [el("p", {}, "Somebody else has written it: it is at version ", el("span", { class: "mono" }, answer.position ?? "?"), " now."), el("h3", {}, "What is there"), valueBox(prettyJson(current.value) ?? current.value)]
      : [el("p", {}, "It is gone: somebody has deleted it, or it has expired.")];
    const over = button(current ? "Save mine over it" : "Write it anew", () => {
      version = answer.etag;
      attempt = uuid();
      attemptWrite(current ? "version" : "absent");
    }, "danger");
    const take = current && button("Take what is there", () => {
      valueField.input.value = needsEscapes(current.value) ? withEscapes(current.value) : current.value;
      valueField.element.querySelector("input[type=checkbox]").checked = needsEscapes(current.value);
      ttl.value = leftTtl(current);
      version = answer.etag;
      attempt = uuid();
      conditions.replaceWith(conditionChoice(["version", "always"], "version"));
      result.replaceChildren();
      valueField.input.focus();
      announce("The form has what is there now.");
    });
    const conflict = el("div", { class: "note warn", role: "alert", tabindex: "-1" }, el("p", {}, el("b", {}, "Nothing was written.")), what, el("div", { class: "buttons" }, take, over));
    result.replaceChildren(conflict);
    conflict.focus();
  }

  async function attemptWrite(condition) {
    save.disabled = true;
    try {
      await write(condition);
    } catch (error) {
      result.replaceChildren(note("bad", el("p", {}, `${error.message} Save again: if it was written meanwhile, that is noticed.`)));
    }
    save.disabled = false;
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    result.replaceChildren();
    attemptWrite(form.elements.condition.value);
  });
  return { element: form, focus: () => (keyField ?? valueField).input.focus() };
}
