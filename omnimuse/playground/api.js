// The public HTTP API, as this page uses it. Drawing is an async generator of plain events:
//   {type: "progress", output, stage, step, steps}   {type: "preview", output, blob}
//   {type: "made", output, blob, seed, width, height, warnings} (and `lasts`, in seconds, of a sound)
// Seeds go up to 2^64, more than a JavaScript number holds: they are strings here and digits on the wire.

const KEY = "omnimuse-api-key";
const RUNNING = "omnimuse-video"; // the id of the video that this tab waits for
const PREVIEWS = 3;
const SOUNDS = { wav: "audio/wav", flac: "audio/flac", ogg: "audio/ogg", mp3: "audio/mpeg" };

export const address = (path) => new URL(path, document.baseURI).href;
export const hasKey = () => Boolean(sessionStorage.getItem(KEY));
export const useKey = (key) => sessionStorage.setItem(KEY, key);

/** An answer that is not a success: `status`, `code` and `requestId` as the server gave them. */
export class ApiError extends Error {
  constructor(message, { status = 0, code = "", requestId = "" } = {}) {
    super(message);
    Object.assign(this, { status, code, requestId });
  }
}

/** JSON text of `fields`, with the seed as a number however large. */
export function encode(fields) {
  // Quotes inside strings are escaped in JSON, so only the field itself can match.
  return JSON.stringify(fields).replace(/"seed":"(\d+)"/, '"seed":$1');
}

/** The response of a call; throws ApiError. */
export async function call(path, options = {}) {
  const headers = new Headers(options.headers);
  if (hasKey()) headers.set("Authorization", `Bearer ${sessionStorage.getItem(KEY)}`);
  const answer = await fetch(address(path), { ...options, headers }).catch((error) => {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server does not answer. Is it still running?");
  });
  if (!answer.ok) throw await problem(answer);
  return answer;
}

async function problem(answer) {
  const { error = {} } = await answer.json().catch(() => ({}));
  const wait = Number(answer.headers.get("retry-after"));
  const message = error.message || `The server answered ${answer.status}.`;
  return new ApiError(wait ? `${message} Try again in ${wait} s.` : message, {
    status: answer.status, code: error.code, requestId: answer.headers.get("x-request-id") ?? "",
  });
}

const post = (fields) => ({ method: "POST", body: encode(fields), headers: { "Content-Type": "application/json" } });

/** The server-sent events of a response, as {name, text}, up to [DONE]; an error event is thrown. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read().catch((error) => {
        throw error.name === "AbortError" ? error : new ApiError("The connection to the server was lost.");
      });
      if (done) return;
      const blocks = (rest + value).split(/\r?\n\r?\n/);
      rest = blocks.pop();
      for (const block of blocks) {
        const event = parseEvent(block);
        if (event?.text === "[DONE]") return;
        if (event) yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function parseEvent(block) {
  const lines = block.split(/\r?\n/);
  const field = (name) => lines.filter((line) => line.startsWith(`${name}:`))
    .map((line) => line.slice(name.length + 1).replace(/^ /, ""));
  const text = field("data").join("\n");
  if (!text) return null;
  const data = text === "[DONE]" ? {} : JSON.parse(text);
  if (data.error) throw new ApiError(data.error.message, { code: data.error.code });
  return { text, data };
}

function toBlob(base64, type) {
  return new Blob([Uint8Array.from(atob(base64), (c) => c.charCodeAt(0))], { type });
}

// Read from the text, because JSON.parse would round it.
const seedOf = (text) => /"seed": ?(\d+)/.exec(text)?.[1] ?? "";

/** Pictures, from text or (with `sources`, files) from pictures; aborting `signal` stops the work on the server. */
export async function* drawPictures(fields, sources, signal) {
  const asked = { ...fields, stream: true, partial_images: PREVIEWS, progress: true };
  const answer = sources.length
    ? await call("v1/images/edits", { ...postForm(asked, sources), signal })
    : await call("v1/images/generations", { ...post(asked), signal });
  let made = 0;
  for await (const { text, data } of events(answer)) {
    const output = data.output ?? 0;
    if (data.type.endsWith(".progress")) yield { ...data, type: "progress", output };
    if (data.type.endsWith(".partial_image")) {
      yield { type: "preview", output, blob: toBlob(data.b64_json, `image/${data.output_format}`) };
    }
    if (data.type.endsWith(".completed")) {
      const [width, height] = data.size.split("x").map(Number);
      const blob = toBlob(data.b64_json, `image/${data.output_format}`);
      yield { type: "made", output, blob, seed: seedOf(text), width, height, warnings: data.warnings };
      made += 1;
    }
  }
  if (!made) throw new ApiError("The connection ended before the picture was finished.");
}

