// A look inside at one token: the alternatives, what each layer would have said, and where each head attended.

import { postJSON } from "./api.js";
import { el, find, percent, tokenLabel } from "./dom.js";
import { bars } from "./reply.js";

let asked = null;
let state = null;

/** Opens the panel for token `index` of a reply to `messages`. */
export async function openInspector(messages, tools, reply, index) {
  const token = reply.tokens[index];
  asked?.abort();
  asked = new AbortController();
  const panel = find("inspector");
  panel.hidden = false;
  document.body.classList.add("inspecting");
  find("look-token").replaceChildren(el("code", { text: tokenLabel(token.bytes) }));
  find("look-p").textContent = percent(token.logprob);
  find("look-alternatives").replaceChildren(bars(token.top, token));
  find("look-state").textContent = "Looking inside…";
  find("look-inside").hidden = true;
  find("look-close").focus({ preventScroll: true });
  document.querySelector(".t.looked")?.scrollIntoView({ block: "nearest" });
  try {
    const body = { messages, index, top: 4, reply: reply.tokens.slice(0, index + 1).map((t) => t.bytes) };
    if (tools) body.tools = tools;
    const seen = await postJSON("/inspect/look", body, asked.signal);
    const packed = Uint8Array.from(atob(seen.attention), (c) => c.charCodeAt(0));
    const weights = new DataView(packed.buffer);
    const T = seen.context.length;
    seen.weight = (layer, head, position) =>
      weights.getUint16(2 * ((layer * seen.heads + head) * T + position), true) / 65535;
    show(seen);
  } catch (error) {
    if (error.name !== "AbortError") find("look-state").textContent = error.message;
  }
}

export function closeInspector() {
  asked?.abort();
  find("inspector").hidden = true;
  document.body.classList.remove("inspecting");
  const looked = document.querySelector(".t.looked");
  looked?.classList.remove("looked");
  looked?.focus({ preventScroll: true });
}

function show(seen) {
  const kept = state;
  state = seen;
  find("look-state").textContent = "";
  find("look-inside").hidden = false;
  drawLens(seen);
  const layer = find("look-layer"), head = find("look-head");
  layer.max = seen.layers;
  if (!kept || kept.layers !== seen.layers) layer.value = Math.ceil(seen.layers / 2);
  head.replaceChildren(el("option", { value: "mean", text: "all heads, mean" }),
    ...Array.from({ length: seen.heads }, (_, i) => el("option", { value: i, text: `head ${i + 1}` })));
  if (kept && kept.heads === seen.heads) head.value = kept.head ?? "mean";
  drawAttention();
}

function drawLens(seen) {
  const rows = seen.lens.map((row, layer) => {
    const cells = row.tokens.map((token) => {
      const cell = el("td", { title: `${tokenLabel(token.bytes)} ${percent(token.logprob)}` },
        el("code", { text: tokenLabel(token.bytes) }));
      cell.style.setProperty("--p", Math.exp(token.logprob));
      if (token.id === seen.token.id) cell.className = "chosen";
      return cell;
    });
    return el("tr", {}, el("th", { scope: "row", text: layer === 0 ? "in" : String(layer) }), ...cells,
      el("td", { class: "p", text: percent(row.logprob) }));
  });
  find("look-lens").replaceChildren(...rows.reverse());
  find("look-lens-token").textContent = tokenLabel(seen.token.bytes);
}

export function drawAttention() {
  if (!state) return;
  const layer = Number(find("look-layer").value) - 1, head = find("look-head").value;
  state.head = head;
  find("look-layer-value").value = `${layer + 1} of ${state.layers}`;
  const weights = state.context.map((_, position) => {
    if (head !== "mean") return state.weight(layer, Number(head), position);
    let sum = 0;
    for (let h = 0; h < state.heads; h++) sum += state.weight(layer, h, position);
    return sum / state.heads;
  });
  const most = Math.max(...(weights.length > 1 ? weights.slice(1) : weights)); // the first token is most heads' sink
  find("look-attention").replaceChildren(...state.context.map((token, position) => {
    const label = tokenLabel(token.bytes);
    const span = el("span", { class: token.special ? "a special" : "a", text: label.replace(/␣/g, " "),
      title: `${label} ${(100 * weights[position]).toFixed(1)}%` });
    span.style.setProperty("--w", Math.min(1, weights[position] / (most || 1)));
    return span;
  }));
  find("look-attention").scrollTop = find("look-attention").scrollHeight;
  const order = weights.map((weight, position) => [weight, position]).sort((a, b) => b[0] - a[0]).slice(0, 3);
  find("look-attention-told").textContent = "Most of it at " + order.map(([weight, position]) =>
    `${tokenLabel(state.context[position].bytes)} (${(100 * weight).toFixed(0)}%)`).join(", ") + ".";
}

export function initInspector() {
  find("look-close").addEventListener("click", closeInspector);
  find("look-layer").addEventListener("input", drawAttention);
  find("look-head").addEventListener("change", drawAttention);
  find("inspector").addEventListener("keydown", (event) => event.key === "Escape" && closeInspector());
}
