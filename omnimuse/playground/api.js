// The public HTTP API, as this page uses it. Drawing is an async generator of plain events:
//   {type: "progress", output, stage, step, steps}   {type: "preview", output, blob}
//   {type: "heard", samples, rate, channels}: the next piece of a sound, of 16 bits, those of the channels in turn
//   {type: "made", output, blob, seed, width, height, warnings} (and `lasts`, in seconds, of a sound)
// Seeds go up to 2^64, more than a JavaScript number holds: they are strings here and digits on the wire.

const KEY = "omnimuse-api-key";
const PREVIEWS = 3;
const SOUNDS = { wav: "audio/wav", flac: "audio/flac", ogg: "audio/ogg", mp3: "audio/mpeg", opus: "audio/ogg" };

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

const post = (fields, key) => ({
  method: "POST", body: encode(fields),
  headers: { "Content-Type": "application/json", ...(key ? { "Idempotency-Key": key } : {}) },
});

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
  if (data.error) {
    const { message, code } = data.error;
    throw new ApiError(message, { code, status: code === "server_draining" ? 503 : 400 });
  }
  return { text, data };
}

const bytesOf = (base64) => Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
const toBlob = (base64, type) => new Blob([bytesOf(base64)], { type });
const toSamples = (base64) => new Int16Array(bytesOf(base64).buffer);

// Read from the text, because JSON.parse would round it.
const seedOf = (text) => /"seed": ?(\d+)/.exec(text)?.[1] ?? "";

/** Pictures, from text or (with `sources`, files, and perhaps the `mask` of one) from pictures. They are a job under `key`: who asks again with the
 *  same key sees the rest of it, and so it outlives this page. Aborting `signal` stops the work on the server. */
export async function* drawPictures(fields, { sources, names, mask }, key, signal) {
  const asked = { ...fields, stream: true, partial_images: PREVIEWS, progress: true };
  const ask = (more) => sources.length
    ? call("v1/images/edits", { ...postForm(asked, sources, key, { names, mask }), ...more })
    : call("v1/images/generations", { ...post(asked, key), ...more });
  let answer;
  let made = 0;
  try {
    answer = await ask({ signal });
    for await (const { text, data } of events(answer)) {
      const output = data.output ?? 0;
      if (data.type.endsWith(".progress")) yield { ...data, type: "progress", output };
      if (data.type.endsWith(".partial_image")) {
        yield { type: "preview", output, blob: toBlob(data.b64_json, `image/${data.output_format}`) };
      }
      if (data.type.endsWith(".completed")) {
        const [width, height] = data.size.split("x").map(Number);
        const blob = toBlob(data.b64_json, `image/${data.output_format}`);
        const seconds = Object.values(data.timings ?? {}).reduce((sum, part) => sum + part, 0);
        const { warnings } = data;
        yield { type: "made", output, blob, seed: seedOf(text), width, height, seconds, warnings };
        made += 1;
      }
    }
  } catch (error) {
    // Whether the server has begun is not known before it answers: it is asked once more, so that there is an id.
    if (signal.aborted) await forget(answer ?? (await ask({}).catch(() => null)));
    throw error;
  }
  if (!made) throw new ApiError("The connection ended before the picture was finished.");
  forget(answer); // the page has it, and the server need not keep it
}

