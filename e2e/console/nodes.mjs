// The cluster, and what the page does when the node that it is of dies. The test that started this kills nodes: it is told so by a
// line.

import assert from "node:assert/strict";
import { examineInBothThemes, onPage, set, visit } from "./browser.mjs";

export async function shows(base, count) {
  await onPage(base, {}, async (page) => {
    const began = Date.now();
    await page.reload();
    await page.getByText(`${count} of ${count}`).waitFor();
    console.log(`the console shows a cluster of ${count} after ${((Date.now() - began) / 1000).toFixed(2)} s`);
    const rows = page.getByRole("table", { name: "Members" }).getByRole("row");
    assert.equal(await rows.count(), Number(count) + 1, "the head and a row for each");
    // One that has just started may be behind for a moment.
    await rows.filter({ hasText: "ready" }).nth(count - 1).waitFor();
    // No other origin is asked, and none of this one but for what is needed.
    const asked = await page.evaluate(() => performance.getEntriesByType("resource").map((entry) => new URL(entry.name)).map((url) => url.origin + url.pathname));
    assert.deepEqual([...new Set(asked)].sort(), ["/metrics", "/status", "/status/members"].map((path) => base + path));
  });
}

export async function dies(base, count) {
  await set(base, "kept", "here");
  await onPage(base, {}, async (page) => {
    await page.getByText(`${count} of ${count}`).waitFor();
    console.log("kill another");
    const members = page.getByRole("table", { name: "Members" });
    await members.getByText("not answering").or(members.getByRole("row").nth(Number(count))).first().waitFor();
    await page.getByText(`${count - 1} of`).waitFor();
    await examineInBothThemes(page, "member-down");
    await visit(page, "#/keys?key=kept");
    await page.getByRole("button", { name: "Change" }).click();
    await page.getByRole("textbox", { name: "Value" }).fill("not saved");
    console.log("kill this");
    // What is not saved keeps the page where it is, until somebody says otherwise.
    await page.getByRole("alert").getByText("does not answer").waitFor();
    await page.getByText("What you have typed and not saved stays here").waitFor();
    await page.getByRole("button", { name: "Save" }).click();
    await page.getByText("The node can't be reached.").waitFor();
    await examineInBothThemes(page, "node-down");
    assert.equal(await page.getByRole("textbox", { name: "Value" }).inputValue(), "not saved");
    await page.getByRole("button", { name: /^Move to/ }).click();
    await page.getByText("stopped answering").waitFor();
    assert.notEqual(new URL(page.url()).origin, base);
    await page.getByRole("region", { name: "Record" }).getByText("here", { exact: true }).waitFor();
    await examineInBothThemes(page, "moved");
    // Without anything unsaved it moves by itself.
    const second = new URL(page.url()).origin;
    await visit(page, "#/cluster");
    await page.getByRole("table", { name: "Members" }).waitFor();
    console.log(`kill ${second}`);
    await page.waitForURL((url) => url.origin !== second, { timeout: 60_000 });
    await page.getByText("stopped answering").waitFor();
    await page.getByRole("table", { name: "Members" }).waitFor();
    console.log("the page moved by itself");
  });
}
