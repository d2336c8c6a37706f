// The chat page: a conversation of turns, replies side by side, and what was asked for each.

import { events, getJSON } from "./api.js";
import { el, find } from "./dom.js";
import { closeInspector, initInspector, openInspector } from "./inspector.js";
import { Reply, hideTip } from "./reply.js";
import { initSettings, requestSettings, systemMessage } from "./settings.js";

// A turn is {role: "user", content}, {role: "tool", ...} or {role: "assistant", replies, chosen, asked}.
const turns = [];
let running = null;
let model = null;
let specials = [];

/** The messages before turn `end`, as the server takes them. */
function messagesBefore(end) {
  const system = systemMessage();
  const before = system ? [{ role: "system", content: system }] : [];
  for (const turn of turns.slice(0, end)) {
    if (turn.role === "assistant") before.push(turn.edited ?? turn.replies[turn.chosen].message());
    else before.push({ role: turn.role, content: turn.content, ...(turn.call ? { tool_call_id: turn.call } : {}) });
  }
  return before;
}

function truncate(length) {
  for (const turn of turns.splice(length)) turn.element.remove();
  closeInspector();
}

function say(text) {
  find("status").textContent = text;
}

// Turns on the page

function button(label, onClick, props = {}) {
  return el("button", { type: "button", class: "quiet", text: label, onClick, ...props });
}

function addTurn(turn, index = turns.length) {
  turn.element = el("section", { class: `turn ${turn.role}`, "aria-label": turn.role });
  turns.splice(index, 0, turn);
  find("turns").append(turn.element);
  find("empty").hidden = true;
  drawTurn(turn);
  return turn;
}

function drawTurn(turn) {
  const at = () => turns.indexOf(turn);
  const name = { user: "You", tool: `Result of ${turn.name}`, assistant: model ?? "Assistant" }[turn.role];
  const actions = el("div", { class: "actions" });
  const head = el("div", { class: "turn-head" }, el("h2", { text: name }), actions);
  if (turn.role === "assistant") {
    const grid = el("div", { class: turn.replies.length > 1 ? "replies several" : "replies" });
    turn.replies.forEach((reply, number) => grid.append(sample(turn, reply, number)));
    actions.append(button("Edit", () => edit(turn)), button("Retry", () => retry(at())));
    turn.element.replaceChildren(head, turn.edited ? el("div", { class: "text", text: turn.edited.content }) : grid);
  } else {
    actions.append(button("Edit", () => edit(turn)));
    turn.element.replaceChildren(head, el("div", { class: "text", text: turn.content }));
  }
  actions.append(button("Copy", async (event) => {
    const message = messagesBefore(at() + 1).pop();
    await navigator.clipboard?.writeText(message.content ?? "");
    event.target.textContent = "Copied";
    setTimeout(() => { event.target.textContent = "Copy"; }, 1500);
  }));
}

function sample(turn, reply, number) {
  if (turn.replies.length === 1) return reply.element;
  const name = `sample-${turn.id}`;
  const radio = el("input", { type: "radio", name, id: `${name}-${number}`, onChange: () => {
    turn.chosen = number;
    turn.edited = null;
    truncate(turns.indexOf(turn) + 1);
  } });
  radio.checked = turn.chosen === number;
  return el("div", { class: "sample" }, el("label", { for: `${name}-${number}` }, radio, ` Sample ${number + 1}`),
    reply.element);
}

function edit(turn) {
  if (running) return;
  const content = turn.role === "assistant" ? messagesBefore(turns.indexOf(turn) + 1).pop().content ?? "" : turn.content;
  const area = el("textarea", { "aria-label": "Edit this turn", rows: Math.min(12, content.split("\n").length + 1) });
  area.value = content;
  const save = () => {
    const index = turns.indexOf(turn);
    truncate(index + 1);
    if (turn.role === "assistant") turn.edited = { role: "assistant", content: area.value };
    else turn.content = area.value;
    drawTurn(turn);
    if (turn.role !== "assistant") ask();
    else find("prompt").focus();
  };
  area.addEventListener("keydown", (event) => {
    if (event.key === "Escape") drawTurn(turn);
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) save();
  });
  turn.element.replaceChildren(turn.element.querySelector("h2"), area, el("div", { class: "editing" },
    button(turn.role === "assistant" ? "Save" : "Save and answer", save), button("Cancel", () => drawTurn(turn))));
  area.focus();
}

function retry(index) {
  if (running) return;
  truncate(index);
  ask();
}

// Asking

async function ask() {
  const messages = messagesBefore(turns.length);
  let settings;
  try {
    settings = requestSettings();
  } catch (error) {
    return fail(error.message);
  }
  const turn = { role: "assistant", id: crypto.randomUUID?.() ?? String(Math.random()), chosen: 0, replies: [], settings };
  const look = (reply, index) => openInspector(messages, settings.tools, reply, index);
  for (let i = 0; i < settings.n; i++) {
    turn.replies.push(new Reply(settings.n > 1 ? `Sample ${i + 1}` : "Reply", specials, look));
  }
  addTurn(turn);
  turn.element.classList.add("writing");
  turn.element.setAttribute("aria-busy", "true");
  running = new AbortController();
  showRunning(true);
  const begun = performance.now();
  let failure = "";
  try {
    const body = { messages, ...settings, stream: true, logprobs: true, top_logprobs: 8 };
    for await (const chunk of events("/v1/chat/completions", body, running.signal)) {
      for (const choice of chunk.choices) turn.replies[choice.index].push(choice);
      follow();
    }
  } catch (error) {
    if (error.name === "AbortError") turn.replies.forEach((reply) => { reply.finish ??= "stopped"; });
    else failure = error.message;
  }
  running = null;
  showRunning(false);
  turn.element.classList.remove("writing");
  turn.element.removeAttribute("aria-busy");
  const count = turn.replies.reduce((sum, reply) => sum + reply.tokens.length, 0);
  if (failure && !count) {
    truncate(turns.length - 1);
    return fail(failure, true);
  }
  for (const reply of turn.replies) reply.end(failure);
  const seconds = (performance.now() - begun) / 1000;
  say(`${count} tokens, ${(count / seconds).toFixed(1)} per second`);
  offerResults(turn);
  follow();
}

