// Elements. Texts enter the page as text nodes only.

const SVG = "http://www.w3.org/2000/svg";
const byId = (id) => document.getElementById(id);

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const el = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

// A key or a value, harmless and whole.
function shown(text, lines = false) {
  const parts = pieces(text, lines).map(([piece, escape]) =>
    escape ? el("span", { class: "escape" }, piece) : document.createTextNode(piece));
  return el("bdi", { class: "plain", dir: "ltr" }, parts.length ? parts : el("span", { class: "soft" }, "(empty)"));
}

function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// Makes one node look like another: what stays the same keeps the focus and what a reader has of it.
function morph(node, next) {
  if (node.nodeName !== next.nodeName || node.nodeName === "BUTTON") {
    if (!node.isEqualNode(next) || node.nodeName === "BUTTON") node.replaceWith(next);
    return;
  }
  if (node.nodeType !== Node.ELEMENT_NODE) {
    if (node.data !== next.data) node.data = next.data;
    return;
  }
  for (const { name } of [...node.attributes]) if (!next.hasAttribute(name)) node.removeAttribute(name);
  for (const { name, value } of next.attributes) if (node.getAttribute(name) !== value) node.setAttribute(name, value);
  morphChildren(node, [...next.childNodes]);
}

function morphChildren(node, next) {
  const old = [...node.childNodes];
  next.forEach((child, i) => (i < old.length ? morph(old[i], child) : node.append(child)));
  old.slice(next.length).forEach((child) => child.remove());
}

// Changes what is in an element to these nodes and texts.
const replace = (element, ...children) => morphChildren(element, [...el("div", {}, ...children).childNodes]);

const pill = (kind, text) => el("span", { class: `pill ${kind}` }, text);
const button = (text, onclick, kind = "") => el("button", { type: "button", class: `button ${kind}`, onclick }, text);

// A note that screen readers speak at once if it is an error.
const note = (kind, ...children) => el("div", { class: `note ${kind}`, role: kind === "bad" ? "alert" : false }, ...children);

let announcing = null;
// Says something to screen readers. The same text twice is said twice.
function announce(text) {
  clearTimeout(announcing);
  byId("announcer").textContent = "";
  announcing = setTimeout(() => setText(byId("announcer"), text), 100);
}

// A table: `columns` are `{name, number}`, a cell is a node or a text. On a phone each row becomes a list of its cells; the roles are
// given since browsers forget that it is a table when its display changes.
function table(label, columns, rows, kind = "") {
  const head = columns.map(({ name, number }) =>
    el("span", { role: "columnheader", class: number ? "number" : false }, name));
  const body = rows.map((cells) => el("div", { role: "row" }, cells.map((cell, i) =>
    el("div", { role: "cell", class: [columns[i].number && "number", columns[i].wide && "wide", i === 0 && "first"].filter(Boolean).join(" ") || false, "data-label": columns[i].name },
      el("div", {}, cell)))));
  return el("div", { class: `table folds ${kind}`, role: "table", "aria-label": label },
    el("div", { role: "rowgroup", class: "head" }, el("div", { role: "row" }, head)),
    el("div", { role: "rowgroup", class: "rows" }, body));
}

function card(title, ...children) {
  const id = `card-${title.toLowerCase().replace(/[^a-z]+/g, "-")}`;
  return el("section", { class: "card", "aria-labelledby": id },
    el("div", { class: "title" }, el("h2", { id }, title)), ...children);
}

const heading = (title, text) =>
  el("div", { class: "heading" }, el("div", {}, el("h1", { tabindex: "-1" }, title), el("p", {}, text)));

// Asks before something is done that can't be undone. Escape and Cancel answer no; the focus returns to where it was.
function confirmed(title, content, action) {
  return new Promise((resolve) => {
    const before = document.activeElement;
    const cancel = button("Cancel", () => dialog.close("no"));
    const dialog = el("dialog", { "aria-labelledby": "dialog-title" }, el("div", { class: "stack" },
      el("h2", { id: "dialog-title" }, title), content,
      el("div", { class: "buttons" }, button(action, () => dialog.close("yes"), "danger"), cancel)));
    dialog.addEventListener("close", () => {
      dialog.remove();
      if (before instanceof HTMLElement && before.isConnected) before.focus();
      resolve(dialog.returnValue === "yes");
    });
    document.body.append(dialog);
    dialog.showModal();
    cancel.focus();
  });
}
