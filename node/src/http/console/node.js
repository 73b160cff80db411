// This node and the others: asked every two seconds while the page can be seen. When the node that the page is of dies, the page moves to
// another member, which has the same page.

const POLL_MS = 2_000;
const HIDDEN_POLL_MS = 10_000;
const MOVE_AFTER_SECONDS = 10;
const PROBE_TIMEOUT_MS = 1_500;

// What was last heard, and when, in seconds; `status` is null until the first answer.
const cluster = { status: null, members: [], heardAt: 0, failures: 0, lostAt: 0, alerts: [] };
const clusterListeners = new Set();
const seconds = () => performance.now() / 1000;

const moving = { timer: null, target: null, stays: false, probing: false };

async function askAll() {
  const [status, metrics, members] = await Promise.all([
    call("GET", "/status"), call("GET", "/metrics"), call("GET", "/status/members")]);
  if (!status.ok || !metrics.ok || !status.json) throw new NoAnswer("The node does not give its status.");
  cluster.status = status.json;
  cluster.members = members.ok ? members.json.members : [{ address: status.json.node, status: status.json }];
  cluster.heardAt = seconds();
  noteSample(cluster.heardAt, parseMetrics(metrics.text));
}

async function poll() {
  try {
    await askAll();
    if (cluster.failures > 1) announce("The node answers again.");
    cluster.failures = 0;
    stopMoving();
    moving.stays = false;
  } catch (error) {
    if (!(error instanceof NoAnswer)) console.error(error);
    cluster.failures += 1;
    if (cluster.failures === 1) cluster.lostAt = seconds();
  }
  if (cluster.status && cluster.failures === 0) {
    const { status, members } = cluster;
    cluster.alerts = judgeAlerts({ status, members, now: seconds() });
  }
  showHere();
  for (const listener of clusterListeners) listener();
  setTimeout(poll, document.hidden ? HIDDEN_POLL_MS : POLL_MS);
}

// The state of a member in a word or two, and how good that is.
function stateOf(member) {
  const { status } = member;
  if (!status) return ["bad", "not answering"];
  if (!status.restore.done) return ["warn", `restoring${restoredText(status.restore)}`];
  if (!status.ready) return ["bad", "not ready"];
  if (status.log.state === "blocked" || status.log.state === "failed") return ["bad", `log ${status.log.state}`];
  if (!status.caught_up) return ["warn", status.log.state === "connecting" ? "without the log" : "behind"];
  return ["good", "ready"];
}

const restoredText = (restore) => (restore.fraction === null ? "" : `, ${(restore.fraction * 100).toFixed(1)} %`);
const isLost = () => cluster.failures > 1;

function showHere() {
  const name = cluster.status?.node ?? location.host;
  setText(byId("here-name"), plainText(name));
  const [kind, text] = isLost() ? ["bad", "not answering"] : cluster.status ? stateOf({ status: cluster.status }) : ["", "asking"];
  const state = byId("here-state");
  state.className = `pill ${kind}`;
  setText(state, text);
  if (cluster.status) setText(byId("footer-version"), `Version ${plainText(cluster.status.version)}`);
  document.title = `${isLost() ? "Not answering: " : ""}${viewTitle()} – ${plainText(name)} – Bitacora`;
  showBanner();
}

function showBanner() {
  const banner = byId("banner");
  if (isLost()) {
    if (!banner.querySelector(".lost")) banner.replaceChildren(lostBanner());
    setText(banner.querySelector(".for"), timeText(seconds() - cluster.lostAt));
    if (!moving.target && !moving.probing && !moving.stays) findTarget();
  } else if (banner.querySelector(".lost")) {
    banner.replaceChildren();
  }
}

function lostBanner() {
  return el("div", { class: "note-bar lost" }, el("div", { class: "note bad", role: "alert" },
    el("p", {}, el("b", {}, `${plainText(cluster.status?.node ?? location.host)} does not answer.`),
      " What you see is what it last said. The page goes on asking it."),
    el("p", { class: "small", "aria-hidden": "true" }, "Without an answer for ", el("span", { class: "for" }), "."),
    el("div", { class: "targets" })));
}

// How members are reached: they speak TLS if this node does.
function memberUrl(member) {
  return `${document.querySelector("meta[name=members]").content}://${member}/`;
}

// Whether a browser of this place reaches a member. What it answers can't be read here, but that it does can be told.
async function reaches(member) {
  try {
    await fetch(`${memberUrl(member)}health/live`, { mode: "no-cors", cache: "no-store", signal: AbortSignal.timeout(PROBE_TIMEOUT_MS) });
    return true;
  } catch {
    return false;
  }
}

// Looks for a member that answers, and moves to it unless something would be lost.
async function findTarget() {
  const own = new Set([location.host, cluster.status?.node]);
  const others = (cluster.status?.members ?? []).filter((member) => !own.has(member));
  moving.probing = true;
  const answers = await Promise.all(others.map(reaches));
  moving.probing = false;
  const place = byId("banner").querySelector(".targets");
  if (!place || !isLost()) return;
  const found = others.filter((_, i) => answers[i]);
  if (found.length === 0) {
    replace(place, el("p", {}, others.length ? "No other member can be reached from this browser." : "It knows no other member."));
    return;
  }
  // The ready ones first, by what was last heard of them.
  const isReady = (member) => cluster.members.some(({ address: of, status }) => of === member && status?.ready);
  offerTarget(place, found.find(isReady) ?? found[0]);
}

function offerTarget(place, target) {
  moving.target = target;
  const go = button(`Move to ${plainText(target)}`, () => moveTo(target), "main");
  if (hasUnsaved()) {
    place.replaceChildren(el("p", {}, `${plainText(target)} answers. What you have typed and not saved stays here until you move.`), go);
    return;
  }
  let left = MOVE_AFTER_SECONDS;
  const count = el("span", { "aria-hidden": "true" }, `${left} s`);
  const stay = button("Stay here", () => {
    stopMoving();
    moving.stays = true;
    place.replaceChildren(el("p", {}, "The page stays."), go);
    go.focus();
  });
  place.replaceChildren(el("p", {}, `${plainText(target)} answers. The page moves there in `, count, el("span", { class: "visually-hidden" }, "ten seconds"), "."),
    el("div", { class: "buttons" }, go, stay));
  moving.timer = setInterval(() => {
    left -= 1;
    setText(count, `${left} s`);
    if (left <= 0) moveTo(target);
  }, 1000);
}

function stopMoving() {
  clearInterval(moving.timer);
  moving.timer = null;
  moving.target = null;
}

// The same view at another member.
function memberAddress(member, extra = {}) {
  const { view, params } = currentPlace();
  return `${memberUrl(member)}${placeText(view, { ...params, ...viewExtras(), ...extra })}`;
}

function moveTo(member) {
  stopMoving();
  allowLeaving();
  location.assign(memberAddress(member, { from: cluster.status?.node ?? location.host }));
}

// Says where the page came from, once.
function showArrival() {
  const { view, params } = currentPlace();
  if (!params.from) return;
  const from = params.from;
  delete params.from;
  history.replaceState(null, "", placeText(view, params));
  const close = button("Close", () => byId("banner").replaceChildren());
  byId("banner").replaceChildren(el("div", { class: "note-bar" }, el("div", { class: "note warn", role: "status" },
    el("p", {}, `You are at another member now: ${plainText(from)} stopped answering.`), close)));
}
