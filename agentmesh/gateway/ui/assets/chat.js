import { $, askForKey, authorization, face, problemOf, request, themeButton } from "/ui/assets/common.js";
import { show } from "/ui/assets/markdown.js";
import { Stream } from "/ui/assets/stream.js";

const AGENT = decodeURIComponent(location.pathname.split("/").filter(Boolean).at(-1));
const RECENT = `agentmesh.recent.${AGENT}`;

const ENDS = new Set(["finish", "error", "cancelled"]);

const CONNECTION = { connecting: "Connecting", live: "Connected", offline: "Offline, trying again" };

let conversation = new URL(location.href).searchParams.get("c") || "";
let stream = null;
const runs = new Map();
const changed = new Set();

// ------------------------------------------------------------------ small things

function make(name, className = "", text = "") {
  const node = document.createElement(name);
  if (className) node.className = className;
  if (text) node.textContent = text;
  return node;
}

function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return "c" + Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function pretty(value) {
  if (typeof value !== "string") return JSON.stringify(value, null, 2);
  try {
    return JSON.stringify(JSON.parse(value), null, 2);
  } catch {
    return value;
  }
}

function notice(text, kind = "") {
  $("notice").textContent = text;
  $("notice").dataset.kind = kind;
  $("notice").hidden = !text;
}

// ------------------------------------------------------------------ runs: one turn of one side

class Run {
  constructor(id, role) {
    this.id = id;
    this.role = role;
    this.node = make("article", role === "user" ? "message user" : "message answer");
    this.node.dataset.run = id;
    this.node.setAttribute("aria-label", role === "user" ? "You" : AGENT);
    this.begin(0);
    $("log").append(this.node);
  }

  /** A take of the run begins: what an earlier one said does not count any more. */
  begin(epoch) {
    this.epoch = epoch;
    this.text = "";
    this.reasoning = "";
    this.status = this.role === "user" ? "done" : "running";
    this.tools = new Map();
    this.sources = 0;
    this.note = "";
    this.usage = "";
    this.progress = "";
    this.body = make("div", "body");
    this.parts = make("div", "parts");
    this.foot = make("footer");
    this.node.replaceChildren(this.parts, this.body, this.foot);
    this.thoughts = this.cites = null;
  }

  take(chunk) {
    if (chunk.epoch < this.epoch && !ENDS.has(chunk.type)) return; // of a take that was replaced
    if (chunk.epoch > this.epoch || chunk.type === "restarted") {
      this.begin(chunk.epoch);
      if (chunk.type === "restarted") this.note = "Interrupted and begun again.";
    }
    const how = `on_${chunk.type}`;
    if (this[how]) this[how](chunk);
    changed.add(this);
  }

  on_text(chunk) {
    this.text += chunk.content ?? "";
    this.progress = "";
  }

  on_reasoning(chunk) {
    if (!this.thoughts) {
      this.thoughts = make("details", "fold reasoning");
      this.thoughts.append(make("summary", "", "Reasoning"), make("div", "thought"));
      this.parts.append(this.thoughts);
    }
    this.reasoning += chunk.content ?? "";
  }

  on_tool_call(chunk) {
    const data = chunk.data ?? {};
    const call = data.function ?? data;
    const key = data.id ?? data.call_id ?? `#${this.tools.size}`;
    let fold = this.tools.get(key);
    if (!fold) {
      fold = make("details", "fold tool");
      const summary = make("summary");
      summary.append(make("span", "", "Tool "), make("code", "", call.name ?? chunk.content ?? "tool"), make("span", "state"));
      fold.append(summary, make("pre", "", pretty(call.arguments ?? data)));
      this.parts.append(fold);
      this.tools.set(key, fold);
    }
    const asks = data.status === "approval" && data.task_id && data.signal;
    fold.querySelector(".state").textContent = asks ? "wants your permission" : "running";
    fold.querySelector(".ask")?.remove();
    if (asks) this.askFor(fold, data);
  }

  /** Buttons of a call that a person must allow. */
  askFor(fold, data) {
    const ask = make("div", "ask");
    for (const [action, text] of [["allow", "Allow"], ["deny", "Deny"]]) {
      const node = button(action, text);
      node.dataset.task = data.task_id;
      node.dataset.signal = data.signal;
      ask.append(node);
    }
    fold.append(ask);
    fold.dataset.asks = "true";
    fold.open = true;
  }