/** Fields for the results of the calls of the chosen reply, which the reader writes. */
function offerResults(turn) {
  const calls = turn.replies[turn.chosen].calls.filter(Boolean);
  if (!calls.length) return find("prompt").focus();
  const fields = calls.map((call) => el("textarea", { rows: 2, "aria-label": `Result of ${call.function.name}`,
    placeholder: `Result of ${call.function.name}` }));
  const form = el("form", { class: "results", onSubmit: (event) => {
    event.preventDefault();
    form.remove();
    calls.forEach((call, i) => addTurn({ role: "tool", name: call.function.name, call: call.id, content: fields[i].value }));
    ask();
  } }, ...fields, el("button", { type: "submit", class: "send", text: "Give results" }));
  turn.element.append(form);
  fields[0].focus();
}

function fail(message, again = false) {
  const box = el("div", { class: "failure", role: "alert" }, el("p", { text: message }));
  if (again) box.append(button("Retry", () => { box.remove(); ask(); }));
  document.querySelector(".failure")?.remove();
  find("turns").after(box);
  say("");
}

function showRunning(on) {
  find("send").hidden = on;
  find("stop").hidden = !on;
  document.querySelector(".failure")?.remove();
  if (on) say("Writing…");
}

/** Keeps the end in view while the reader is there. */
function follow() {
  const page = document.scrollingElement;
  if (page.scrollHeight - page.scrollTop - page.clientHeight < 160) page.scrollTop = page.scrollHeight;
}

function send() {
  const prompt = find("prompt");
  const content = prompt.value.trim();
  if (!content || running) return;
  prompt.value = "";
  grow(prompt);
  document.querySelector(".results")?.remove();
  addTurn({ role: "user", content });
  ask();
  document.scrollingElement.scrollTop = document.scrollingElement.scrollHeight;
}

function grow(area) {
  area.style.height = "auto";
  area.style.height = `${Math.min(area.scrollHeight + 2, 0.4 * innerHeight)}px`;
}

/** One line of jsonl: the conversation as it would be trained on, and how it was sampled. */
function download() {
  const settings = turns.findLast((turn) => turn.settings)?.settings ?? {};
  const { tools, ...sampling } = settings;
  const record = { messages: messagesBefore(turns.length), ...(tools ? { tools } : {}), model, sampling };
  const blob = new Blob([JSON.stringify(record) + "\n"], { type: "application/jsonl" });
  const link = el("a", { href: URL.createObjectURL(blob), download: "conversation.jsonl" });
  link.click();
  URL.revokeObjectURL(link.href);
}

async function describe() {
  try {
    const about = await getJSON("/inspect/model");
    model = about.id;
    specials = about.specials;
    find("model").textContent = about.id;
    find("to-prefer").hidden = !about.ranks;
    find("settings").elements.n.max = about.max_samples;
    find("settings").elements.max_tokens.max = about.max_tokens;
    find("empty-text").textContent = about.chat
      ? `${about.layers} layers of ${about.heads} heads. Everything you write stays between this page and its server.`
      : "This model continues text and was never taught to converse: it has no chat template. The tokens page works.";
  } catch (error) {
    find("empty-text").textContent = error.status === 401
      ? "This server asks for an API key: write it into the settings." : error.message;
  }
}

function toggleSettings(open = find("settings").hidden) {
  find("settings").hidden = !open;
  document.body.classList.toggle("setting", open);
  find("open-settings").setAttribute("aria-expanded", String(open));
  if (open) find("settings").querySelector("textarea").focus();
  else find("open-settings").focus();
}

initSettings(() => { if (!model) describe(); });
initInspector();
find("composer").addEventListener("submit", (event) => { event.preventDefault(); send(); });
find("prompt").addEventListener("input", (event) => grow(event.target));
find("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
});
find("stop").addEventListener("click", () => running?.abort());
find("new").addEventListener("click", () => {
  running?.abort();
  truncate(0);
  document.querySelector(".failure")?.remove();
  find("empty").hidden = false;
  say("");
  find("prompt").focus();
});
find("export").addEventListener("click", download);
find("open-settings").addEventListener("click", () => toggleSettings());
find("close-settings").addEventListener("click", () => toggleSettings(false));
find("tint").addEventListener("click", (event) => {
  const on = document.body.classList.toggle("tinted");
  event.currentTarget.setAttribute("aria-pressed", String(on));
});
addEventListener("keydown", (event) => {
  if (event.key === "Escape") {
    hideTip();
    if (running && !event.defaultPrevented && find("inspector").hidden) running.abort();
  }
});
describe();
