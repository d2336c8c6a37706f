// The tokens page: a text in two encodings side by side, and a conversation with its loss mask.

import { getJSON, postJSON } from "./api.js";
import { Characters, el, find, hex, tokenLabel } from "./dom.js";

const EXAMPLE = "The quick brown fox isn't 12345 years old. Straße, 漢字, 👩‍👩‍👧!\n\tdef f(x): return x ** 2";
const MESSAGES = [
  { role: "system", content: "Answer briefly." },
  { role: "user", content: "What is the capital of France?" },
  { role: "assistant", content: "Paris." },
  { role: "user", content: "Does <|im_end|> end my turn?" },
  { role: "assistant", content: "No. What you write stays text." },
];
let columns = [];

function problem(error) {
  find("problem").hidden = !error;
  find("problem").textContent = error?.message ?? "";
}

/** Runs the last of many calls, a little after it was made. */
function settle(work, wait = 150) {
  let timer = null, asked = null;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(async () => {
      asked?.abort();
      asked = new AbortController();
      try {
        await work(asked.signal);
        problem(null);
      } catch (error) {
        if (error.name !== "AbortError") problem(error);
      }
    }, wait);
  };
}

const view = () => document.querySelector("#view input:checked").value;

/** A token as an element: its text, id or bytes. Tokens that share a character are shown as one. */
function tokenSpan(group, number, how) {
  const [first] = group.tokens;
  const words = { text: group.text, id: group.tokens.map((token) => token.id).join(" "),
    bytes: hex(group.tokens.flatMap((token) => token.bytes)) };
  const text = how === "text" ? group.text.replace(/\n/g, "↵\n").replace(/\t/g, "⇥\t") : words[how];
  const span = el("span", { class: `tok c${number % 4}${first.special ? " special" : ""}${first.counts ? " counts" : ""}`,
    tabindex: -1, text: text || "∅" });
  span.token = group;
  return span;
}

function tell(span) {
  const bytes = span.token.tokens.flatMap((token) => token.bytes);
  const ids = span.token.tokens.map((token) => token.id).join(", ");
  find("told").textContent = `${tokenLabel(bytes)}   ${span.token.tokens.length > 1 ? "ids" : "id"} ${ids}   ` +
    `${bytes.length} ${bytes.length === 1 ? "byte" : "bytes"}: ${hex(bytes)}`;
}

/** Tokens under the pointer or the arrow keys are told, and what they cover is marked in the other column. */
function followable(box) {
  const on = (event) => {
    const span = event.target.closest?.(".tok");
    if (!span?.token) return;
    tell(span);
    for (const other of document.querySelectorAll(".tok.same")) other.classList.remove("same");
    if (span.token.from === undefined) return;
    for (const column of columns) {
      for (const other of column.box.children) {
        if (other.token.from < span.token.to && other.token.to > span.token.from) other.classList.add("same");
      }
    }
  };
  box.addEventListener("pointerover", on);
  box.addEventListener("focusin", on);
  box.addEventListener("keydown", (event) => {
    const at = event.target.closest(".tok");
    const next = event.key === "ArrowRight" ? (at ? at.nextElementSibling : box.firstElementChild)
      : event.key === "ArrowLeft" ? at?.previousElementSibling : null;
    if (!next) return;
    event.preventDefault();
    next.focus();
  });
}

function groupsOf(tokens) {
  const characters = new Characters();
  for (const token of tokens) characters.push(token);
  let from = 0;
  for (const group of characters.finish().groups) {
    group.from = from;
    from = group.to = from + group.tokens.reduce((sum, token) => sum + token.bytes.length, 0);
  }
  return characters.groups;
}

const drawText = settle(async (signal) => {
  const text = find("text").value;
  const answer = await postJSON("/inspect/tokens", { text, encodings: columns.map((column) => column.select.value) }, signal);
  find("size").textContent = `${answer.characters} characters, ${answer.bytes} bytes`;
  answer.encodings.forEach((encoding, i) => {
    const count = encoding.tokens.length;
    columns[i].count.textContent = `${count} ${count === 1 ? "token" : "tokens"}` +
      (count ? `, ${(answer.bytes / count).toFixed(2)} bytes each` : "");
    columns[i].groups = groupsOf(encoding.tokens);
    drawColumn(columns[i]);
  });
});

