// Which view is shown: the part of the address behind `#` says it, so that the browser's back and forward work, and a link leads there.

const VIEWS = {
  cluster: ["Cluster", clusterView],
  keys: ["Keys", keysView],
  watch: ["Watch", (params) => new WatchView(params)],
  session: ["Your own writes", sessionView],
};
let current = null;
let currentView = "";

// Where the page is: `#/keys?prefix=a%3A`.
function currentPlace() {
  const [, name = "", query = ""] = /^#\/([a-z]*)\??(.*)$/.exec(location.hash) ?? [];
  const params = {};
  for (const part of query.split("&").filter((text) => text !== "")) {
    const [field, value = ""] = part.split("=");
    try {
      params[field] = decodeURIComponent(value);
    } catch {
      // A link that somebody has broken.
    }
  }
  return { view: Object.hasOwn(VIEWS, name) ? name : "cluster", params };
}

function placeText(view, params) {
  const given = Object.entries(params).filter(([, value]) => value !== undefined && value !== "");
  return `#/${view}${given.length ? `?${given.map(([name, value]) => `${name}=${encodeURIComponent(value.toWellFormed?.() ?? value)}`).join("&")}` : ""}`;
}

const viewTitle = () => VIEWS[currentView]?.[0] ?? "";
const viewExtras = () => current?.extras?.() ?? {};

// Goes to a place; to the one that is shown already, it is made anew.
function go(view, params, anew = false) {
  const place = placeText(view, params);
  if (location.hash === place || anew) {
    history.replaceState(null, "", place);
    showPlace(true);
  } else {
    location.hash = place;
  }
}

function showPlace(anew = false) {
  if (hasUnsaved() && !confirm("What you have typed is not saved. Leave it?")) {
    history.replaceState(null, "", shownPlace);
    return;
  }
  setUnsaved(false);
  shownPlace = location.hash;
  const { view, params } = currentPlace();
  if (!anew && view === currentView && current?.moved?.(params)) return;
  const first = current === null;
  current?.close();
  currentView = view;
  current = VIEWS[view][1](params);
  byId("main").replaceChildren(current.element);
  for (const link of document.querySelectorAll("nav [data-view]")) {
    if (link.dataset.view === view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  showHere();
  // The new view is read out from its heading; at the start the browser does that by itself.
  if (!first && !byId("main").contains(document.activeElement)) byId("main").querySelector("h1").focus();
  scrollTo(0, 0);
}

let shownPlace = location.hash;
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  byId("main").focus();
});
addEventListener("hashchange", () => showPlace());
showArrival();
showPlace();
poll();
