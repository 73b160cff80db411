// The alerts of monitoring/prometheus/rules/bitacora.yml, as far as one page can judge them: by /status of every member and /metrics
// of this node, since the page was opened. Each says in a sentence why its condition holds, or nothing.

const SHARE_OF_FAILURES = 0.05;
// Samples of /metrics of the last two minutes, the newest last: `{at, series}`, at in seconds.
const samples = [];
const SAMPLE_SECONDS = 125;
// Of a value: when it last grew while this page looked.
const growth = new Map();
let mostMembers = 0;

function noteSample(at, series) {
  samples.push({ at, series });
  while (samples.length > 2 && at - samples[0].at > SAMPLE_SECONDS) samples.shift();
}

// The sample of about so many seconds before the last.
function sampleBefore(seconds) {
  const last = samples.at(-1);
  return samples.find((sample) => last.at - sample.at <= seconds) ?? last;
}

// By how much the sum of a counter's series grew in the last seconds; 0 if that can't be known.
function increase(name, seconds, passes) {
  if (samples.length < 2) return 0;
  const now = sumOf(samples.at(-1).series, name, passes) ?? 0;
  const before = sumOf(sampleBefore(seconds).series, name, passes) ?? 0;
  return Math.max(0, now - before);
}

const metric = (name, passes) => (samples.length ? sumOf(samples.at(-1).series, name, passes) : null);

// Which part of the calls failed within the last seconds; `null` if there was none.
function failing(name, seconds, failed, counted) {
  const all = increase(name, seconds, counted);
  return all === 0 ? null : increase(name, seconds, (full) => counted(full) && failed(full)) / all;
}

// Whether a value has grown within so many seconds, or within them since the node's start.
function grewWithin(name, seconds, now) {
  const value = metric(name) ?? 0;
  const known = growth.get(name) ?? { value, at: -Infinity };
  growth.set(name, value > known.value ? { value, at: now } : { ...known, value });
  const sinceStart = now + clockAhead / 1000 - (metric("process_start_time_seconds") ?? 0);
  return value > 0 && (sinceStart < seconds || now - growth.get(name).at < seconds) ? value : 0;
}

const percent = (part) => `${(part * 100).toFixed(1)} %`;
const outcomeIs = (pattern) => (full) => pattern.test(full);
const every = () => true;
const largest = (state, field) =>
  state.status.partitions.reduce((most, partition) => Math.max(most, partition[field] ?? 0), 0);

