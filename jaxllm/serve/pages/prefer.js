// The page that collects rankings: a set of answers, put in order by keys, by dragging or by a tap, and saved.

import { getJSON, postJSON } from "./api.js";
import { el, find } from "./dom.js";
import { Order } from "./order.js";

const NAME = "jaxllm.annotator";
let person = "";
let order = null; // of the set on the page
let current = null; // {set, prompt, completions}
let ahead = null; // a promise of the set after it
let began = 0;
let busy = false;
const done = []; // names of sets that this visit ranked or skipped, the last at the end

const stored = () => {
  try {
    return localStorage.getItem(NAME) ?? "";
  } catch {
    return "";
  }
};

function problem(error) {
  find("problem").hidden = !error;
  find("problem").textContent = error?.status === 401
    ? "This server asks for an API key: write it into the settings of the chat page." : error?.message ?? "";
}

const say = (text) => { find("status").textContent = text; };

// Sets

function fetchNext() {
  return postJSON("/preferences/next", { annotator: person, holding: current ? [current.set] : [] });
}

/** Shows a set and asks for the one after it, so that nobody waits for samples to be drawn. */
function show(set, ranking) {
  current = set;
  order = new Order(set.completions.length, ranking);
  began = performance.now();
  find("request").replaceChildren(...set.prompt.map(({ role, content }) => el("div", { class: `turn ${role}` },
    el("h2", { text: role === "user" ? "Asked" : role[0].toUpperCase() + role.slice(1) }),
    el("p", { class: "text", text: content ?? "" }))));
  find("last-digit").textContent = set.completions.length;
  find("task").hidden = false;
  draw();
  if (!ahead) {
    ahead = fetchNext();
    ahead.catch(() => {}); // said when it is wanted
  }
}

async function advance() {
  say("Drawing answers…");
  const next = ahead ?? fetchNext();
  ahead = null;
  try {
    show(await next);
    say("");
  } catch (error) {
    if (error.status !== 409) throw error;
    current = order = null;
    find("ranking").replaceChildren();
    find("request").replaceChildren();
    find("task").hidden = false;
    find("task").querySelector("details").open = true;
    find("save").disabled = find("skip").disabled = true;
    say("");
    problem(error);
  }
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
  } finally {
    busy = false;
  }
}

const save = () => act(async () => {
  if (!order?.complete) return;
  const seconds = Math.round((performance.now() - began) / 100) / 10;
  const { ranked } = await postJSON("/preferences/rank", { annotator: person, set: current.set,
    ranking: order.tiers(), seconds });
  done.push({ set: current.set, ranking: order.tiers() });
  await advance();
  if (find("problem").hidden) say(`Saved: ${ranked} ranked.`);
  showAgreement();
});

const skip = () => act(async () => {
  if (!current) return;
  await postJSON("/preferences/skip", { annotator: person, set: current.set });
  done.push({ set: current.set });
  await advance();
});

const undo = () => act(async () => {
  const last = done.at(-1);
  if (!last) return say("Nothing to undo.");
  const back = await postJSON("/preferences/undo", { annotator: person, set: last.set });
  done.pop();
  if (current) ahead = Promise.resolve(current); // the one on the page comes after it again
  show(back, last.ranking);
  say("Taken back.");
  showAgreement();
});

// Cards

function draw(focus) {
  const cards = order.all().map((number, place) => card(number, place));
  find("ranking").replaceChildren(...cards);
  find("save").disabled = !order.complete;
  find("skip").disabled = false;
  cards[focus === undefined ? 0 : order.all().indexOf(focus)]?.focus({ preventScroll: focus === undefined });
}

function card(number, place) {
  const placed = place < order.placed.length;
  const tied = placed && place > 0 && order.tiedAt(place);
  const small = (text, label, work, off) => el("button", { type: "button", class: "round", tabindex: -1, text,
    "aria-label": label, title: label, disabled: off, onClick: (event) => { event.stopPropagation(); work(); draw(number); } });
  const rank = placed ? `${order.rankOf(number)}` : "";
  const node = el("li", { class: `answer${placed ? " placed" : ""}${tied ? " tied" : ""}`, tabindex: 0, draggable: "true",
    "data-number": number, "aria-label": `Answer ${number + 1}, ${placed ? `rank ${rank}${tied ? ", tied" : ""}` : "not ranked yet"}`,
    onClick: () => { if (!placed) { order.place(number); draw(number); } } },
  el("span", { class: "rank", "aria-hidden": "true", text: rank }),
  el("p", { class: "text", text: current.completions[number] || "(nothing)" }),
  el("div", { class: "moves" }, ...(placed ? [
    small("=", "Tie with the one above", () => order.tie(place), place === 0),
    small("↑", "Better", () => order.move(number, -1), place === 0),
    small("↓", "Worse", () => order.move(number, 1), place === order.placed.length - 1),
    small("×", "Take back", () => order.unplace(number)),
  ] : [])),
  el("span", { class: "digit", "aria-hidden": "true", text: number + 1 }));
  node.addEventListener("dragstart", (event) => {
    event.dataTransfer.setData("text/plain", String(number));
    event.dataTransfer.effectAllowed = "move";
    node.classList.add("dragged");
  });
  node.addEventListener("dragend", () => node.classList.remove("dragged"));
  return node;
}