/** Stops and removes the job behind an answer. */
async function forget(answer) {
  const place = answer?.headers.get("location");
  answer?.body?.cancel().catch(() => {});
  if (place) await call(place.replace(/^\//, ""), { method: "DELETE" }).catch(() => {});
}

function toPicture(url) {
  const [, type, data] = /^data:(.+?);base64,(.*)$/.exec(url);
  return toBlob(data, type);
}

const urlOf = (file) => new Promise((resolve, reject) => {
  const reader = new FileReader();
  reader.onload = () => resolve(reader.result);
  reader.onerror = () => reject(reader.error);
  reader.readAsDataURL(file);
});

/** A file as a part of a message: `medium` is "picture", "sound" or "video". */
export async function partOf(file, medium) {
  const type = { picture: "image_url", sound: "audio_url", video: "video_url" }[medium];
  return { type, [type]: { url: await urlOf(file) } };
}

/** What `model` says next after `messages`, piece by piece ({ text }), the pictures that come with it
 * ({ picture }) and, in a `voice`, its samples of 16 bits ({ samples }); it `hears` videos, or only sees them. Aborting
 * `signal` stops it. */
export async function* talk(model, messages, { voice, hears }, signal) {
  const aloud = voice ? { modalities: ["text", "audio"], audio: { voice, format: "pcm16" } } : {};
  const heard = hears ? { use_audio_in_video: true } : {};
  const asked = post({ model, messages, stream: true, ...aloud, ...heard });
  let ended = false;
  for await (const { data } of events(await call("v1/chat/completions", { ...asked, signal }))) {
    const [choice] = data.choices;
    if (choice?.delta.content) yield { text: choice.delta.content };
    if (choice?.delta.audio?.data) yield { samples: toSamples(choice.delta.audio.data) };
    for (const { image_url } of choice?.delta.images ?? []) yield { picture: toPicture(image_url.url) };
    ended ||= Boolean(choice?.finish_reason);
  }
  if (!ended) throw new ApiError("The connection ended before the answer was finished.");
}

function postForm(fields, sources, key, { mask = null, names }) {
  const form = new FormData();
  const { extra_params: extra = {}, ...plain } = fields;
  for (const [field, value] of Object.entries(plain)) {
    if (Array.isArray(value)) for (const each of value) form.append(`${field}[]`, each);
    else form.append(field, String(value));
  }
  for (const [field, value] of Object.entries(extra)) {
    form.append(`extra_params[${field}]`, typeof value === "object" ? JSON.stringify(value) : String(value));
  }
  sources.forEach((source, index) => form.append(names[index], source, source.name));
  if (mask) form.append("mask", mask, mask.name);
  return { method: "POST", body: form, headers: key ? { "Idempotency-Key": key } : {} };
}

/** One sound, as it comes, from text or (with `sources`, a file) from a sound; aborting `signal` stops the work on the
 *  server. */
export async function* makeSound(fields, sources, signal) {
  const { output_format: format = "wav", ...rest } = fields;
  const asked = { ...rest, response_format: format, stream_format: "sse" };
  const body = sources.length ? postForm(asked, sources, "", { names: ["audio"] }) : post(asked);
  for await (const { text, data } of events(await call("v1/audio/generate", { ...body, signal }))) {
    if (data.type === "audio.progress") yield { ...data, type: "progress", output: 0 };
    if (data.type === "audio.delta") {
      const { audio, sample_rate: rate, channels } = data;
      yield { type: "heard", samples: toSamples(audio), rate, channels };
    }
    if (data.type === "audio.done") {
      const blob = toBlob(data.audio, SOUNDS[data.format]);
      yield { type: "made", output: 0, blob, seed: seedOf(text), width: 3, height: 1, lasts: data.seconds };
      return;
    }
  }
  throw new ApiError("The connection ended before the sound was finished.");
}

/** One video, from text or (with `sources`, files that are sent under `names`) from its first frame and perhaps its
 *  last, or from a video, of which a `mask` may say what is drawn anew; a job under `key` as above. Aborting `signal`
 *  cancels it. */
export async function* makeVideo(fields, { sources, names, mask }, key, signal) {
  const asked = () => (sources.length ? postForm(fields, sources, key, { names, mask }) : post(fields, key));
  const begin = async (more) => (await call("v1/videos", { ...asked(), ...more })).json();
  let id;
  try {
    ({ id } = await begin({ signal }));
    yield* watchVideo(id, signal);
    for (;;) {
      const { answer, text, job } = await look(id, signal);
      if (job.status === "completed") {
        yield await fetchVideo(job, seedOf(text), signal);
        return;
      }
      if (job.status === "failed") throw new ApiError(job.error.message, { code: job.error.code, status: 400 });
      await pause(answer.headers.get("openai-poll-after-ms"), signal);
    }
  } catch (error) {
    if (signal.aborted) {
      id ??= (await begin({}).catch(() => ({}))).id;
      if (id) await call(`v1/videos/${id}/cancel`, { method: "POST" }).catch(() => {});
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
