// The view of the cluster: figures, alerts, members, traffic, partitions.

const READS = /operation="(get|scan|cluster)"/;
const WRITES = /operation="(set|delete)"/;
const BATCHES = /operation="batch"/;
const charts = {
  requests: lineChart("Requests per second at this node", ["reads", "writes", "batches"], rateText),
  times: lineChart("Time to answer at this node", ["half within", "99 % within"], shortTimeText),
  applied: lineChart("Records applied per second", ["applied"], rateText),
  lag: lineChart("Records still to apply", ["lag"], rateText),
};
let drawnAt = 0;
const latest = { requests: null, p99: null, applied: null };

// Adds what happened between the last two samples.
function drawCharts() {
  const [before, now] = samples.slice(-2);
  if (!now || now.at === drawnAt) return;
  drawnAt = now.at;
  const time = now.at - before.at;
  // A node that was started anew counts from 0.
  const rate = (name, passes) =>
    Math.max(0, (sumOf(now.series, name, passes) ?? 0) - (sumOf(before.series, name, passes) ?? 0)) / time;
  const requests = [READS, WRITES, BATCHES].map((kind) => rate("bitacora_requests_total", (full) => kind.test(full)));
  const times = [0.5, 0.99].map((part) => quantile(part, before.series, now.series, "bitacora_request_duration_seconds"));
  const applied = rate("bitacora_records_applied_total");
  charts.requests.add(now.at, requests);
  charts.times.add(now.at, times);
  charts.applied.add(now.at, [applied]);
  charts.lag.add(now.at, [sumOf(now.series, "bitacora_lag_records")]);
  Object.assign(latest, { requests: requests.reduce((sum, one) => sum + one, 0), p99: times[1], applied });
}

clusterListeners.add(() => {
  if (cluster.failures === 0) drawCharts();
});

function lagOf(status) {
  const known = status.partitions.filter((partition) => partition.lag !== null);
  return known.length === 0 && status.partitions.length > 0 ? null : known.reduce((sum, partition) => sum + partition.lag, 0);
}

function figuresOf() {
  const { status, members } = cluster;
  const ready = members.filter((member) => member.status?.ready).length;
  const lag = lagOf(status);
  const figure = (name, value, detail) => el("div", {}, el("dt", {}, name), el("dd", {}, value), el("dd", { class: "small" }, detail));
  return [
    figure("Members ready", `${ready} of ${members.length}`, status.membership.state === "disconnected" ? "as last known" : "seen from this node"),
    figure("Records to apply", lag === null ? "unknown" : numberText(lag), lag === 0 ? "nothing is missing here" : "at this node"),
    figure("Keys in the store", status.store ? numberText(status.store.records) : "unknown", status.store ? bytesText(status.store.bytes) : ""),
    figure("Requests", latest.requests === null ? "–" : `${rateText(latest.requests)}/s`, "at this node"),
    figure("99 % answered within", shortTimeText(latest.p99), latest.p99 === null ? "no requests just now" : "at this node"),
  ];
}

function alertItems() {
  const order = { critical: 0, warning: 1 };
  const sorted = [...cluster.alerts].sort((a, b) => b.fires - a.fires || order[a.rule.severity] - order[b.rule.severity]);
  return sorted.map(({ rule, why, since, fires }) => {
    const state = fires ? pill(rule.severity === "critical" ? "bad" : "warn", rule.severity) : pill("", "pending");
    const wait = fires || rule.here ? "" : ` Fires if it lasts for ${timeText(rule.hold)}.`;
    return el("li", {}, state, el("div", {}, el("b", {}, rule.name), el("p", { class: "small", "data-since": since }, `${plainText(why, 600)}${wait}`)));
  });
}

function alertsCard() {
  const items = alertItems();
  const list = items.length ? el("ul", { class: "alerts" }, items) : el("p", { class: "inside soft" }, "None. No condition of an alert holds.");
  const rules = [...RULES.map((rule) => rule.name), ...NOT_HERE];
  const details = el("details", {}, el("summary", {}, "What is judged here"), el("div", { class: "inside small soft" },
    el("p", {}, `${RULES.length} of the ${rules.length} alerts of the reference deployment: by the status of every member, and the metrics of this node, since this page was opened. `,
      `Prometheus judges by the metrics of all nodes, and of the time before. Not here: ${NOT_HERE.join(", ")}.`)));
  return [list, details];
}

