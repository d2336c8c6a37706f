// A reply as it grows: its tokens as elements, each with its probability and the alternatives.

import { Characters, el, find, percent, tokenLabel } from "./dom.js";

/** Bars for tokens and their log-probabilities; the one with `chosen` bytes is marked. */
export function bars(list, chosen) {
  const same = (token) => chosen && token.bytes.join() === chosen.bytes.join();
  const rows = list.some(same) || !chosen ? list : [...list, chosen];
  return el("ol", { class: "bars" }, ...rows.map((token) => {
    const bar = el("span", { class: "bar", "aria-hidden": true });
    bar.style.setProperty("--p", Math.exp(token.logprob));
    return el("li", { class: same(token) ? "chosen" : "" }, bar,
      el("code", { text: tokenLabel(token.bytes) }), el("span", { class: "p", text: percent(token.logprob) }));
  }));
}

export class Reply {
  /** `specials`: spellings of special tokens. `onLook(reply, index)` is called for the token that the reader chooses. */
  constructor(label, specials, onLook) {
    this.specials = new Set(specials.map((spelling) => [...new TextEncoder().encode(spelling)].join()));
    this.content = "";
    this.tokens = [];
    this.calls = [];
    this.finish = null;
    this.characters = new Characters();
    this.shown = 0;
    this.onLook = onLook;
    this.label = label;
    this.text = el("div", { class: "text", role: "group", "aria-label": label });
    this.extra = el("div", { class: "extra" });
    this.element = el("div", { class: "reply" }, this.text, this.extra);
    this.text.addEventListener("pointerover", (event) => event.pointerType === "mouse" && this.point(event.target));
    this.text.addEventListener("pointerleave", hideTip);
    this.text.addEventListener("focusin", (event) => this.point(event.target));
    this.text.addEventListener("focusout", hideTip);
    this.text.addEventListener("click", (event) => this.choose(event.target));
    this.text.addEventListener("keydown", (event) => this.key(event));
  }

  /** Takes a chunk's choice. */
  push(choice) {
    this.content += choice.delta.content ?? "";
    for (const entry of choice.logprobs?.content ?? []) {
      const bytes = entry.bytes ?? [...new TextEncoder().encode(entry.token)];
      const token = { bytes, logprob: entry.logprob, top: entry.top_logprobs ?? [], index: this.tokens.length,
        special: this.specials.has(bytes.join()) };
      this.tokens.push(token);
      this.characters.push(token);
    }
    for (const call of choice.delta.tool_calls ?? []) this.calls[call.index] = call;
    if (choice.finish_reason) this.finish = choice.finish_reason;
    this.draw(false);
  }

  /** No more will come: what is held back is shown, and the end explained. */
  end(note = "") {
    this.characters.finish();
    this.draw(true);
    const told = this.shown < this.content.length ? this.content.slice(this.shown) : "";
    if (told) this.text.append(told);
    for (const call of this.calls.filter(Boolean)) this.extra.append(callBlock(call));
    const notes = { length: "Ended by the limit on tokens.", stopped: "Stopped." };
    const text = note || notes[this.finish] || "";
    if (text) this.extra.append(el("p", { class: "note", text }));
    if (!this.content && !this.calls.length && !text) this.extra.append(el("p", { class: "note", text: "An empty reply." }));
    const first = this.text.querySelector(".t");
    if (first) first.tabIndex = 0;
    this.text.setAttribute("aria-label", `${this.label}: ${this.tokens.length} tokens; arrow keys move between them`);
  }

  draw(all) {
    const groups = this.characters.groups;
    for (; this.drawn < groups.length; this.drawn++) {
      const group = groups[this.drawn];
      const room = this.content.length - this.shown;
      const hidden = group.special && !this.content.startsWith(group.text, this.shown); // it is no part of the text
      if (!all && (room <= 0 || (!hidden && group.text.length > room))) break;
      if (room <= 0 && (!hidden || this.calls.length)) break;
      const span = el("span", { class: hidden ? "t special" : "t", tabindex: -1,
        text: hidden ? group.text : group.text.slice(0, room) });
      span.dataset.token = group.tokens[0].index;
      span.style.setProperty("--s", Math.min(1, Math.max(...group.tokens.map((token) => -token.logprob)) / 5));
      this.text.append(span);
      if (!hidden) this.shown += Math.min(group.text.length, room);
    }
  }

  drawn = 0;

  of(target) {
    const span = target.closest?.(".t");
    return span && this.text.contains(span) ? span : null;
  }

  point(target) {
    const span = this.of(target);
    if (!span) return hideTip();
    showTip(span, this.tokens[Number(span.dataset.token)]);
  }

  choose(target) {
    const span = this.of(target);
    if (!span || String(getSelection())) return;
    hideTip();
    this.mark(span);
    this.onLook(this, Number(span.dataset.token));
  }

  mark(span) {
    for (const other of document.querySelectorAll(".t.looked")) other.classList.remove("looked");
    span.classList.add("looked");
  }

  key(event) {
    const span = this.of(event.target);
    if (!span) return;
    const steps = { ArrowLeft: span.previousElementSibling, ArrowRight: span.nextElementSibling,
      Home: this.text.querySelector(".t"), End: this.text.lastElementChild };
    if (event.key === "Enter" || event.key === " ") this.choose(span);
    else if (event.key === "Escape") return hideTip();
    else if (!(event.key in steps)) return;
    event.preventDefault();
    const next = steps[event.key];
    if (!next) return;
    span.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }

  /** The message for the next request. */
  message() {
    const calls = this.calls.filter(Boolean).map(({ id, type, function: f }) => ({ id, type, function: f }));
    if (!calls.length) return { role: "assistant", content: this.content };
    return { role: "assistant", content: this.content || null, tool_calls: calls };
  }
}

function callBlock(call) {
  let written = call.function.arguments;
  try {
    written = JSON.stringify(JSON.parse(written), null, 2);
  } catch { /* as the model wrote it */ }
  return el("figure", { class: "call" }, el("figcaption", {}, "Calls ", el("code", { text: call.function.name })),
    el("pre", { text: written }));
}

function showTip(span, token) {
  const tip = find("tip");
  tip.replaceChildren(bars(token.top.slice(0, 5), token));
  tip.hidden = false;
  span.setAttribute("aria-describedby", "tip");
  const at = span.getClientRects()[0];
  const { width, height } = tip.getBoundingClientRect();
  const left = Math.max(8, Math.min(at.left, innerWidth - width - 8));
  const above = at.top - height - 8;
  tip.style.left = `${left}px`;
  tip.style.top = `${above > 8 ? above : at.bottom + 8}px`;
}

export function hideTip() {
  find("tip").hidden = true;
  for (const span of document.querySelectorAll("[aria-describedby=tip]")) span.removeAttribute("aria-describedby");
}
addEventListener("scroll", hideTip, { passive: true, capture: true });