  on_tool_result(chunk) {
    const data = chunk.data ?? {};
    const key = data.id ?? data.call_id ?? data.tool_call_id;
    const fold = this.tools.get(key) ?? [...this.tools.values()].find((one) => !one.dataset.done);
    const result = chunk.content || pretty(data.result ?? data.content ?? data);
    if (!fold) return;
    const failed = data.error || data.is_error;
    fold.dataset.done = failed ? "failed" : "done";
    delete fold.dataset.asks;
    fold.querySelector(".ask")?.remove();
    fold.querySelector(".state").textContent = data.status === "denied" ? "denied" : failed ? "failed" : "done";
    fold.append(make("pre", "result", failed && typeof data.error === "string" ? data.error : result));
  }

  on_citation(chunk) {
    if (!this.cites) this.cites = make("ol", "cites");
    const data = chunk.data ?? {};
    const item = make("li");
    const title = chunk.content || data.title || data.source || data.url || "source";
    if (/^https?:\/\//i.test(data.url ?? "")) {
      const link = make("a", "", title);
      link.href = data.url;
      link.target = "_blank";
      link.rel = "noopener noreferrer";
      item.append(link);
    } else item.append(title);
    this.cites.append(item);
  }

  on_progress(chunk) {
    const data = chunk.data ?? {};
    const part = typeof data.fraction === "number" ? ` ${Math.round(data.fraction * 100)} %` : "";
    this.progress = (chunk.content || data.message || data.note || "Working") + part;
  }

  on_data(chunk) {
    const fold = make("details", "fold");
    fold.append(make("summary", "", chunk.content || "Data"), make("pre", "", pretty(chunk.data ?? {})));
    this.parts.append(fold);
  }

  on_usage(chunk) {
    const total = chunk.data?.total_tokens;
    this.usage = Number.isFinite(total) ? `${total.toLocaleString()} tokens` : "";
  }

  on_finish() {
    this.status = "done";
  }

  on_cancelled() {
    this.status = "cancelled";
  }

  on_error(chunk) {
    this.status = "error";
    this.problem = chunk.content || chunk.data?.message || "The answer could not be completed.";
  }

  draw() {
    const running = this.status === "running";
    this.node.dataset.status = this.status;
    this.node.setAttribute("aria-busy", String(running));
    if (this.role === "user") this.body.textContent = this.text;
    else show(this.body, this.text);
    if (this.thoughts) {
      show(this.thoughts.querySelector(".thought"), this.reasoning);
      this.thoughts.dataset.live = String(running && !this.text);
    }
    if (this.role === "user") return;
    if (!running) for (const ask of this.parts.querySelectorAll(".ask")) ask.remove(); // too late
    const foot = [];
    if (running) {
      const working = make("span", "working");
      working.append(make("i"), make("i"), make("i"));
      working.append(make("span", this.progress || this.tools.size ? "" : "hidden", this.progress || "Working"));
      if (this.progress || !this.text) foot.push(working);
    }
    if (this.note) foot.push(make("span", "tag", this.note));
    if (this.status === "cancelled") foot.push(make("span", "tag", "Stopped"));
    if (this.status === "error") {
      const tag = make("span", "tag bad", this.problem);
      tag.setAttribute("role", "alert");
      foot.push(tag, button("again", "Try again"));
    }
    if (this.cites) foot.push(this.cites);
    if (!running && this.text) foot.push(button("copy-text", "Copy"));
    if (!running && this.usage) foot.push(make("span", "usage", this.usage));
    this.foot.replaceChildren(...foot);
  }
}

function button(action, text) {
  const node = make("button", "small", text);
  node.type = "button";
  node.dataset.action = action;
  return node;
}

// ------------------------------------------------------------------ what comes

function onEvent(event) {
  if (event.name === "problem") {
    notice(JSON.parse(event.data).message, "bad");
    setTimeout(open, 2000); // what the cursor pointed at may be gone: read it all again
  }
  if (event.name !== "message") return;
  const chunk = JSON.parse(event.data);
  chunk.epoch ??= 1; // left out where it is 1
  const id = chunk.run_id || foreignRun(chunk);
  if (["user", "system"].includes(chunk.role) && !ENDS.has(chunk.type)) {
    runOf(`${id}?`, "user").take(chunk);
    remember(chunk.content);
    if (chunk.run_id) changed.add(runOf(id, "assistant")); // it is being answered
  } else runOf(id, "assistant").take(chunk);
  later();
}

/** What other programs wrote belongs to no run: a turn ends with its end. */
let foreign = 0;
function foreignRun(chunk) {
  const id = `foreign-${foreign}`;
  if (ENDS.has(chunk.type)) foreign += 1;
  return id;
}

