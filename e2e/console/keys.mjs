// The keys: browsed, written, changed by two at a time, deleted; by mouse and by the keyboard alone.

import assert from "node:assert/strict";
import { get, onPage, set, setAll, visit } from "./browser.mjs";

const record = (page) => page.getByRole("region", { name: "Record" });
const list = (page) => page.getByRole("list", { name: "Keys and groups" });

export async function browse(base) {
  await setAll(base, [["fruit:apple:size", "1"], ["fruit:pear", `{"colour":"green","id":12345678901234567890}`], ["veg/leek", "2"], ["plain", "3"]]);
  await onPage(base, {}, async (page) => {
    await page.getByRole("link", { name: "Keys" }).click();
    await list(page).getByRole("link", { name: "plain" }).waitFor();
    assert.deepEqual(await list(page).locator(".name").allTextContents(), ["fruit:", "plain", "veg/"]);
    await list(page).getByRole("link", { name: "fruit:" }).click();
    await list(page).getByRole("link", { name: "pear" }).click();
    // A number that JavaScript can't hold is shown as it is written.
    await record(page).getByText(`"id": 12345678901234567890`).waitFor();
    await page.getByLabel("As it is").check();
    await record(page).getByText(`{"colour":"green","id":12345678901234567890}`).waitFor();
    await page.goBack();
    await page.getByRole("navigation", { name: "Prefix" }).getByRole("link", { name: "All keys" }).click();
    await list(page).getByRole("link", { name: "veg/" }).waitFor();
  });
}

export async function write(base) {
  await onPage(base, {}, async (page) => {
    await visit(page, "#/keys");
    await page.getByRole("button", { name: "New key" }).click();
    await page.getByRole("textbox", { name: "Key", exact: true }).fill("city");
    await page.getByRole("textbox", { name: "Value" }).fill("Bogotá");
    await page.getByLabel("Time to live").fill("30");
    await page.getByRole("button", { name: "Save" }).click();
    // A time without its unit is refused with the node's own sentence, and what was typed stays.
    await record(page).getByText("ttl").first().waitFor();
    await page.getByLabel("Time to live").fill("90s");
    await page.getByRole("button", { name: "Save" }).click();
    await record(page).getByText(/in 1 min \d+ s/).waitFor();
    assert.equal(await get(base, "city"), "Bogotá");

    await page.getByRole("button", { name: "Change" }).click();
    await page.getByRole("textbox", { name: "Value" }).fill("Lima");
    await set(base, "city", "Quito");
    await page.getByRole("button", { name: "Save" }).click();
    // Somebody was faster: what is there is shown, and nothing was written.
    await record(page).getByText("Nothing was written.").waitFor();
    await record(page).getByText("Quito").waitFor();
    assert.equal(await get(base, "city"), "Quito");
    await page.getByRole("button", { name: "Save mine over it" }).click();
    await page.getByRole("button", { name: "Delete" }).waitFor();
    assert.equal(await get(base, "city"), "Lima");

    await page.getByRole("button", { name: "Delete" }).click();
    await page.getByRole("dialog").getByRole("button", { name: "Cancel" }).click();
    assert.equal(await get(base, "city"), "Lima");
    await page.getByRole("button", { name: "Delete" }).click();
    await page.getByRole("dialog").getByRole("button", { name: "Delete" }).click();
    await record(page).getByText(/^Deleted, at/).waitFor();
    assert.equal(await get(base, "city"), null);
    // A value with a line end that a text field would change is written back as it was.
    await set(base, "lines", "a\r\nb\u202e");
    await visit(page, "#/keys?key=lines");
    await page.getByRole("button", { name: "Change" }).click();
    assert.equal(await page.getByRole("textbox", { name: "Value" }).inputValue(), "a\\r\nb\\u202e");
    await page.getByRole("textbox", { name: "Value" }).press("ControlOrMeta+End");
    await page.getByRole("textbox", { name: "Value" }).pressSequentially("c");
    await page.getByRole("button", { name: "Save" }).click();
    await page.getByRole("button", { name: "Change" }).waitFor();
    assert.equal(await get(base, "lines"), "a\r\nb\u202ec");
  });
}

/** What has the focus, by its role's text. */
const focused = (page) => page.evaluate(() => document.activeElement.textContent.trim());

async function tabTo(page, name) {
  for (let i = 0; i < 60; i += 1) {
    await page.keyboard.press("Tab");
    const text = await page.evaluate(() => document.activeElement.labels?.[0]?.textContent ?? document.activeElement.textContent);
    if (text.trim() === name) {
      const outline = await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
      assert.equal(outline, "solid", `${name} shows that it has the focus`);
      return;
    }
  }
  assert.fail(`${name} can't be reached with the Tab key`);
}

export async function keyboard(base) {
  await setAll(base, Array.from({ length: 9 }, (_, i) => [`key-${i}`, `value ${i}`]));
  await onPage(base, {}, async (page) => {
    await tabTo(page, "Skip to the content");
    await page.keyboard.press("Enter");
    assert.equal(await page.evaluate(() => document.activeElement.id), "main");
    await page.reload();
    await tabTo(page, "Keys");
    await page.keyboard.press("Enter");
    assert.equal(await focused(page), "Keys", "the heading of the new view has the focus");
    await list(page).getByRole("link", { name: "key-8" }).waitFor();
    for (let i = 0; i < 60 && !(await focused(page)).startsWith("key-0"); i += 1) await page.keyboard.press("Tab");
    await page.keyboard.press("ArrowDown");
    await page.keyboard.press("End");
    await page.keyboard.press("ArrowUp");
    assert.match(await focused(page), /^key-7/);
    await page.keyboard.press("Enter");
    await record(page).getByText("value 7").waitFor();
    assert.equal(await focused(page), "key-7", "the record's heading has the focus");
    await tabTo(page, "Change");
    await page.keyboard.press("Enter");
    await page.keyboard.press("ControlOrMeta+A");
    await page.keyboard.type("typed");
    await tabTo(page, "Save");
    await page.keyboard.press("Enter");
    await record(page).getByText("typed").waitFor();
    assert.equal(await get(base, "key-7"), "typed");
    await tabTo(page, "Delete");
    await page.keyboard.press("Enter");
    assert.equal(await focused(page), "Cancel", "the harmless answer has the focus");
    await page.keyboard.press("Escape");
    assert.equal(await focused(page), "Delete", "the focus is back");
    await page.keyboard.press("Enter");
    await page.keyboard.press("Shift+Tab");
    await page.keyboard.press("Enter");
    await record(page).getByText(/^Deleted, at/).waitFor();
    assert.equal(await get(base, "key-7"), null);
  });
}
