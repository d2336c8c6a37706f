// Elements made of text, never of HTML: what a model writes can only ever be shown.

/** Makes an element. `props`: class, text, on<Event> functions, data-* and other attributes; false leaves one out. */
export function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === false || value === null || value === undefined) continue;
    if (name === "class") node.className = value;
    else if (name === "text") node.textContent = value;
    else if (name.startsWith("on")) node.addEventListener(name.slice(2).toLowerCase(), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

export const find = (id) => document.getElementById(id);

/** Whitespace and control characters made visible, for short labels. */
export function visible(text) {
  return text.replace(/ /g, "␣").replace(/\n/g, "↵").replace(/\t/g, "⇥")
    .replace(/[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u202a-\u202e\u2066-\u2069]/g,
      (c) => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0")) || "∅";
}

/** A token's bytes as text for a label; bytes that are no whole character as hexadecimal. */
export function tokenLabel(bytes) {
  try {
    return visible(new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(new Uint8Array(bytes)));
  } catch {
    return hex(bytes);
  }
}

export const hex = (bytes) => bytes.map((byte) => byte.toString(16).padStart(2, "0")).join(" ");

/** A probability in few characters. */
export function percent(logprob) {
  const p = 100 * Math.exp(logprob);
  if (p >= 99.95) return "100%";
  if (p >= 10) return p.toFixed(0) + "%";
  if (p >= 0.1) return p.toFixed(1) + "%";
  return "<0.1%";
}

/** Groups of tokens that end at whole characters: [{text, tokens, special}]. */
export class Characters {
  constructor() {
    this.decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    this.pending = [];
    this.groups = [];
  }

  /** Takes a token; a special one stands for itself and is never part of a character. */
  push(token) {
    if (token.special) {
      this.finish();
      this.groups.push({ text: new TextDecoder().decode(new Uint8Array(token.bytes)), tokens: [token], special: true });
      return;
    }
    this.pending.push(token);
    this.close(this.decoder.decode(new Uint8Array(token.bytes), { stream: true }), this.whole());
  }

  finish() {
    if (this.pending.length) this.close(this.decoder.decode(), true);
    this.decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    return this;
  }

  close(text, whole) {
    this.held = (this.held ?? "") + text;
    if (!whole) return;
    this.groups.push({ text: this.held, tokens: this.pending });
    this.held = "";
    this.pending = [];
  }

  /** Whether the pending bytes end at the end of a character. */
  whole() {
    const bytes = this.pending.flatMap((token) => token.bytes);
    for (let back = 1; back <= Math.min(3, bytes.length); back++) {
      const byte = bytes[bytes.length - back];
      if (byte >= 0xf0) return back > 3;
      if (byte >= 0xe0) return back > 2;
      if (byte >= 0xc0) return back > 1;
      if (byte < 0x80) return true;
    }
    return true;
  }
}
