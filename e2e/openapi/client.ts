// Reads and writes with openapi-fetch, by the types that openapi-typescript makes of a node's description. `node client.js URL`

import createClient from "openapi-fetch";
import type { components, paths } from "./api.js";

type Result = components["schemas"]["BatchResult"];
declare const process: { argv: string[] };

const api = createClient<paths>({ baseUrl: process.argv[2] });
const key = "typescript:a ü";

function same(found: unknown, expected: unknown): void {
    const [left, right] = [JSON.stringify(found), JSON.stringify(expected)];
    if (left !== right) throw new Error(`${left}, not ${right}`);
}

const begun = await api.GET("/rpc/changes", { params: { query: { prefix: "typescript:" } } });
same(begun.data?.events, []);

const written = await api.POST("/rpc", { params: { query: { key, value: "1", ttl: "2h" } } });
same(written.data?.value, "1");
const position = written.response.headers.get("bitacora-position") ?? "";
const version = written.response.headers.get("etag") ?? "";
const read = await api.GET("/rpc", { params: { query: { key, consistency: "session", position } } });
same([read.data?.key, read.data?.value, read.response.headers.get("etag")], [key, "1", version]);

const ifMatch = { "If-Match": version };
const again = await api.POST("/rpc", { params: { query: { key, value: "2" }, header: ifMatch } });
same([again.response.status, again.data?.value], [200, "2"]);
const late = await api.POST("/rpc", { params: { query: { key, value: "3" }, header: ifMatch } });
same(late.response.status, 412);
if (late.error && "current" in late.error) same(late.error.current?.value, "2");
else throw new Error("412 has the record that is there");

const names = [0, 1, 2, 3, 4].map((i) => `typescript:${i}`);
const lines: components["schemas"]["BatchLine"][] = [
    ...names.map((name) => ({ op: "set" as const, key: name, value: name.toUpperCase() })),
    { op: "get", key, consistency: "strong" },
];
const batch = await api.POST("/rpc/batch", {
    body: lines.map((line) => JSON.stringify(line)).join("\n"),
    bodySerializer: (body) => body,
    headers: { "Content-Type": "application/x-ndjson" },
    parseAs: "text",
});
const results: Result[] = (batch.data ?? "").trim().split("\n").map((line) => JSON.parse(line));
same(results.map((result) => ("key" in result ? result.key : result.message)), [...names, key]);
const last = results[results.length - 1]!;
same("value" in last ? last.value : undefined, "2");

const found: [string, string][] = [];
let cursor: string | null | undefined;
do {
    const query = { prefix: "typescript:", limit: 2, consistency: "strong" as const, ...(cursor ? { cursor } : {}) };
    const page = await api.GET("/rpc/scan", { params: { query } });
    for (const record of page.data?.records ?? []) found.push([record.key, record.value]);
    cursor = page.data?.cursor;
} while (cursor);
same(found, [...names.map((name) => [name, name.toUpperCase()]), [key, "2"]]);

const unchanged = { "If-Match": again.response.headers.get("etag") ?? "" };
const deleted = await api.DELETE("/rpc", { params: { query: { key }, header: unchanged } });
same([deleted.response.status, deleted.data?.ttl], [200, -1]);
const gone = await api.GET("/rpc", { params: { query: { key, consistency: "strong" } } });
same([gone.response.status, gone.error?.message], [404, `Key ${key} not found`]);

// A key that changed quickly may be told with its last state only; the one that was deleted comes to its end.
const told = new Map<string, components["schemas"]["SetEvent"] | components["schemas"]["DeleteEvent"]>();
let since = begun.data?.next ?? "";
while (told.get(key)?.event !== "delete") {
    const query = { prefix: "typescript:", since, limit: 2, wait: "20s" };
    const changes = await api.GET("/rpc/changes", { params: { query } });
    if (!changes.data) throw new Error(`${changes.response.status}: ${changes.error?.message}`);
    for (const event of changes.data.events) {
        if (event.event === "gap") throw new Error(event.reason);
        told.set(event.key, event);
    }
    since = changes.data.next;
}
same(told.get(key)?.position, deleted.response.headers.get("bitacora-position"));
same(names.map((name) => { const event = told.get(name); return event?.event === "set" && event.value; }), names.map((name) => name.toUpperCase()));

// The types are sharp: each of these would not compile.
export const refused = [
    // @ts-expect-error a key is needed
    () => api.GET("/rpc", { params: { query: {} } }),
    // @ts-expect-error there is no such level
    () => api.GET("/rpc", { params: { query: { key, consistency: "strng" } } }),
    // @ts-expect-error there is no such path
    () => api.GET("/rpcs", { params: { query: { key } } }),
];
