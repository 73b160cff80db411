// A browser's EventSource, which connects again by itself, wherever the balancer leads.

import { chromium } from "playwright-core";

export async function follows(base, prefix, last) {
  const browser = await chromium.launch({ executablePath: process.env.E2E_BROWSER, args: ["--no-sandbox", "--disable-dev-shm-usage"] });
  try {
    const page = await browser.newPage();
    await page.exposeFunction("say", (line) => console.log(line));
    await page.goto(`${base}/health`);
    const outcome = await page.evaluate(
      ([prefix, last]) =>
        new Promise((resolve, reject) => {
          const [state, told] = [new Map(), new Set()];
          let [byes, connections] = [0, 0];
          const watch = new EventSource(`/watch?prefix=${encodeURIComponent(prefix)}&initial=true`);
          watch.addEventListener("open", () => (connections += 1));
          watch.addEventListener("current", () => window.say("current"));
          watch.addEventListener("bye", () => (byes += 1));
          watch.addEventListener("gap", (event) => reject(new Error(`a gap: ${event.data}`)));
          watch.addEventListener("error", () => {
            // It gives up what is answered with an error, such as 503 while no node is ready.
            if (watch.readyState === EventSource.CLOSED) reject(new Error("the browser gave up"));
          });
          watch.addEventListener("delete", (event) => state.delete(JSON.parse(event.data).key));
          watch.addEventListener("set", (event) => {
            const { key, value } = JSON.parse(event.data);
            state.set(key, value);
            told.add(key);
            if (key !== last) return;
            watch.close();
            resolve({ state: Object.fromEntries(state), told: told.size, byes, connections });
          });
        }),
      [prefix, last],
    );
    console.log(JSON.stringify(outcome));
  } finally {
    await browser.close();
  }
}
