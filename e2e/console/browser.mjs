// Opens the console of a node in Chromium, and fails on whatever a page must never do.

import assert from "node:assert/strict";
import { chromium } from "playwright-core";

export const EVERY_SIZE = [[360, 740], [768, 1024], [1440, 900]];
export const THEMES = ["light", "dark"];

/** Runs `steps` on a page of the console, and fails if it met an error, a dialog, or what its policy forbids. */
export async function onPage(base, options, steps) {
  const browser = await chromium.launch({ executablePath: process.env.E2E_BROWSER, args: ["--no-sandbox", "--disable-dev-shm-usage"] });
  const wrong = [];
  try {
    const context = await browser.newContext({ viewport: { width: 1440, height: 900 }, ...options });
    const page = await context.newPage();
    page.on("pageerror", (error) => wrong.push(`an error: ${error.stack}`));
    page.on("dialog", (dialog) => {
      wrong.push(`a dialog: ${dialog.message()}`);
      dialog.dismiss();
    });
    page.on("console", (message) => {
      // What a node refuses (404, 412) and a node that is gone are told there, too.
      if (message.type() === "error" && !message.text().startsWith("Failed to load resource")) wrong.push(message.text());
    });
    await page.goto(`${base}/`);
    await steps(page);
  } finally {
    await browser.close();
  }
  assert.deepEqual(wrong, []);
}

/** Goes to a view by its address. */
export async function visit(page, place) {
  await page.evaluate((hash) => (location.hash = hash), place);
}

export async function set(base, key, value, query = "") {
  const answer = await fetch(`${base}/rpc?key=${encodeURIComponent(key)}${query}`, { method: "POST", headers: { "Content-Type": "text/plain" }, body: value });
  assert.equal(answer.status, 200, await answer.text());
  return answer.headers.get("bitacora-position");
}

/** What the node has, everything acknowledged included. */
export async function get(base, key) {
  const answer = await fetch(`${base}/rpc?key=${encodeURIComponent(key)}&consistency=strong`);
  return answer.status === 200 ? (await answer.json()).value : null;
}

/** Writes many keys: `[key, value]` of each. */
export async function setAll(base, records) {
  const lines = records.map(([key, value]) => JSON.stringify({ op: "set", key, value }));
  const answer = await fetch(`${base}/rpc/batch`, { method: "POST", body: `${lines.join("\n")}\n` });
  const results = (await answer.text()).trim().split("\n").map((line) => JSON.parse(line).status);
  assert.deepEqual(results.filter((status) => status !== 200), []);
  assert.equal(results.length, records.length);
  await get(base, records.at(-1)[0]);
  await fetch(`${base}/rpc/scan?limit=1&consistency=strong`).then((scan) => scan.text());
}
