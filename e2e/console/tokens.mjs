// A node that has tokens: the console asks for one, and keeps it nowhere but in the page.

import assert from "node:assert/strict";
import { examineInBothThemes, onPage, visit } from "./browser.mjs";

const ASKED = "This node asks for a token.";

export async function token(base, good, unknown) {
  await onPage(base, {}, async (page) => {
    const field = page.locator("#token-input");
    const use = async (text) => {
      await field.fill(text);
      await page.getByRole("button", { name: "Use it" }).click();
    };
    await page.getByText(ASKED).waitFor();
    await examineInBothThemes(page, "token");
    await use(unknown);
    await page.getByText("The node does not know this token.").waitFor();
    await use(good);
    await page.locator("#here-state", { hasText: "ready" }).waitFor();
    await field.waitFor({ state: "detached" });

    await visit(page, "#/watch?prefix=t&on=1");
    await page.locator(".pill", { hasText: "up to date" }).or(page.locator(".pill", { hasText: "watching" })).waitFor();
    const headers = { Authorization: `Bearer ${good}` };
    const written = await fetch(`${base}/rpc?key=tokens&value=seen`, { method: "POST", headers });
    assert.equal(written.status, 200, await written.text());
    await page.getByText("seen").waitFor();

    await visit(page, "#/keys?key=tokens");
    await page.getByText("seen").waitFor();
    const kept = await page.evaluate(() => [location.href, document.cookie, JSON.stringify(localStorage), JSON.stringify(sessionStorage), document.body.innerHTML].join(" "));
    assert.ok(!kept.includes(good), "the token is kept somewhere");
    await page.reload();
    await page.getByText(ASKED).waitFor();
  });
}
