// Server-sent events over fetch. Unlike EventSource it can send an Authorization header, so the key of a gateway that
// wants one is never part of an address (which ends up in logs and histories), and no ticket has to be issued.

const SILENCE = 40_000; // the gateway says something every 15 s
const LONGEST_PAUSE = 5_000;

/** Follows a conversation: connects again and goes on behind the last event, until `close()`. */
export class Stream {
  #address;
  #headers;
  #on;
  #last = "";
  #pause = 0;
  #retry = 500;
  #attempt = null;
  #timer = 0;
  #watchdog = 0;
  #closed = false;

  /** `on`: `event({id, name, data})`, `state("connecting" | "live" | "offline")` and `refused(response)`. */
  constructor(address, headers, on) {
    this.#address = address;
    this.#headers = headers;
    this.#on = on;
    addEventListener("online", this.#online);
    addEventListener("offline", this.#offline);
    void this.#run();
  }

  close() {
    this.#closed = true;
    removeEventListener("online", this.#online);
    removeEventListener("offline", this.#offline);
    clearTimeout(this.#timer);
    clearTimeout(this.#watchdog);
    this.#attempt?.abort();
  }

  #online = () => {
    if (!this.#attempt) void this.#run();
  };

  #offline = () => {
    this.#attempt?.abort();
  };

  async #run() {
    clearTimeout(this.#timer);
    const attempt = (this.#attempt = new AbortController());
    this.#on.state("connecting");
    try {
      const headers = { ...this.#headers(), Accept: "text/event-stream" };
      if (this.#last) headers["Last-Event-ID"] = this.#last;
      const response = await fetch(this.#address, { headers, signal: attempt.signal, cache: "no-store" });
      if ([400, 401, 403, 404, 412].includes(response.status)) {
        this.close();
        this.#on.refused(response);
        return;
      }
      if (response.status !== 200) throw new Error(`status ${response.status}`);
      this.#pause = 0;
      this.#on.state("live");
      await this.#read(response.body.getReader());
    } catch {
      // whatever it was: the connection is gone, and the next one goes on behind the last event
    }
    clearTimeout(this.#watchdog);
    if (this.#closed) return;
    this.#attempt = null;
    attempt.abort();
    this.#on.state("offline");
    this.#pause = Math.min(LONGEST_PAUSE, this.#pause ? this.#pause * 2 : this.#retry);
    this.#timer = setTimeout(() => void this.#run(), this.#pause * (0.75 + Math.random() / 2));
  }

  async #read(reader) {
    const decoder = new TextDecoder();
    let text = "";
    let event = { id: null, name: "message", data: [] };
    for (;;) {
      this.#alive();
      const { done, value } = await reader.read();
      if (done) return; // an event that was cut off comes again
      text += decoder.decode(value, { stream: true });
      let end;
      while ((end = text.indexOf("\n")) >= 0) {
        const line = text.slice(0, end).replace(/\r$/, "");
        text = text.slice(end + 1);
        if (line) {
          this.#field(event, line);
          continue;
        }
        if (event.id !== null) this.#last = event.id;
        if (event.data.length) this.#on.event({ id: event.id, name: event.name, data: event.data.join("\n") });
        event = { id: null, name: "message", data: [] };
      }
    }
  }

  #field(event, line) {
    const colon = line.indexOf(":");
    if (colon === 0) return; // a comment: the connection is alive
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (name === "data") event.data.push(value);
    else if (name === "event") event.name = value;
    else if (name === "id") event.id = value;
    else if (name === "retry" && /^\d+$/.test(value)) this.#retry = Math.min(LONGEST_PAUSE, Number(value));
  }

  #alive() {
    clearTimeout(this.#watchdog);
    this.#watchdog = setTimeout(() => this.#attempt?.abort(), SILENCE);
  }
}