function postForm(fields, sources) {
  const form = new FormData();
  const { extra_params: extra = {}, ...plain } = fields;
  for (const [name, value] of Object.entries(plain)) form.append(name, String(value));
  for (const [name, value] of Object.entries(extra)) form.append(`extra_params[${name}]`, typeof value === "object" ? JSON.stringify(value) : String(value));
  for (const source of sources) form.append(sources.length > 1 ? "image[]" : "image", source, source.name);
  return { method: "POST", body: form };
}

/** One sound, as it comes; aborting `signal` stops the work on the server. */
export async function* makeSound(fields, signal) {
  const { output_format: format = "wav", ...rest } = fields;
  const asked = { ...rest, response_format: format, stream_format: "sse" };
  for await (const { text, data } of events(await call("v1/audio/generate", { ...post(asked), signal }))) {
    if (data.type === "audio.progress") yield { ...data, type: "progress", output: 0 };
    if (data.type === "audio.done") {
      const blob = toBlob(data.audio, SOUNDS[data.format]);
      yield { type: "made", output: 0, blob, seed: seedOf(text), width: 3, height: 1, lasts: data.seconds };
      return;
    }
  }
  throw new ApiError("The connection ended before the sound was finished.");
}

/** One video, from text or (with `sources`, files) from its first frame and perhaps its last. The job outlives a lost
 *  connection and this page; aborting `signal` cancels it. */
export async function* makeVideo(fields, sources, signal) {
  const asked = sources.length ? postForm(fields, sources) : post(fields);
  const { id } = await (await call("v1/videos", { ...asked, signal })).json();
  sessionStorage.setItem(RUNNING, id);
  yield* finishVideo(id, signal);
}

/** The video that this tab waited for when its page was left, as {id, fields}; null if there is none. */
export async function leftVideo() {
  const id = sessionStorage.getItem(RUNNING);
  if (!id) return null;
  try {
    const { text, job: { model, prompt, size, num_frames, fps } } = await look(id);
    return { id, fields: { model, prompt, size, num_frames, fps, seed: seedOf(text) } };
  } catch (error) {
    if (error.status >= 400 && error.status !== 401) sessionStorage.removeItem(RUNNING); // it is there no more
    return null;
  }
}

/** What is still to come of a video, to its end. */
export async function* finishVideo(id, signal) {
  try {
    yield* watchVideo(id, signal);
    for (;;) {
      const { answer, text, job } = await look(id, signal);
      if (job.status === "completed") {
        yield await fetchVideo(job, seedOf(text), signal);
        return;
      }
      if (job.status === "failed") {
        sessionStorage.removeItem(RUNNING);
        throw new ApiError(job.error.message, { code: job.error.code });
      }
      await pause(answer.headers.get("openai-poll-after-ms"), signal);
    }
  } catch (error) {
    if (signal.aborted) {
      sessionStorage.removeItem(RUNNING);
      await call(`v1/videos/${id}/cancel`, { method: "POST" }).catch(() => {});
    }
    throw error;
  }
}

async function look(id, signal) {
  const answer = await call(`v1/videos/${id}`, { signal });
  const text = await answer.text();
  return { answer, text, job: JSON.parse(text) };
}

async function fetchVideo(job, seed, signal) {
  const blob = await (await call(`v1/videos/${job.id}/content`, { signal })).blob();
  sessionStorage.removeItem(RUNNING);
  const [width, height] = job.size.split("x").map(Number);
  const { warnings, completed_at: ended, created_at: began } = job;
  return { type: "made", output: 0, blob, seed, width, height, warnings, seconds: ended - began };
}

async function* watchVideo(id, signal) {
  try {
    for await (const { data } of events(await call(`v1/videos/${id}/events`, { signal }))) {
      if (data.b64_json) yield { type: "preview", output: 0, blob: toBlob(data.b64_json, "image/jpeg") };
      else if (data.steps) yield { ...data, type: "progress", output: 0 };
    }
  } catch (error) {
    // The job's own state, read next, says what became of it; a stream that broke does not.
    if (signal.aborted) throw error;
  }
}

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, Number(milliseconds) || 1000);
    signal.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
  });
}
