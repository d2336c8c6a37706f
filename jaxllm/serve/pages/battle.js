// The page of blind battles: two answers side by side, a verdict by a key or a tap, and the next.

import { postJSON } from "./api.js";
import { el, find } from "./dom.js";

const NAME = "jaxllm.annotator";
const KEYS = { arrowleft: "left", a: "left", arrowright: "right", b: "right", arrowup: "tie", arrowdown: "bad" };
const SHOWN_MILLISECONDS = 160; // a verdict is seen before the page goes on
let person = "";
let current = null; // {battle, prompt, left, right}
let ahead = null; // a promise of the battle after it
let began = 0;
let busy = false;
const done = []; // names of battles that this visit judged or skipped, the last at the end

const stored = () => {
  try {
    return localStorage.getItem(NAME) ?? "";
  } catch {
    return "";
  }
};

const say = (text) => { find("status").textContent = text; };
const buttons = () => document.querySelectorAll("[data-verdict]");

function problem(error) {
  find("problem").hidden = !error;
  find("problem").textContent = error?.message ?? "";
}

function fetchNext() {
  return postJSON("/battles/next", { annotator: person, holding: current ? [current.battle] : [] });
}

function count(judged, battles) {
  find("count").textContent = `${judged} of ${battles} judged`;
}

/** Shows a battle, or that there is none left, and asks for the one after it. */
function show(next) {
  current = next.battle ? next : null;
  began = performance.now();
  count(next.judged, next.battles);
  find("task").hidden = !current;
  find("over").hidden = Boolean(current);
  ahead = null;
  if (!current) return;
  find("request").replaceChildren(...current.prompt.map(({ role, content }) => el("div", { class: `turn ${role}` },
    el("h2", { text: role === "user" ? "Asked" : role[0].toUpperCase() + role.slice(1) }),
    el("p", { class: "text", text: content ?? "" }))));
  for (const side of ["left", "right"]) {
    find(side).textContent = current[side] || "(nothing)";
    find(side).parentElement.className = "side";
  }
  for (const button of buttons()) button.disabled = false;
  ahead = fetchNext();
  ahead.catch(() => {}); // said when it is wanted
}

/** Does one thing at a time, and says what went wrong. */
async function act(work) {
  if (busy) return;
  busy = true;
  try {
    problem(null);
    await work();
  } catch (error) {
    say("");
    problem(error);
    for (const button of buttons()) button.disabled = !current;
  } finally {
    busy = false;
  }
}

function mark(verdict) {
  for (const side of ["left", "right"]) {
    const name = verdict === "bad" ? "rejected" : verdict === "tie" || verdict === side ? "chosen" : "";
    find(side).parentElement.className = `side ${name}`;
  }
  for (const button of buttons()) button.disabled = true;
}

async function advance() {
  const next = await (ahead ?? fetchNext());
  show(next);
  return next;
}

const vote = (verdict) => act(async () => {
  if (!current) return;
  const seconds = Math.round((performance.now() - began) / 100) / 10;
  mark(verdict);
  const [{ judged }] = await Promise.all([
    postJSON("/battles/vote", { annotator: person, battle: current.battle, verdict, seconds }),
    new Promise((resolve) => { setTimeout(resolve, SHOWN_MILLISECONDS); })]);
  done.push(current.battle);
  const next = await advance();
  count(judged, next.battles); // the next was asked for before this was saved
  say("Saved.");
});

const skip = () => act(async () => {
  if (!current) return;
  await postJSON("/battles/skip", { annotator: person, battle: current.battle });
  done.push(current.battle);
  await advance();
  say("Skipped.");
});

const undo = () => act(async () => {
  const last = done.at(-1);
  if (!last) return say("Nothing to undo.");
  const back = await postJSON("/battles/undo", { annotator: person, battle: last });
  done.pop();
  show(back);
  say("Taken back.");
});

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest?.("input") || !find("who").hidden) return;
  const key = event.key.toLowerCase();
  if (key === "u") undo();
  else if (!current) return;
  else if (KEYS[key]) vote(KEYS[key]);
  else if (key === "s") skip();
  else return;
  event.preventDefault();
}

function askWho() {
  find("task").hidden = find("over").hidden = find("person").hidden = true;
  find("who").hidden = false;
  find("name").value = person;
  find("name").focus();
}

async function begin(name) {
  person = name;
  current = ahead = null;
  done.length = 0;
  try {
    localStorage.setItem(NAME, person);
  } catch { /* this visit only */ }
  find("who").hidden = true;
  find("person").hidden = false;
  find("person").textContent = person;
  say("");
  await act(advance);
}

document.addEventListener("keydown", onKey);
for (const button of buttons()) button.addEventListener("click", () => vote(button.dataset.verdict));
find("skip").addEventListener("click", skip);
find("undo").addEventListener("click", undo);
find("undo-last").addEventListener("click", undo);
find("person").addEventListener("click", askWho);
find("who").addEventListener("submit", (event) => {
  event.preventDefault();
  if (find("name").value.trim()) begin(find("name").value.trim());
});
if (stored()) begin(stored());
else askWho();
