// The view that shows what "reads your own writes" means: a write, and at once three reads of it that ask for different things.

const ROUNDS = 20;
const LEVEL_COLUMNS = [{ name: "Call" }, { name: "Answer", wide: true }, { name: "Position" }, { name: "Took", number: true }, { name: "Saw the write", number: true }];
const LEVELS = [
  { name: "eventual", says: "what this node holds", params: () => ({}) },
  { name: "session", says: "everything up to the write’s position", params: (position) => ({ consistency: "session", position }) },
  { name: "strong", says: "everything acknowledged by any node", params: () => ({ consistency: "strong" }) },
];

// One round: writes a new value and reads it back in all three ways at the same time.
async function writeAndRead(key, value) {
  const written = await call("POST", "/rpc", { params: { key, ttl: "10m" }, headers: { "Content-Type": "text/plain; charset=utf-8" }, body: value });
  if (!written.ok) throw new NoAnswer(failure(written));
  const reads = await Promise.all(LEVELS.map((level) => call("GET", "/rpc", { params: { key, ...level.params(written.position) } })));
  return { written, reads };
}

function answerText(answer, value) {
  if (answer.status === 404) return "nothing: the write is not applied yet";
  if (!answer.ok) return failure(answer);
  return answer.json.value === value ? `the new value, from the ${answer.source}` : `an older value, from the ${answer.source}`;
}

function sessionView() {
  const key = `console-demonstration/${uuid().slice(0, 8)}`;
  const place = el("div", { "aria-live": "polite" });
  const buttons = [button("Write and read it back", () => run(1), "main"), button(`Do it ${ROUNDS} times`, () => run(ROUNDS))];

  let running = false;

  function rowsOf({ written, reads }, value, saw, rounds) {
    const set = [el("b", {}, "set"), `written: ${value}`, el("span", { class: "mono" }, written.position), shortTimeText(written.ms / 1000), "–"];
    return [set, ...LEVELS.map((level, i) => [
      el("span", {}, el("b", {}, level.name), el("span", { class: "why" }, level.says)),
      answerText(reads[i], value), el("span", { class: "mono" }, reads[i].position ?? "–"), shortTimeText(reads[i].ms / 1000),
      rounds === 1 ? (saw[i] ? "yes" : "no") : `${saw[i]} of ${rounds}`,
    ])];
  }

  async function run(rounds) {
    if (running) return;
    running = true;
    const saw = LEVELS.map(() => 0);
    try {
      let [last, value] = [null, ""];
      for (let round = 0; round < rounds; round += 1) {
        value = `${clockText(Date.now())}, number ${round + 1}`;
        last = await writeAndRead(key, value);
        last.reads.forEach((read, i) => (saw[i] += read.json?.value === value ? 1 : 0));
      }
      place.replaceChildren(el("section", { class: "card", "aria-label": "What each call answered" }, table("What each call answered", LEVEL_COLUMNS, rowsOf(last, value, saw, rounds))));
    } catch (error) {
      place.replaceChildren(note("bad", el("p", {}, error.message)));
    }
    running = false;
  }

  return {
    element: el("div", { class: "stack" }, heading("Your own writes", "A write is acknowledged when the log has it, and seen by a node when it has read it back. How much a read must have seen is the reader’s choice."),
      el("div", { class: "card" }, el("div", { class: "inside padded stack tight" },
        el("p", {}, "This writes the key ", el("span", { class: "mono" }, key), " at this node, and as soon as that is acknowledged reads it three times at once. It expires after ten minutes."),
        el("ul", { class: "points" },
          el("li", {}, el("b", {}, "eventual"), " may answer with what was before; it never waits."),
          el("li", {}, el("b", {}, "session"), " carries the position of the write, and waits until the node has it. With that position every node answers so."),
          el("li", {}, el("b", {}, "strong"), " waits for everything that anybody had been acknowledged when the read came.")),
        el("div", { class: "buttons" }, buttons))), place),
    close() {},
  };
}
