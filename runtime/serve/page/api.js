// Requests to the server, and the API key that goes with them.

const KEPT = "isodet-key";
let key = keptKey();

function keptKey() {
  try {
    return sessionStorage.getItem(KEPT) ?? "";
  } catch { // a browser that forbids storage: the key is in memory only
    return "";
  }
}

/** An answer that is an error. status: 0 where no answer came. retry: seconds after which to ask again. */
export class ServerError extends Error {
  constructor(message, status, retry = 1) {
    super(message);
    this.status = status;
    this.retry = retry;
  }
}

/** Take a key for the requests that follow; `keep`: until the tab is closed, else until the page is. */
export function useKey(text, keep) {
  key = text.trim();
  try {
    if (keep) sessionStorage.setItem(KEPT, key);
    else sessionStorage.removeItem(KEPT);
  } catch (error) {
    throw new ServerError(`The browser does not keep the key (${error.message}); it is used until the page closes.`, 0);
  }
}

async function ask(path, options = {}) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  let response, text;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store" });
    text = await response.text();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server does not answer: it has ended, or the connection is gone.", 0);
  }
  if (response.ok) return JSON.parse(text);
  throw new ServerError(reason(response, text), response.status, Number(response.headers.get("Retry-After")) || 1);
}

function reason(response, text) {
  try {
    return String(JSON.parse(text).error);
  } catch { // a proxy's answer, which is not JSON
    return `expected an answer in JSON, got ${response.status} ${response.statusText}`;
  }
}

/** The models of the server, as /v1/models lists them. */
export async function listModels() {
  return (await ask("v1/models")).models;
}

/** A model, with its card. */
export function readModel(name) {
  return ask(`v1/models/${encodeURIComponent(name)}`);
}

/** A body that is far too large is not read to its end: the browser then sees a lost connection, not the answer 413. */
async function explained(error, blob, name) {
  if (!(error instanceof ServerError) || error.status) throw error;
  await ask("healthz"); // throws the same where the server is gone
  const size = `${(blob.size / 1e6).toFixed(1)} MB`;
  throw new ServerError(`${name}: the server closed the connection before it had all ${size}: is it too large?`, 0);
}

/** The answer for a picture with all scores that the model gives, and `roundTrip` in milliseconds. */
export async function detect(model, blob, name, signal) {
  const form = new FormData();
  form.append("picture", blob, name); // by its name: errors have it
  const begun = performance.now();
  const path = `v1/models/${encodeURIComponent(model)}/detect?threshold=0`;
  const answer = await ask(path, { method: "POST", body: form, signal }).catch((error) => explained(error, blob, name));
  return { ...answer, ...answer.pictures[0], answer_ms: answer.time_ms, roundTrip: performance.now() - begun };
}