function memberRow(member) {
  const { address: name, status, error } = member;
  const own = name === cluster.status.node;
  const [kind, state] = stateOf(member);
  const why = error ?? status.unready ?? status.log.reason ?? status.membership.reason ?? status.restore.rebuilding;
  const lag = status ? lagOf(status) : null;
  return [
    el("span", {}, own ? el("span", { class: "mono" }, plainText(name)) : el("a", { class: "mono", href: memberAddress(name) }, plainText(name)),
      own && el("span", { class: "soft small" }, " this node")),
    el("span", {}, pill(kind, state), why && el("span", { class: "why" }, plainText(why, 300))),
    lag === null ? "–" : numberText(lag),
    status?.store ? numberText(status.store.records) : "–",
    status ? plainText(status.version) : "–",
  ];
}

const MEMBER_COLUMNS = [{ name: "Member" }, { name: "State" }, { name: "To apply", number: true }, { name: "Keys", number: true }, { name: "Version" }];
const PARTITION_COLUMNS = [{ name: "Partition" }, { name: "Applied", number: true }, { name: "High watermark", number: true },
  { name: "Lag", number: true }, { name: "Behind for", number: true }, { name: "Log heard", number: true }, { name: "Others agree" }];

// Of this node's partition: whether another node was found to hold something else.
function sameText({ partition, digest }) {
  const others = (cluster.status.differences ?? []).filter((of) => of.partition === partition).map((of) => of.member);
  if (others.length > 0) return el("span", { class: "why" }, `no: ${plainText(others.join(", "), 200)}`);
  return digest ? "yes, as far as known" : "can't be told now";
}

const partitionRow = (partition) => [
  `${partition.partition}`,
  partition.applied < 0 ? "nothing yet" : numberText(partition.applied),
  partition.high_watermark === null ? "unknown" : numberText(partition.high_watermark),
  partition.lag === null ? "unknown" : numberText(partition.lag),
  partition.lag_seconds === null ? "unknown" : timeText(partition.lag_seconds),
  partition.high_watermark_age_ms === null ? "never" : partition.high_watermark_age_ms < 2000 ? "just now" : `${timeText(partition.high_watermark_age_ms / 1000)} ago`,
  sameText(partition),
];

function restoreLine({ restore }) {
  if (restore.done) {
    return el("p", { class: "inside below soft small" }, restore.seconds === null ? "Restored in an earlier run." : `Restored ${shortTimeText(restore.seconds)} after its start.`);
  }
  const left = restore.remaining_seconds === null ? "" : `, about ${timeText(restore.remaining_seconds)} left`;
  const text = `Restoring${restoredText(restore)}${left}`;
  return el("div", { class: "inside below" }, el("span", {}, text),
    restore.fraction !== null && el("progress", { max: 1, value: restore.fraction, "aria-label": "Part of the log that is read" }));
}

function clusterView() {
  const figures = el("dl", { class: "figures" });
  const [alerts, members, partitions, restore] = [el("div"), el("div"), el("div"), el("div")];
  const content = el("div", { class: "stack" }, el("div", { class: "empty card" }, el("p", {}, "Asking the node…")));
  const parts = [figures, card("Alerts that would fire", alerts), card("Members", members),
    el("section", { class: "charts", "aria-label": "Traffic" }, Object.values(charts).map((chart) => chart.figure)),
    card("Partitions at this node", partitions, restore)];
  let filled = false;
  let firing = 0;

  function update() {
    if (!cluster.status) {
      if (isLost()) replace(content, el("div", { class: "empty card" }, el("p", {}, "The node does not answer. The page goes on asking it."), el("p", {}, button("Load the page again", () => location.reload()))));
      return;
    }
    if (!filled) {
      content.replaceChildren(...parts);
      Object.values(charts).forEach((chart) => chart.redraw());
      filled = true;
    }
    const open = alerts.querySelector("details")?.open ?? false;
    replace(figures, figuresOf());
    const next = alertsCard();
    next[1].open = open;
    replace(alerts, next);
    replace(members, table("Members", MEMBER_COLUMNS, cluster.members.map(memberRow), "two"));
    replace(partitions, table("Partitions", PARTITION_COLUMNS, cluster.status.partitions.map(partitionRow), "named"));
    replace(restore, restoreLine(cluster.status));
    const fires = cluster.alerts.filter((alert) => alert.fires).length;
    if (fires > firing) announce(`${fires} alerts would fire.`);
    firing = fires;
  }

  clusterListeners.add(update);
  update();
  return {
    element: el("div", {}, heading("Cluster", "Every member, and what this node does. The page asks every two seconds."), content),
    close: () => clusterListeners.delete(update),
  };
}
