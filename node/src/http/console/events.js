// Server-Sent Events for who has a token, which an EventSource can't show. It looks like one as far as the view of changes needs it.

const RECONNECT_MS = 500;

class TokenEvents {
  constructor(url) {
    this.url = url;
    this.listeners = new Map();
    this.readyState = EventSource.CONNECTING;
    this.lastEventId = "";
    this.end = new AbortController();
    this.run();
  }

  addEventListener(name, listener) {
    this.listeners.set(name, listener);
  }

  close() {
    this.readyState = EventSource.CLOSED;
    this.end.abort();
  }

  async run() {
    while (!this.end.signal.aborted) {
      try {
        const last = this.lastEventId ? { "last-event-id": this.lastEventId } : {};
        const headers = withToken({ accept: "text/event-stream", ...last });
        const response = await fetch(this.url, { headers, signal: this.end.signal, cache: "no-store", redirect: "error" });
        if (!response.ok) {
          this.close();
          this.onerror?.();
          return;
        }
        this.readyState = EventSource.OPEN;
        this.onopen?.();
        await this.read(response.body);
      } catch {
        // The connection is lost, or nobody wants it any more.
      }
      if (this.end.signal.aborted) return;
      this.readyState = EventSource.CONNECTING;
      this.onerror?.();
      await new Promise((done) => setTimeout(done, RECONNECT_MS));
    }
  }

  async read(body) {
    const reader = body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    let event = {};
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (text + value).split("\n");
      text = lines.pop();
      for (const line of lines) {
        const [, field, content] = /^([a-z]+): (.*)$/.exec(line) ?? [];
        if (field) event[field] = content;
        else if (line === "") event = this.tell(event);
      }
    }
  }

  // Hands an event on; begins the next one.
  tell({ event, id, data }) {
    if (id !== undefined) this.lastEventId = id;
    if (data !== undefined) this.listeners.get(event)?.({ data, lastEventId: this.lastEventId });
    return {};
  }
}
