// Opens the console of a node in Chromium, and fails on whatever a page must never do.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
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

const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

/** Holds what the page shows to the rules of axe, at every size; with a picture of each where `E2E_SHOTS` asks for them. */
export async function examine(page, name, theme, whole = true) {
  if (await page.evaluate(() => typeof axe === "undefined")) await page.evaluate(AXE);
  for (const [width, height] of EVERY_SIZE) {
    await page.setViewportSize({ width, height });
    const place = `${name}, ${theme}, ${width} pixels`;
    const result = await page.evaluate(() => axe.run(document, { resultTypes: ["violations"] }));
    const found = result.violations.map(({ id, nodes }) => `${id}: ${nodes.map((node) => node.html.slice(0, 200)).join(" | ")}`);
    assert.deepEqual(found, [], place);
    const wider = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    assert.ok(wider <= 0, `${place}: it is ${wider} pixels wider than the window`);
    if (process.env.E2E_SHOTS) await page.screenshot({ path: `${process.env.E2E_SHOTS}/${name}-${width}-${theme}.png`, fullPage: whole });
  }
}

/** The same in both themes. */
export async function examineInBothThemes(page, name) {
  for (const colorScheme of THEMES) {
    await page.emulateMedia({ colorScheme });
    await examine(page, name, colorScheme);
  }
  await page.setViewportSize({ width: 1440, height: 900 });
}

/** Goes to a view by its address. */
export async function visit(page, place) {
  await page.evaluate((hash) => (location.hash = hash), place);
}

/** Writes a key, and returns once what the node answers at once shows it. */
export async function set(base, key, value, query = "") {
  const answer = await fetch(`${base}/rpc?key=${encodeURIComponent(key)}&visible=here${query}`, { method: "POST", headers: { "Content-Type": "text/plain" }, body: value });
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
