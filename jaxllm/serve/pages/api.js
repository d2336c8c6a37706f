// Calls to the server that this page came from.

const KEY = "jaxllm.key";

export function apiKey() {
  try {
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    return "";
  }
}

export function setApiKey(key) {
  try {
    if (key) sessionStorage.setItem(KEY, key);
    else sessionStorage.removeItem(KEY);
  } catch { /* the browser keeps nothing: the key has to be given again */ }
}

async function call(path, body, signal) {
  const headers = body === undefined ? {} : { "Content-Type": "application/json" };
  if (apiKey()) headers.Authorization = `Bearer ${apiKey()}`;
  let response;
  try {
    response = await fetch(path, {
      method: body === undefined ? "GET" : "POST", headers, signal,
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server cannot be reached.");
  }
  if (response.ok) return response;
  let message = `The server answered ${response.status}.`;
  try {
    message = (await response.json()).error.message ?? message;
  } catch { /* no JSON: the status has to do */ }
  const error = new Error(message);
  error.status = response.status;
  throw error;
}

export const getJSON = async (path) => (await call(path)).json();
export const postJSON = async (path, body, signal) => (await call(path, body, signal)).json();

/** Yields the objects of a stream of server-sent events. */
export async function* events(path, body, signal) {
  const reader = (await call(path, body, signal)).body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { value, done } = await reader.read();
    buffer += value ?? "";
    const parts = buffer.split("\n\n");
    buffer = done ? "" : parts.pop();
    for (const part of parts) {
      if (!part.startsWith("data: ")) continue;
      if (part === "data: [DONE]") return;
      const event = JSON.parse(part.slice(6));
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
    if (done) return;
  }
}
