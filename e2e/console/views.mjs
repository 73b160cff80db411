// The other views, and what all of them must be: for everybody, at every size, in both themes.

import assert from "node:assert/strict";
import { EVERY_SIZE, THEMES, examine, onPage, set, visit } from "./browser.mjs";

/** Every place of the console, and what is done there before it is looked at. */
const PLACES = [
  ["cluster", "#/cluster", async (page) => {
    await page.getByRole("table", { name: "Members" }).waitFor();
    await page.getByText("What is judged here").click();
  }],
  ["keys", "#/keys", async (page) => page.getByText(/^Page 1/).waitFor()],
  ["record", "#/keys?prefix=user:&key=user:1", async (page) => page.getByRole("button", { name: "Change" }).waitFor()],
  ["form", "#/keys?prefix=user:&key=user:2", async (page) => page.getByRole("button", { name: "Change" }).click()],
  ["conflict", "#/keys?prefix=user:&key=user:3", async (page, base) => {
    await page.getByRole("button", { name: "Change" }).click();
    await set(base, "user:3", `another ${Date.now()}`);
    await page.getByRole("textbox", { name: "Value" }).fill("mine");
    await page.getByRole("button", { name: "Save" }).click();
    await page.getByText("Nothing was written.").waitFor();
    await page.getByRole("button", { name: "Cancel" }).scrollIntoViewIfNeeded();
  }],
  ["missing", "#/keys?key=none", async (page) => page.getByText("There is no such key").waitFor()],
  ["dialog", "#/keys?prefix=user:&key=user:4", async (page) => page.getByRole("button", { name: "Delete" }).click()],
  ["watch", "#/watch?on=1&initial=1&prefix=user:", async (page) => page.getByText(/user:1/).first().waitFor()],
  ["session", "#/session", async (page) => {
    await page.getByRole("button", { name: "Write and read it back" }).click();
    await page.getByRole("table", { name: "What each call answered" }).waitFor();
  }],
];

export async function everybody(base) {
  const value = JSON.stringify({ name: "Ann", tags: ["a", "b"], text: "\u202e<b>" });
  for (let i = 0; i < 8; i += 1) await set(base, `user:${i}`, value, i === 1 ? "&ttl=10m" : "");
  await set(base, "greeting", "hello");
  let checks = 0;
  for (const colorScheme of THEMES) {
    await onPage(base, { colorScheme, reducedMotion: "reduce" }, async (page) => {
      for (const [name, place, prepare] of PLACES) {
        await page.setViewportSize({ width: 1440, height: 900 });
        // What the place before has left unsaved is given up.
        const cancel = page.getByRole("button", { name: "Cancel" });
        if ((await cancel.count()) > 0) await cancel.click();
        await visit(page, place);
        await prepare(page, base);
        await examine(page, name, colorScheme, name !== "dialog");
        checks += EVERY_SIZE.length;
      }
    });
  }
  console.log(`axe: ${checks} checks of ${PLACES.length} places, at ${EVERY_SIZE.length} sizes, in ${THEMES.length} themes: 0 findings`);
}

export async function session(base) {
  await onPage(base, {}, async (page) => {
    await visit(page, "#/session");
    await page.getByRole("button", { name: "Do it 20 times" }).click();
    const rows = page.getByRole("table", { name: "What each call answered" }).getByRole("row");
    await rows.nth(4).waitFor();
    const saw = await rows.evaluateAll((all) => all.slice(2).map((row) => [row.querySelector("b").textContent, row.lastElementChild.textContent]));
    assert.deepEqual(saw.slice(1), [["session", "20 of 20"], ["strong", "20 of 20"]]);
    assert.match(saw[0][1], /^\d+ of 20$/);
  });
}

export async function watch(base) {
  await set(base, "w:before", "1");
  await onPage(base, {}, async (page) => {
    await visit(page, "#/watch");
    await page.getByLabel("Keys that begin with").fill("w:");
    await page.getByRole("button", { name: "Watch" }).click();
    await page.getByText(/^(watching|up to date)$/).waitFor();
    await set(base, "other", "no");
    await set(base, "w:<b>key</b>", "a <i>value</i>");
    const rows = page.getByRole("table", { name: "Changes, the newest first" }).getByRole("row");
    await page.getByRole("link", { name: "w:<b>key</b>" }).waitFor();
    assert.equal(await rows.count(), 2, "the head and one row");
    await fetch(`${base}/rpc?key=${encodeURIComponent("w:before")}`, { method: "DELETE" });
    await rows.nth(1).getByText("deleted").waitFor();
    await set(base, "w:soon", "x", "&ttl=1s");
    await rows.filter({ hasText: "w:soon" }).filter({ hasText: "expired" }).waitFor();
    for (let i = 0; i < 500; i += 1) await set(base, `w:${i % 50}`, `${i}`);
    await page.getByText("the newest 200 are shown").waitFor();
    assert.ok((await rows.count()) <= 201, "the table does not grow");
    await page.getByRole("button", { name: "Stop" }).click();
    await page.getByText("stopped", { exact: true }).waitFor();
    await page.getByRole("link", { name: "w:<b>key</b>" }).or(rows.nth(1).getByRole("link")).first().click();
    await page.getByRole("region", { name: "Record" }).getByRole("button", { name: "Change" }).waitFor();
  });
}
