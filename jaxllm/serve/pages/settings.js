// The settings of the chat page: what is asked of the server with each reply.

import { apiKey, setApiKey } from "./api.js";
import { find } from "./dom.js";

const KEY = "jaxllm.settings";
const FIELDS = ["system", "tools", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens", "n",
  "seed", "stop"];

/** Fills the form from the last visit and keeps it. */
export function initSettings(onChange) {
  const form = find("settings");
  let kept = {};
  try {
    kept = JSON.parse(localStorage.getItem(KEY)) ?? {};
  } catch { /* none, or not ours */ }
  for (const name of FIELDS) {
    if (typeof kept[name] === "string") form.elements[name].value = kept[name];
  }
  form.elements.key.value = apiKey();
  const changed = () => {
    for (const output of form.querySelectorAll("output")) output.value = form.elements[output.htmlFor.value].value;
    setApiKey(form.elements.key.value.trim());
    const values = Object.fromEntries(FIELDS.map((name) => [name, form.elements[name].value]));
    try {
      localStorage.setItem(KEY, JSON.stringify(values));
    } catch { /* this visit only */ }
    check(form);
    onChange();
  };
  form.addEventListener("input", changed);
  form.addEventListener("submit", (event) => event.preventDefault());
  find("reset").addEventListener("click", () => {
    form.reset();
    changed();
  });
  changed();
}

function check(form) {
  let problem = "";
  try {
    readTools(form);
  } catch (error) {
    problem = error.message;
  }
  form.elements.tools.setCustomValidity(problem);
  find("tools-problem").textContent = problem;
}

function readTools(form) {
  const text = form.elements.tools.value.trim();
  if (!text) return null;
  let tools;
  try {
    tools = JSON.parse(text);
  } catch (error) {
    throw new Error(`Not JSON: ${error.message}`);
  }
  if (!Array.isArray(tools)) throw new Error("Give a list of tools: [{\"type\": \"function\", ...}]");
  return tools;
}

/** The settings as a request's fields; throws an Error with a sentence where one is out of range. */
export function requestSettings() {
  const form = find("settings");
  const wrong = [...form.elements].find((field) => field.willValidate && !field.checkValidity());
  if (wrong) throw new Error(`Setting “${wrong.dataset.name}”: ${wrong.validationMessage}`);
  const number = (name) => Number(form.elements[name].value);
  const request = {
    temperature: number("temperature"), top_p: number("top_p"), top_k: number("top_k"), min_p: number("min_p"),
    repetition_penalty: number("repetition_penalty"), max_tokens: number("max_tokens"), n: number("n"),
  };
  if (form.elements.seed.value !== "") request.seed = number("seed");
  const stop = form.elements.stop.value.split("\n").filter(Boolean);
  if (stop.length) request.stop = stop;
  const tools = readTools(form);
  if (tools && tools.length) request.tools = tools;
  return request;
}

export const systemMessage = () => find("settings").elements.system.value.trim();
