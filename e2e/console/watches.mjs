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
          let token = "";
          const follow = () => {
            const since = token && `&since=${encodeURIComponent(token)}`;
            const watch = new EventSource(`/watch?prefix=${encodeURIComponent(prefix)}&initial=true${since}`);
            const on = (name, apply) =>
              watch.addEventListener(name, (event) => {
                token = event.lastEventId;
                apply(JSON.parse(event.data));
              });
            // There is no order between keys: all before the last was told once the watch says how far it is.
            const howFar = () => {
              if (!told.has(last)) return;
              watch.close();
              resolve({ state: Object.fromEntries(state), told: told.size, byes, connections });
            };
            watch.addEventListener("open", () => (connections += 1));
            watch.addEventListener("error", () => {
              // It gives up what is answered with an error, such as 503 while no node is ready.
              if (watch.readyState === EventSource.CLOSED) setTimeout(follow, 1_000);
            });
            on("current", () => {
              window.say("current");
              howFar();
            });
            on("progress", howFar);
            on("bye", () => (byes += 1));
            on("gap", (data) => reject(new Error(`a gap: ${data.reason}`)));
            on("delete", ({ key }) => {
              state.delete(key);
              // It may have come and gone while this was away.
              told.add(key);
            });
            on("set", ({ key, value }) => {
              state.set(key, value);
              told.add(key);
            });
          };
          follow();
        }),
      [prefix, last],
    );
    console.log(JSON.stringify(outcome));
  } finally {
    await browser.close();
  }
}