function drawColumn(column) {
  const how = view();
  column.box.className = `tokens ${how}`;
  column.box.replaceChildren(...(column.groups ?? []).map((group, i) => tokenSpan(group, i, how)));
}

function makeColumns(encodings) {
  columns = [0, 1].map((number) => {
    const select = el("select", { id: `encoding-${number}`, onChange: drawText }, ...encodings.map((encoding) =>
      el("option", { value: encoding.name, text: encoding.label })));
    select.selectedIndex = number ? Math.max(1, encodings.findIndex(({ name }) => name === "gpt2")) : 0;
    const count = el("p", { class: "count" });
    const box = el("div", { class: "tokens", tabindex: 0, role: "group", "aria-labelledby": `encoding-label-${number}` });
    followable(box);
    find("columns").append(el("div", {}, el("div", { class: "pair" },
      el("label", { for: select.id, id: `encoding-label-${number}`, class: "unseen", text: `Encoding ${number + 1}` }),
      select, count), box));
    return { select, count, box };
  });
}

// The conversation

const drawChat = settle(async (signal) => {
  const messages = [...find("messages").children].map((row) => ({
    role: row.querySelector("select").value, content: row.querySelector("textarea").value }));
  if (!messages.length) return find("rendered").replaceChildren();
  const format = find("format").value;
  const answer = await postJSON("/inspect/conversation", { messages, format: format === "own" ? null : format,
    add_generation_prompt: find("prompt").checked }, signal);
  find("counted").textContent = `${answer.count} tokens, ${answer.counted} count in the loss`;
  find("rendered").replaceChildren(...split(answer.tokens).map((group, i) => tokenSpan(group, i, "text")));
});

/** Groups that never mix tokens that count with others. */
function split(tokens) {
  const runs = [];
  for (const token of tokens) {
    if (!runs.length || runs.at(-1)[0].counts !== token.counts) runs.push([]);
    runs.at(-1).push(token);
  }
  return runs.flatMap((run) => groupsOf(run).map((group) => ({ ...group, from: undefined })));
}

function addMessage({ role, content }) {
  const select = el("select", { "aria-label": "Role", onChange: drawChat },
    ...["system", "user", "assistant", "tool"].map((name) => el("option", { value: name, text: name })));
  select.value = role;
  const area = el("textarea", { rows: 1, "aria-label": "Content", onInput: drawChat });
  area.value = content;
  const row = el("div", { class: "message" }, select, area,
    el("button", { type: "button", class: "round", "aria-label": "Remove this message", text: "×",
      onClick: () => { row.remove(); drawChat(); } }));
  find("messages").append(row);
  return area;
}

async function start() {
  try {
    const about = await getJSON("/inspect/model");
    find("model").textContent = about.id;
    find("to-prefer").hidden = !about.ranks;
    makeColumns(about.encodings);
    find("text").value = EXAMPLE;
    const own = about.chat ? [el("option", { value: "own", text: "the model's own" })] : [];
    find("format").append(...own, ...about.formats.map((name) => el("option", { value: name, text: name })));
    for (const message of MESSAGES) addMessage(message);
    followable(find("rendered"));
    find("text").addEventListener("input", drawText);
    find("view").addEventListener("change", () => columns.forEach(drawColumn));
    find("format").addEventListener("change", drawChat);
    find("prompt").addEventListener("change", drawChat);
    find("add").addEventListener("click", () => { addMessage({ role: "user", content: "" }).focus(); drawChat(); });
    drawText();
    if (find("format").options.length) drawChat();
    else find("counted").textContent = "This tokenizer has the special tokens of no chat format.";
  } catch (error) {
    problem(error.status === 401 ? new Error("This server asks for an API key: write it into the settings of the chat page.")
      : error);
  }
}

start();
