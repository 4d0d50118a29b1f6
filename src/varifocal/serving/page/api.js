// Speaks with the server: keys, errors as sentences, and answers as they are written.

const KEY = "varifocal.key";
const MOST_WAITS = 4;

/** What went wrong, in words for a person. */
export class ServerError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

export function setKey(key) {
  sessionStorage.setItem(KEY, key);
}

function headers(extra = {}) {
  const key = sessionStorage.getItem(KEY);
  return key ? { ...extra, Authorization: `Bearer ${key}` } : extra;
}

/** Fetch a path below this page; every failure becomes a ServerError, an abort stays one. */
async function call(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: headers(options.headers) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server cannot be reached. Is it still running?");
  }
  if (!response.ok) throw await failure(response);
  return response;
}

async function failure(response) {
  let told = "";
  try {
    told = (await response.json()).error.message;
  } catch {
    told = response.statusText;
  }
  const words = {
    401: "The server asks for a key",
    413: "The request is too large for this server",
    429: "The server is busy",
    503: "The server is shutting down",
    504: "The answer took too long",
  };
  const head = words[response.status] ?? (response.status < 500
    ? "The server does not take this request"
    : "The server failed");
  const error = new ServerError(told ? `${head}: ${told}` : `${head}.`, response.status);
  error.wait = Number(response.headers.get("Retry-After")) || 1;
  return error;
}

export async function getJson(path) {
  return (await call(path)).json();
}

/** Ask; a full queue is tried again a few times, each time after a longer wait. */
async function ask(body, signal, onWait) {
  for (let round = 1; ; round += 1) {
    try {
      return await call("v1/chat/completions", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify(body),
        signal,
      });
    } catch (error) {
      if (error.status !== 429 || round > MOST_WAITS) throw error;
      const seconds = error.wait * 2 ** (round - 1);
      onWait(seconds);
      await pause(seconds, signal);
    }
  }
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(new DOMException("stopped", "AbortError"));
    });
  });
}

/**
 * Ask for an answer and give its events as they come.
 *
 * Yields the chunks of OpenAI's stream; ends after [DONE] and throws a ServerError where the
 * connection ends before.
 */
export async function* stream(body, signal, onWait) {
  const asked = { ...body, stream: true, stream_options: { include_usage: true } };
  const response = await ask(asked, signal, onWait);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await read(reader);
    if (done) throw new ServerError("The connection was lost before the answer was complete.");
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new ServerError(`The server failed: ${event.error.message}`, 500);
      yield event;
    }
  }
}

async function read(reader) {
  try {
    return await reader.read();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The connection was lost before the answer was complete.");
  }
}