function runOf(id, role) {
  let run = runs.get(id);
  if (!run) {
    runs.set(id, (run = new Run(id, role)));
    $("empty").hidden = true;
  }
  return run;
}

let planned = false;
function later() {
  if (planned) return;
  planned = true;
  // A window in the background draws no frames, but must be in step when it is looked at.
  if (document.hidden) setTimeout(draw, 100);
  else requestAnimationFrame(draw);
}

function draw() {
  planned = false;
  const stick = isAtEnd();
  for (const run of changed) run.draw();
  changed.clear();
  const open = openRun();
  $("stop").hidden = !open;
  $("send").hidden = Boolean(open);
  document.title = `${open ? "… " : ""}${AGENT} · agentmesh`;
  if (stick) $("scroll").scrollTop = $("scroll").scrollHeight;
  showLatest();
}

function openRun() {
  return [...runs.values()].findLast((run) => run.status === "running");
}

function isAtEnd() {
  const box = $("scroll");
  return box.scrollHeight - box.scrollTop - box.clientHeight < 60;
}

function showLatest() {
  $("latest").hidden = isAtEnd();
}

function onState(state) {
  $("connection").dataset.state = state;
  $("connection").firstElementChild.textContent = CONNECTION[state];
  $("connection").title = CONNECTION[state];
  if (state === "live") notice("");
  if (state === "offline") notice("Not connected. What comes meanwhile is not lost: it is shown when the connection is back.", "warn");
}

async function onRefused(response) {
  if (response.status === 401) {
    await askForKey(authorization().Authorization ? "That key was refused." : "");
    open();
    void describe();
  } else if (response.status === 412) open(); // it was begun anew: what is shown here is gone
  else notice(await problemOf(response), "bad");
}

// ------------------------------------------------------------------ conversations

function recent() {
  try {
    return JSON.parse(localStorage.getItem(RECENT)) ?? [];
  } catch {
    return [];
  }
}

function remember(text) {
  const list = recent();
  if (list.some((one) => one.id === conversation)) return;
  list.unshift({ id: conversation, title: text.trim().split("\n")[0].slice(0, 80) });
  localStorage.setItem(RECENT, JSON.stringify(list.slice(0, 30)));
  showRecent();
}

function showRecent() {
  const list = recent();
  $("recent").replaceChildren(
    ...list.map((one) => {
      const link = make("a", "", one.title || one.id);
      link.href = `?c=${encodeURIComponent(one.id)}`;
      if (one.id === conversation) link.setAttribute("aria-current", "page");
      const item = make("li");
      item.append(link);
      return item;
    }),
  );
  $("recent-title").hidden = !list.length;
}

function go(id) {
  conversation = id;
  history.pushState(null, "", `?c=${encodeURIComponent(id)}`);
  open();
}

function open() {
  stream?.close();
  runs.clear();
  changed.clear();
  foreign = 0;
  $("log").replaceChildren();
  $("empty").hidden = false;
  notice("");
  showRecent();
  menu(false);
  stream = new Stream(`/stream/${encodeURIComponent(conversation)}?from_offset=0&follow=true`, authorization, {
    event: onEvent,
    state: onState,
    refused: onRefused,
  });
  draw();
}

function menu(open) {
  document.body.classList.toggle("menu", open);
  $("menu").setAttribute("aria-expanded", String(open));
  $("shade").hidden = !open;
}

// ------------------------------------------------------------------ what is said

let sending = null;

async function send(text) {
  if (!text.trim() || sending || openRun()) return;
  // Sent again after a failure, the same text has the same key: the gateway takes it once.
  sending = { text, key: send.failed?.text === text ? send.failed.key : newId() };
  $("send").disabled = true;
  try {
    const response = await request("/chat", {
      method: "POST",
      headers: { "Content-Type": "application/json", "Idempotency-Key": sending.key },
      body: JSON.stringify({ message: text, conversation_id: conversation, agent: AGENT }),
    });
    if (!response.ok) throw new Error(await problemOf(response));

    send.failed = null;
    if ($("input").value === text) $("input").value = "";
    grow();
    notice("");
    $("scroll").scrollTop = $("scroll").scrollHeight;
  } catch (error) {
    send.failed = sending;
    notice(error instanceof TypeError ? "Not sent: the gateway cannot be reached. Your text is kept." : `Not sent: ${error.message}`, "bad");
  } finally {
    sending = null;
    $("send").disabled = !$("input").value.trim();
  }
}

