// Keys and values that are made to be taken for something else, and very many and very large ones.

import assert from "node:assert/strict";
import { get, onPage, setAll, visit } from "./browser.mjs";

const MARKUP = "<img src=x onerror=alert(1)><script>alert(2)</script>";
const KEYS = [
  "<img src=x onerror=alert(1)>", "\"quotes' & `ticks`", "../../rpc/../status", "%00%2e%2e%2f?a=b#c", "nul\u0000inside", "\u202egnp.exe\u2066",
  "javascript:alert(3)", " spaces ", "two\nlines\r\tand a tab", "שלום مرحبا", "zero\u200bwidth\ufeff", "é".repeat(508), "${alert(4)}{{5}}", "#/keys?key=x", "👩‍🚀",
];
const UNSEEN = /[\p{Cc}\p{Cf}]/u;

export async function text(base) {
  await setAll(base, KEYS.map((key) => [`hostile ${key}`, `${MARKUP}${key}`]));
  await onPage(base, {}, async (page) => {
    for (const key of KEYS.map((rest) => `hostile ${rest}`)) {
      await visit(page, `#/keys?prefix=hostile&flat=1&key=${encodeURIComponent(key)}`);
      const panel = page.getByRole("region", { name: "Record" });
      await panel.getByText(MARKUP).first().waitFor();
      const shown = await page.locator("#record .record-key").textContent();
      assert.ok(!UNSEEN.test(shown), `${JSON.stringify(shown)} hides something`);
      const markup = await page.evaluate(() => document.querySelectorAll("main img, main script, main iframe").length);
      assert.equal(markup, 0);
    }
    // Each can be opened from the list, and deleted, and is the one that was meant.
    await visit(page, "#/keys?prefix=hostile&flat=1");
    const links = page.getByRole("list", { name: "Keys and groups" }).getByRole("link");
    await links.nth(KEYS.length - 1).waitFor();
    assert.equal(await links.count(), KEYS.length);
    const known = new Set(KEYS.map((key) => `hostile ${key}`));
    for (const key of await links.evaluateAll((all) => all.map((link) => link.dataset.key))) assert.ok(known.has(key), JSON.stringify(key));
    const key = "hostile ../../rpc/../status";
    await visit(page, `#/keys?prefix=hostile&flat=1&key=${encodeURIComponent(key)}`);
    await page.getByRole("button", { name: "Delete" }).click();
    await page.getByRole("dialog").getByRole("button", { name: "Delete" }).click();
    await page.getByText(/^Deleted, at/).waitFor();
    assert.equal(await get(base, key), null);
    // A broken link is no error.
    await visit(page, "#/keys?key=%E0%A4%A&prefix=%zz");
    await page.getByRole("heading", { name: "Keys" }).waitFor();
  });
}

export async function much(base) {
  const pad = (i) => String(i).padStart(5, "0");
  await setAll(base, Array.from({ length: 10_000 }, (_, i) => [`many/${pad(i)}`, `value ${i}`]));
  const value = `["${"\u0001<b>".repeat(200_000)}"`.padEnd(1 << 20, ".").slice(0, 1 << 20);
  await setAll(base, [["large", value]]);
  await onPage(base, {}, async (page) => {
    await visit(page, "#/keys?prefix=many/");
    const links = page.getByRole("list", { name: "Keys and groups" }).getByRole("link");
    const next = page.getByRole("button", { name: "Next page" });
    const seen = [];
    for (let number = 1; ; number += 1) {
      await page.locator(".pages").getByText(new RegExp(`^Page ${number}: 100`)).waitFor();
      seen.push(...(await links.evaluateAll((all) => all.map((link) => link.dataset.key))));
      if (await next.isDisabled()) break;
      await next.click();
    }
    assert.equal(seen.length, 10_000);
    seen.forEach((key, i) => assert.equal(key, `many/${pad(i)}`));
    assert.ok((await page.evaluate(() => document.querySelectorAll("*").length)) < 1_500, "the page does not grow");
    // A group of ten thousand is one entry.
    await visit(page, "#/keys");
    await links.filter({ hasText: "many/" }).waitFor();
    await links.filter({ hasText: "large" }).click();
    await page.getByText("1.0 MiB").last().waitFor();
    await page.getByRole("button", { name: /^Show more/ }).click();
    await page.getByRole("button", { name: "Change" }).click();
    // It is written back whole.
    await page.getByRole("textbox", { name: "Value" }).press("ControlOrMeta+End");
    await page.getByRole("button", { name: "Save" }).click();
    await page.getByRole("button", { name: "Change" }).waitFor();
    assert.equal(await get(base, "large"), value);
  });
}
