// The page that collects rankings: a set of answers, put in order by keys, by dragging or by a tap, and saved.

import { getJSON } from "./api.js";
import { el, find } from "./dom.js";
import { Judge, problem, say } from "./judge.js";
import { Order } from "./order.js";

const DRAWING = "Drawing answers…";
let order = null; // of the set on the page

class Ranking extends Judge {
  draw(ranking) {
    order = new Order(this.current.completions.length, ranking);
    find("last-digit").textContent = this.current.completions.length;
    drawCards();
  }

  async advance() {
    say(DRAWING);
    try {
      await super.advance();
      say("");
    } catch (error) {
      if (error.status !== 409) throw error;
      this.current = null; // without a list of prompts, or where the model has one answer alone
      find("ranking").replaceChildren();
      find("request").replaceChildren();
      find("task").hidden = false;
      find("task").querySelector("details").open = true;
      find("save").disabled = find("skip").disabled = true;
      say("");
      problem(error);
    }
  }

  save() {
    return this.act(async () => {
      if (!this.current || !order.complete) return;
      const ranking = order.tiers();
      const { ranked } = await this.settle("rank", { ranking, seconds: this.seconds }, ranking);
      await this.advance();
      if (find("problem").hidden) say(`Saved: ${ranked} ranked.`);
      showAgreement().catch(problem);
    });
  }

  async undo() {
    await super.undo();
    showAgreement().catch(problem);
  }

  /** Draws answers to a request of the person's own; what is on the page comes after it again. */
  askOwn(prompt) {
    return this.act(async () => {
      say(DRAWING);
      const set = await this.call("next", { prompt });
      find("own-prompt").value = "";
      this.show(set);
      say("");
    });
  }

  press(key, event) {
    const on = event.target.closest?.(".answer");
    const number = on ? Number(on.dataset.number) : undefined;
    const digit = /^[1-9]$/.test(key) ? Number(key) - 1 : -1;
    if (digit >= 0 && digit < this.current.completions.length) { order.toggle(digit); drawCards(digit); }
    else if (key === "enter" && !event.target.closest?.("button")) this.save();
    else if (key === "backspace") drawCards(order.takeBack());
    else if (key === "=" || key === "t") {
      const place = number === undefined ? order.placed.length - 1 : order.all().indexOf(number);
      order.tie(place);
      drawCards(order.all()[place]);
    } else if (key === "arrowup" || key === "arrowdown") {
      const by = key === "arrowup" ? -1 : 1;
      if (event.altKey && number !== undefined) { order.move(number, by); drawCards(number); }
      else if (on) (by < 0 ? on.previousElementSibling : on.nextElementSibling)?.focus();
      else if (by > 0) find("ranking").firstElementChild?.focus();
    } else return false;
    return true;
  }
}

const judge = new Ranking("/preferences", "set");

// Cards

function drawCards(focus) {
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
    "aria-label": label, title: label, disabled: off, onClick: (event) => { event.stopPropagation(); work(); drawCards(number); } });
  const rank = placed ? `${order.rankOf(number)}` : "";
  const node = el("li", { class: `answer${placed ? " placed" : ""}${tied ? " tied" : ""}`, tabindex: 0, draggable: "true",
    "data-number": number, "aria-label": `Answer ${number + 1}, ${placed ? `rank ${rank}${tied ? ", tied" : ""}` : "not ranked yet"}`,
    onClick: () => { if (!placed) { order.place(number); drawCards(number); } } },
  el("span", { class: "rank", "aria-hidden": "true", text: rank }),
  el("p", { class: "text", text: judge.current.completions[number] || "(nothing)" }),
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
    if (!judge.current || !order.all().includes(number)) return;
    order.insert(number, dropPlace(event.clientY).place);
    drawCards(number);
  });
}

// Agreement

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

async function start() {
  setUpDragging();
  find("save").addEventListener("click", () => judge.save());
  find("own").addEventListener("submit", (event) => {
    event.preventDefault();
    const prompt = find("own-prompt").value.trim();
    if (prompt) judge.askOwn(prompt);
  });
  try {
    await showAgreement();
  } catch (error) {
    return problem(error);
  }
  judge.start();
}

start();