/** A person's word about a tool call: the task that waits for it goes on, wherever it runs. */
async function decide(pressed) {
  const { task, signal, action } = pressed.dataset;
  const buttons = [...pressed.parentNode.children];
  for (const one of buttons) one.disabled = true;
  try {
    const response = await request(`/api/v1/tasks/${encodeURIComponent(task)}/signals/${encodeURIComponent(signal)}`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ value: { approved: action === "allow", reason: action === "allow" ? "" : "denied on the chat page" } }),
    });
    if (!response.ok) throw new Error(await problemOf(response));
  } catch (error) {
    notice(error instanceof TypeError ? "The gateway cannot be reached. Try again." : error.message, "bad");
    for (const one of buttons) one.disabled = false;
  }
}

async function stop() {
  const run = openRun();
  if (!run) return;
  $("stop").disabled = true;
  try {
    const response = await request(`/stream/${encodeURIComponent(conversation)}/cancel`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ run_id: run.id, reason: "stopped on the chat page" }),
    });
    if (!response.ok) notice(await problemOf(response), "bad");
  } catch {
    notice("Not stopped: the gateway cannot be reached.", "bad");
  } finally {
    $("stop").disabled = false;
  }
}

function grow() {
  const input = $("input");
  input.style.height = "auto";
  input.style.height = `${Math.min(input.scrollHeight, innerHeight * 0.4)}px`;
  $("send").disabled = !input.value.trim() || Boolean(sending);
}

async function copy(node, text) {
  try {
    await navigator.clipboard.writeText(text);
    const before = node.textContent;
    node.textContent = "Copied";
    setTimeout(() => (node.textContent = before), 1500);
  } catch {
    notice("The browser does not let this page copy.", "warn");
  }
}

function onLogClick(event) {
  const pressed = event.target.closest("button");
  if (!pressed) return;
  if (pressed.dataset.copy) void copy(pressed, pressed.closest(".code").querySelector("pre").textContent);
  const run = runs.get(pressed.closest("article")?.dataset.run);
  if (pressed.dataset.action === "copy-text") void copy(pressed, run.text);
  if (pressed.dataset.signal) void decide(pressed);
  if (pressed.dataset.action === "again") {
    const asked = [...runs.values()].findLast((one) => one.role === "user");
    if (asked) void send(asked.text);
  }
}

async function describe() {
  try {
    const response = await fetch(`/v1/models/${encodeURIComponent(AGENT)}`, { headers: authorization() });
    if (response.ok) {
      const { description } = await response.json();
      $("about").textContent = description || "";
      $("empty").querySelector("p").textContent = description || "Answers appear here word by word, and stay.";
    } else if (response.status === 404) notice(`No agent ${AGENT} is running.`, "warn");
  } catch {
    // the connection's own state says it
  }
}

// ------------------------------------------------------------------ the page

face($("avatar"), AGENT);
face($("empty").querySelector(".avatar"), AGENT);
$("agent").textContent = AGENT;
$("empty").querySelector("h2").textContent = `Chat with ${AGENT}`;
$("empty").querySelector("p").textContent = "Answers appear here word by word, and stay.";
themeButton();

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  void send($("input").value);
});
$("input").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  void send($("input").value);
});
$("input").addEventListener("input", grow);
$("stop").addEventListener("click", () => void stop());
$("log").addEventListener("click", onLogClick);
$("new").addEventListener("click", () => {
  go(newId());
  $("input").focus();
});
$("recent").addEventListener("click", (event) => {
  const link = event.target.closest("a");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  go(new URL(link.href).searchParams.get("c"));
});
$("share").addEventListener("click", async () => {
  await copy(make("span"), location.href);
  notice("The address of this conversation was copied.");
  setTimeout(() => $("notice").dataset.kind || notice(""), 2500);
});
$("menu").addEventListener("click", () => menu(!document.body.classList.contains("menu")));
$("shade").addEventListener("click", () => menu(false));
$("latest").addEventListener("click", () => ($("scroll").scrollTop = $("scroll").scrollHeight));
$("scroll").addEventListener("scroll", showLatest, { passive: true });
addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || $("key").open) return;
  if (document.body.classList.contains("menu")) menu(false);
  else void stop();
});
addEventListener("popstate", () => {
  conversation = new URL(location.href).searchParams.get("c") || conversation;
  open();
});
document.addEventListener("visibilitychange", () => document.hidden || draw());

if (!conversation) {
  conversation = newId();
  history.replaceState(null, "", `?c=${conversation}`);
}
open();
grow();
void describe();
if (matchMedia("(pointer: fine)").matches) $("input").focus();