// `hold`: for how many seconds the condition must hold until the alert fires.
const RULES = [
  { name: "BitacoraUnavailable", severity: "critical", hold: 30,
    why: ({ members }) => members.length > 0 && !members.some((member) => member.status?.ready) && "No member is ready." },
  { name: "BitacoraNodeDown", severity: "warning", hold: 30, why: ({ members }) => {
    const down = members.filter((member) => member.error);
    return down.length > 0 && `${down.map((member) => `${member.address}: ${member.error}`).join("; ")}.`;
  } },
  { name: "BitacoraNodeUnready", severity: "warning", hold: 30, why: ({ members }) => {
    const unready = members.filter(({ status }) => status && !status.ready && status.restore.done);
    return unready.length > 0 && `${unready.map(({ address, status }) => `${address}: ${status.unready ?? "not ready"}`).join("; ")}.`;
  } },
  { name: "BitacoraMembersMissing", severity: "warning", hold: 120, why: ({ status }) => {
    mostMembers = Math.max(mostMembers, status.members.length);
    return status.members.length < mostMembers && `${status.members.length} members, and there were ${mostMembers} since this page was opened.`;
  } },
  { name: "BitacoraMembershipLost", severity: "warning", hold: 30, why: ({ members }) => {
    const lost = members.filter((member) => member.status?.membership.state === "disconnected");
    return lost.length > 0 && `${lost.map((member) => member.address).join(", ")}: no session with ZooKeeper.`;
  } },
  { name: "BitacoraLagGrowing", severity: "warning", hold: 30, why: (state) => {
    const lag = largest(state, "lag_seconds");
    const [now, before] = [samples.at(-1), sampleBefore(120)].map((sample) => sumOf(sample.series, "bitacora_lag_records") ?? 0);
    return state.status.restore.done && lag > 30 && now >= before && `This node has been behind for ${timeText(lag)}, and gets no nearer.`;
  } },
  { name: "BitacoraLogUnreachable", severity: "warning", hold: 15, why: (state) => {
    const known = state.status.partitions.filter((partition) => partition.high_watermark_age_ms !== null);
    if (known.length === 0) return state.status.log.state === "connecting" && "This node has not heard from the log since it started.";
    const age = largest(state, "high_watermark_age_ms") / 1000;
    return age > 15 && `This node has not heard from the log for ${timeText(age)}.`;
  } },
  { name: "BitacoraRestoreStuck", severity: "warning", hold: 300, why: ({ status, now }) => {
    const ratio = status.restore.fraction ?? 0;
    const known = growth.get("restore") ?? { value: ratio, at: -Infinity };
    growth.set("restore", ratio > known.value ? { value: ratio, at: now } : known);
    return !status.restore.done && now - growth.get("restore").at > 300 && "This node reads no more of the log, and is not restored.";
  } },
  { name: "BitacoraWritesUnacknowledged", severity: "critical", hold: 60, why: () => {
    const part = failing("bitacora_appends_total", 60, outcomeIs(/not_taken|unknown/), (full) => !full.includes("too_large"));
    return part > SHARE_OF_FAILURES && `${percent(part)} of the writes through this node are not acknowledged.`;
  } },
  { name: "BitacoraConsistentReadsFailing", severity: "warning", hold: 60, why: () => {
    const counted = (full) => !/level="eventual"|outcome="refused"/.test(full);
    const part = failing("bitacora_read_waits_total", 60, outcomeIs(/timed_out|unavailable/), counted);
    return part > SHARE_OF_FAILURES && `${percent(part)} of the reads that have to see more than this node holds fail.`;
  } },
  { name: "BitacoraConditionalWritesFailing", severity: "warning", hold: 120, why: () => {
    const part = failing("bitacora_conditional_writes_total", 120, outcomeIs(/refused|unclear/), every);
    return part > SHARE_OF_FAILURES && `${percent(part)} of the conditional writes through this node are not decided.`;
  } },
  { name: "BitacoraKeysInDoubt", severity: "critical", hold: 300, here: true, why: () => {
    const keys = metric("bitacora_keys_in_doubt");
    return keys > 0 && `This node does not know of ${numberText(keys)} keys whether their last conditional write took effect. The alert fires if no node knows.`;
  } },
  { name: "BitacoraNodesDisagree", severity: "critical", hold: 0,
    why: ({ now }) => grewWithin("bitacora_repairs_contradicting_total", 3600, now) > 0 && "This node held something else than a repair says. This must not happen." },
  { name: "BitacoraReplicasDiffer", severity: "critical", hold: 30, why: ({ members }) => {
    const found = members.flatMap(({ address, status }) => (status?.differences ?? []).map((of) => ({ ...of, address })));
    const named = found.slice(0, 5).map((of) => `${of.address} and ${of.member} in partition ${of.partition}, before offset ${numberText(of.next)}`);
    return found.length > 0 && `Nodes hold other records where both have applied the same: ${named.join("; ")}${found.length > named.length ? "; and more" : ""}.`;
  } },
  { name: "BitacoraWatchersNearLimit", severity: "warning", hold: 300, why: () => {
    const part = metric("bitacora_watchers") / (metric("bitacora_watchers_limit") || Infinity);
    return part > 0.9 && `This node has ${percent(part)} of the watchers that it takes.`;
  } },
  { name: "BitacoraPoisonRecords", severity: "warning", hold: 0, why: ({ now }) => {
    const count = grewWithin("bitacora_poison_records_total", 600, now);
    return count > 0 && `${numberText(count)} records can't be decoded and were skipped. Their positions are in the node's log.`;
  } },
  { name: "BitacoraStoreNearlyFull", severity: "warning", hold: 300, why: () => {
    const part = metric("bitacora_store_used_pages") * metric("bitacora_store_page_bytes") / (metric("bitacora_store_map_bytes") || Infinity);
    return part > 0.8 && `The store uses ${percent(part)} of its map.`;
  } },
  { name: "BitacoraDiskNearlyFull", severity: "critical", hold: 300, why: () => {
    const part = metric("bitacora_data_dir_free_bytes") / (metric("bitacora_data_dir_size_bytes") || NaN);
    return part < 0.1 && `The disk under the store has ${percent(part)} free.`;
  } },
  { name: "BitacoraRepairOverdue", severity: "critical", hold: 300, here: true, why: () => {
    const keys = metric("bitacora_pending_repairs");
    return keys > 0 && `This node waits for the repair of ${numberText(keys)} keys. The alert fires if every node does.`;
  } },
  { name: "BitacoraLogLinesDropped", severity: "warning", hold: 300,
    why: ({ now }) => grewWithin("bitacora_log_lines_dropped_total", 600, now) > 0 && "This node can't write its log lines." },
  { name: "BitacoraCertificateRunsOut", severity: "warning", hold: 300, why: () => {
    const at = metric("bitacora_tls_certificate_expiry_timestamp_seconds");
    const days = (at - nodeNow() / 1000) / 86400;
    return at > 0 && days < 7 && `This node's certificate runs out in ${numberText(Math.max(0, Math.floor(days)))} days.`;
  } },
  { name: "BitacoraFilesNotTaken", severity: "warning", hold: 0,
    why: () => metric("bitacora_files_not_taken") > 0
      && "A changed file of tokens, certificates or settings can't be used; what was there before is. The node's log says why." },
];
// These need what one node can't tell, such as the other nodes' /metrics, or more time than a page looks.
const NOT_HERE = ["BitacoraLogNotTrimmed", "BitacoraReplicasNotCompared", "BitacoraBalancerEmpty", "BitacoraWatchesStalled", "BitacoraWatchesDelayed"];

// Of each rule since when its condition holds.
const holding = new Map();

// The rules whose condition holds: `{rule, why, fires, since}`.
function judgeAlerts(state) {
  const found = [];
  for (const rule of RULES) {
    const why = rule.why(state);
    if (!why) {
      holding.delete(rule.name);
      continue;
    }
    if (!holding.has(rule.name)) holding.set(rule.name, state.now);
    const since = holding.get(rule.name);
    found.push({ rule, why, since, fires: state.now - since >= rule.hold && !rule.here });
  }
  return found;
}
