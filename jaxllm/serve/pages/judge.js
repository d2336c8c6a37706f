// What the pages on which people judge have in common: who judges, what was asked, and one thing after another.

import { postJSON } from "./api.js";
import { el, find } from "./dom.js";

const NAME = "jaxllm.annotator";

function stored() {
  try {
    return localStorage.getItem(NAME) ?? "";
  } catch {
    return "";
  }
}

export const say = (text) => { find("status").textContent = text; };

/** Shows what went wrong; null: nothing did. */
export function problem(error) {
  find("problem").hidden = !error;
  find("problem").textContent = error?.status === 401
    ? "This server asks for an API key: write it into the settings of the chat page." : error?.message ?? "";
}

/**
 * One person's way through what is to be judged. A page extends it by
 *   draw(kept)         shows `current` in the page's own elements; `kept` is what was made of it before, if anything
 *   press(key, event)  does what the page's own keys do; returns whether this was one of them.
 */
export class Judge {
  /** `path` is that of the calls, and `item` the field of theirs that names what is judged. */
  constructor(path, item) {
    this.path = path;
    this.item = item;
    this.person = "";
    this.current = null; // on the page: {[item]: its name, prompt, ...}
    this.ahead = null; // a promise of what comes after it
    this.began = 0;
    this.busy = false;
    this.done = []; // {name, kept} of what this visit judged or skipped, the last at the end
  }

  call(what, body) {
    return postJSON(`${this.path}/${what}`, { annotator: this.person, ...body });
  }

  fetchNext() {
    return this.call("next", { holding: this.current ? [this.current[this.item]] : [] });
  }

  /** Seconds that the current one has been on the page, to a tenth. */
  get seconds() {
    return Math.round((performance.now() - this.began) / 100) / 10;
  }

  /** Shows one, or with null none, and asks for the one after it, so that nobody waits while it is made. */
  show(next, kept) {
    this.current = next;
    this.began = performance.now();
    this.ahead = null;
    find("task").hidden = !next;
    if (!next) return;
    find("request").replaceChildren(...next.prompt.map(({ role, content }) => el("div", { class: `turn ${role}` },
      el("h2", { text: role === "user" ? "Asked" : role[0].toUpperCase() + role.slice(1) }),
      el("p", { class: "text", text: content ?? "" }))));
    this.draw(kept);
    this.ahead = this.fetchNext();
    this.ahead.catch(() => {}); // said when it is wanted
  }

  async advance() {
    const next = this.ahead ?? this.fetchNext();
    this.ahead = null; // one that failed is asked for again
    this.show(await next);
  }

  /** Does one thing at a time, and says what went wrong. Meanwhile nobody else can begin: it is done in this name. */
  async act(work) {
    if (this.busy) return;
    this.busy = find("person").disabled = true;
    try {
      problem(null);
      await work();
    } catch (error) {
      say("");
      problem(error);
    } finally {
      this.busy = find("person").disabled = false;
    }
  }

  /** Tells the server what was made of the current one; `kept` is given to `draw` when it is taken back. */
  async settle(how, body, kept) {
    const name = this.current[this.item];
    const answer = await this.call(how, { [this.item]: name, ...body });
    this.done = [...this.done.filter((one) => one.name !== name), { name, kept }];
    return answer;
  }

  skip() {
    return this.act(async () => {
      if (!this.current) return;
      await this.settle("skip");
      await this.advance();
      if (find("problem").hidden) say("Skipped.");
    });
  }

  undo() {
    return this.act(async () => {
      const last = this.done.at(-1);
      if (!last) return say("Nothing to undo.");
      const back = await this.call("undo", { [this.item]: last.name });
      this.done.pop();
      this.show(back, last.kept);
      say("Taken back.");
    });
  }

  askWho() {
    find("task").hidden = find("person").hidden = true;
    find("who").hidden = false;
    find("name").value = this.person;
    find("name").focus();
  }

  async begin(name) {
    this.person = name;
    this.current = this.ahead = null;
    this.done = [];
    try {
      localStorage.setItem(NAME, name);
    } catch { /* this visit only */ }
    find("who").hidden = true;
    find("person").hidden = false;
    find("person").textContent = name;
    say("");
    await this.act(() => this.advance());
  }

  onKey(event) {
    if (event.ctrlKey || event.metaKey || event.target.closest?.("input, textarea, summary")) return;
    if (!find("who").hidden) return;
    if (!this.current && !this.done.length) return; // nothing to judge or to take back
    const key = event.key.toLowerCase();
    if (key === "u" && !event.altKey) this.undo();
    else if (!this.current) return;
    else if (key === "s" && !event.altKey) this.skip();
    else if (!this.press(key, event)) return;
    event.preventDefault();
  }

  /** Takes up the page's elements, and begins: with the person of the last visit, or by asking who judges. */
  start() {
    find("who").prepend(el("h1", { text: "Which answer is better?" }));
    find("who").append(el("label", { for: "name", text: "Your name" }), el("div", { class: "field" },
      el("input", { id: "name", type: "text", maxlength: 40, autocomplete: "nickname", required: true }),
      el("button", { type: "submit", class: "send", text: "Begin" })));
    find("who").addEventListener("submit", (event) => {
      event.preventDefault();
      if (find("name").value.trim()) this.begin(find("name").value.trim());
    });
    find("person").addEventListener("click", () => this.askWho());
    find("skip").addEventListener("click", () => this.skip());
    find("undo").addEventListener("click", () => this.undo());
    document.addEventListener("keydown", (event) => this.onKey(event));
    if (stored()) this.begin(stored());
    else this.askWho();
  }
}