/** Where something dropped at this height would go, and the card before which that is. */
function dropPlace(y) {
  const cards = [...find("ranking").children];
  const before = cards.findIndex((node) => {
    const { top, height } = node.getBoundingClientRect();
    return y < top + height / 2;
  });
  return { place: before < 0 ? cards.length : before, node: cards[before < 0 ? cards.length - 1 : before], end: before < 0 };
}

function mark(event) {
  for (const node of find("ranking").children) node.classList.remove("before", "after");
  if (!event) return;
  const { node, end } = dropPlace(event.clientY);
  node?.classList.add(end ? "after" : "before");
}

function setUpDragging() {
  const list = find("ranking");
  list.addEventListener("dragover", (event) => { event.preventDefault(); mark(event); });
  list.addEventListener("dragleave", (event) => { if (!list.contains(event.relatedTarget)) mark(null); });
  list.addEventListener("drop", (event) => {
    event.preventDefault();
    mark(null);
    const number = Number.parseInt(event.dataTransfer.getData("text/plain"), 10);
    if (!order?.all().includes(number)) return;
    order.insert(number, dropPlace(event.clientY).place);
    draw(number);
  });
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.target.closest?.("input, textarea, summary") || find("task").hidden) return;
  const on = event.target.closest?.(".answer");
  const number = on ? Number(on.dataset.number) : undefined;
  const key = event.key.toLowerCase();
  if (key === "enter" && event.target.closest?.("button")) return;
  const digit = /^[1-9]$/.test(key) ? Number(key) - 1 : -1;
  if (key === "u") undo();
  else if (!order) return;
  else if (digit >= 0 && digit < current.completions.length) { order.toggle(digit); draw(digit); }
  else if (key === "enter") save();
  else if (key === "s") skip();
  else if (key === "backspace") draw(order.takeBack());
  else if (key === "=" || key === "t") {
    const place = number === undefined ? order.placed.length - 1 : order.all().indexOf(number);
    order.tie(place);
    draw(order.all()[place]);
  } else if (key === "arrowup" || key === "arrowdown") {
    const by = key === "arrowup" ? -1 : 1;
    if (event.altKey && number !== undefined) { order.move(number, by); draw(number); }
    else (by < 0 ? on?.previousElementSibling : on ? on.nextElementSibling : find("ranking").firstElementChild)?.focus();
  } else return;
  event.preventDefault();
}

// People

async function showAgreement() {
  const state = await getJSON("/preferences");
  const people = Object.entries(state.annotators);
  find("model").textContent = state.model;
  find("people").textContent = people.map(([name, count]) => `${name} ${count}`).join(", ");
  find("agreement").hidden = !people.length;
  const interval = ([value, low, high]) => value === null ? "–"
    : value.toFixed(2) + (low === null ? "" : ` [${low.toFixed(2)}, ${high.toFixed(2)}]`);
  const row = (...cells) => el("tr", {}, ...cells.map((text) => el("td", { text })));
  const rows = state.two.map((pair) => row(pair.annotators.join(", "), pair.sets, pair.pairs, `${Math.round(100 * pair.agreed)}%`,
    interval(pair.kappa)));
  if (state.all && people.length > 2) rows.push(row("all (Fleiss)", "", state.all.pairs, "", interval(state.all.kappa)));
  if (!rows.length) rows.push(el("tr", {}, el("td", { colspan: 5, text: "No set has been ranked by two people yet." })));
  find("kappas").replaceChildren(...rows);
}

function askWho() {
  find("task").hidden = find("person").hidden = true;
  find("who").hidden = false;
  find("name").value = person;
  find("name").focus();
}

async function begin(name) {
  person = name;
  current = order = ahead = null;
  done.length = 0;
  try {
    localStorage.setItem(NAME, person);
  } catch { /* this visit only */ }
  find("who").hidden = true;
  find("person").hidden = false;
  find("person").textContent = person;
  await act(advance);
}

async function start() {
  setUpDragging();
  document.addEventListener("keydown", onKey);
  find("save").addEventListener("click", save);
  find("skip").addEventListener("click", skip);
  find("undo").addEventListener("click", undo);
  find("person").addEventListener("click", askWho);
  find("who").addEventListener("submit", (event) => {
    event.preventDefault();
    if (find("name").value.trim()) begin(find("name").value.trim());
  });
  find("own").addEventListener("submit", (event) => {
    event.preventDefault();
    const prompt = find("own-prompt").value.trim();
    if (!prompt) return;
    act(async () => {
      say("Drawing answers…");
      const set = await postJSON("/preferences/next", { annotator: person, prompt });
      if (current && !ahead) ahead = Promise.resolve(current);
      find("own-prompt").value = "";
      show(set);
      say("");
    });
  });
  try {
    await showAgreement();
  } catch (error) {
    return problem(error);
  }
  if (stored()) await begin(stored());
  else askWho();
}

start();
