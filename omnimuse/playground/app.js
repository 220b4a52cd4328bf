// The page: one form, one stage, one gallery, at most one request in flight.

import {
  ApiError, call, drawPictures, finishVideo, hasKey, leftVideo, makeSound, makeVideo, useKey,
} from "./api.js";
import { Controls, placeSettings } from "./controls.js";
import { byId, copy, duration, h } from "./dom.js";
import { Gallery } from "./gallery.js";
import { isSound, isVideo, kindsOf, startsFrom } from "./kinds.js";
import { curl, python } from "./snippets.js";
import { Sources } from "./sources.js";
import { again, nameOf, showLive, showMany, showNothing, showRecord, showThumbs } from "./stage.js";

const EXAMPLES = {
  "omnimuse/shapes": ["a red circle", "a yellow star on black", "a green triangle above a white square"],
};

const page = { models: [], model: null, controls: null, chosen: null, run: null, gallery: new Gallery() };
const say = (text) => (byId("status").textContent = text);
const kind = () => byId("task").value;
const sources = new Sources(start, () => refresh());

// -- the model ---------------------------------------------------------------------------------------------

async function loadModels() {
  try {
    page.models = (await (await call("v1/models")).json()).data.filter((model) => kindsOf(model).length);
    byId("key-form").hidden = true;
    if (!page.models.length) return complain(new ApiError("This server has no model that makes pictures, videos or sounds."));
    clearError();
    const several = page.models.length > 1;
    byId("model").replaceChildren(...page.models.map(({ id }) => h("option", { value: id }, id)));
    byId("model").hidden = !several;
    byId("model-name").hidden = several;
    chooseModel(page.models[0].id);
    await resume();
  } catch (error) {
    complain(error);
  }
}

/** A video that was in progress when this page was left goes on here. */
async function resume() {
  const left = page.run ? null : await leftVideo();
  if (left && !page.run) draw({ kind: "video", fields: left.fields, left: left.id });
}

function chooseModel(id) {
  page.model = page.models.find((model) => model.id === id);
  byId("model").value = id;
  byId("model-name").textContent = id;
  byId("draws").textContent = draws(page.model.capabilities);
  byId("prompt").maxLength = page.model.capabilities.max_prompt;
  const kinds = kindsOf(page.model);
  byId("task").replaceChildren(...kinds.map(([value, label]) => h("option", { value }, label)));
  byId("task-field").hidden = kinds.length < 2;
  const examples = EXAMPLES[id] ?? [];
  byId("examples").replaceChildren(...examples.map((text) =>
    h("button", { type: "button", onclick: () => ((byId("prompt").value = text), byId("prompt").focus()) }, text)));
  chooseKind();
  if (page.chosen && !page.run) choose(page.chosen); // what can be done with it depends on the model
}

/** What the model says it has learned, in words; empty for one that says nothing of it. */
function draws({ draws: words = {}, only_side: side }) {
  const topics = Object.entries(words).map(([topic, known]) => `${topic}: ${known.join(", ")}`);
  return topics.length ? `It draws ${topics.join("; ")}${side ? `, at ${side} × ${side}` : ""}.` : "";
}

function chooseKind() {
  page.controls = new Controls(byId("controls"), page.model, kind(), summarize);
  sources.ask(startsFrom(kind()), page.model.capabilities.max_images, isVideo(kind()));
  refresh();
}

/** Shows what follows from the settings: their summary and, where nothing else is shown, the frame to be filled. */
function refresh() {
  summarize();
  if (!page.chosen && !page.run) choose(null);
}

const summarize = () => (byId("settings-summary").textContent = page.controls?.summary() ?? "");

/** Whether pictures that were dropped, pasted or picked in the gallery can be started from; then the form is for that. */
function start() {
  if (page.run || !canStart()) return false;
  if (!startsFrom(kind())) {
    [byId("task").value] = starting()[0];
    chooseKind();
  }
  return true;
}

const starting = () => (page.model ? kindsOf(page.model).filter(([name]) => startsFrom(name)) : []);
const canStart = () => starting().length > 0;

async function watchReady() {
  const ready = await call("readyz").then(() => true, () => false);
  byId("ready").textContent = ready ? "ready" : "not ready yet";
  byId("ready").dataset.ready = ready;
  setTimeout(watchReady, ready ? 15000 : 1500);
}

// -- drawing -----------------------------------------------------------------------------------------------

function readForm() {
  const fields = { model: page.model.id, prompt: byId("prompt").value, ...page.controls.read() };
  return { kind: kind(), fields, sources: startsFrom(kind()) ? sources.files : [] };
}

async function draw(job) {
  const outputs = job.fields.n ?? 1;
  const run = { abort: new AbortController(), started: performance.now(), parts: new Map(), first: null, outputs };
  const before = page.chosen;
  page.run = run;
  page.chosen = null;
  clearError();
  showRunning(true);
  say("Waiting for its turn.");
  const put = showLive(byId("stage"), job.fields.size ?? job.like ?? page.controls?.size ?? "1x1", outputs);
  byId("stage").scrollIntoView({ block: "nearest" });
  showGallery();
  try {
    const made = await follow(job, run, put);
    say(`Done in ${duration(made[0].seconds)}.`);
    choose(made[0]);
    if (made.length > 1) showMany(byId("stage"), made, choose);
  } catch (error) {
    if (!page.chosen) choose(before);
    if (run.abort.signal.aborted) say("Cancelled.");
    else complain(error);
  } finally {
    page.run = null;
    showRunning(false);
  }
}

async function follow(job, run, put) {
  const { signal } = run.abort;
  const { kind: how, fields, sources: from = [] } = job;
  const steps = job.left ? finishVideo(job.left, signal)
    : isVideo(how) ? makeVideo(fields, from, signal)
    : isSound(how) ? makeSound(fields, signal) : drawPictures(fields, from, signal);
  const made = [];
  for await (const event of steps) {
    if (event.type === "progress") showProgress(run, event);
    if (event.type === "preview") put(event.output, event.blob);
    if (event.type === "made") {
      const { blob, seed, width, height, lasts, warnings } = event;
      const seconds = job.left ? event.seconds : (performance.now() - run.started) / 1000;
      // Of a video that went on without this page, only what the server tells is known.
      const settings = job.left ? fields : { ...usual(fields.model), ...fields };
      const how_it_went = { lasts, seconds, warnings };
      const record = { kind: how, fields, settings, sources: from, blob, seed, width, height, ...how_it_went };
      made.push(await page.gallery.add(record));
    }
  }
  return made;
}

const usual = (id) => page.models.find((model) => model.id === id)?.capabilities.defaults;

function showRunning(running) {
  byId("draw").textContent = running ? "Cancel" : "Draw";
  byId("draw").classList.toggle("cancel", running);
  byId("progress").hidden = !running;
  byId("bar").removeAttribute("value");
  byId("step").textContent = byId("left").textContent = "";
}

function showProgress(run, { output, step, steps, stage }) {
  const before = run.parts.get(output) ?? 0;
  const drawing = stage === "denoise";
  // What comes before the drawing takes next to no time; what comes behind it is the last tenth, as on the server.
  if (!drawing && !before) return;
  if (!run.parts.size) say("Drawing.");
  run.parts.set(output, Math.max(before, drawing ? (0.9 * step) / steps : 0.9 + (0.1 * step) / steps));
  const whole = [...run.parts.values()].reduce((sum, part) => sum + part, 0) / run.outputs;
  const now = performance.now();
  run.first ??= { whole, now };
  byId("bar").value = whole;
  byId("step").textContent = drawing ? `Step ${step} of ${steps}` : `Finishing, ${step} of ${steps}`;
  // The first step is not counted: it also holds the time spent waiting and reading the prompt.
  const rate = (whole - run.first.whole) / (now - run.first.now);
  if (rate > 0) byId("left").textContent = `about ${duration(Math.ceil((1 - whole) / rate / 1000), 0)} left`;
}

function cancel() {
  // A double click on "Draw" must not cancel what it has just begun.
  if (page.run && performance.now() - page.run.started > 400) page.run.abort.abort();
}

function submit() {
  if (page.run) return cancel();
  const invalid = byId("controls").querySelector(":invalid");
  if (invalid) byId("settings").open = true;
  if (!byId("form").reportValidity()) return;
  if (!page.model) return loadModels();
  draw({ ...readForm(), like: sources.size });
}

// -- gallery and errors ------------------------------------------------------------------------------------

const actions = {
  again: (record) => {
    if (page.run) return;
    const like = `${record.width}x${record.height}`;
    draw({ kind: record.kind, fields: again(record), sources: record.sources, like });
  },
  start: (record) => {
    if (!start()) return;
    sources.use([new File([record.blob], nameOf(record), { type: record.blob.type })]);
    byId("prompt").focus();
    byId("prompt").select();
  },
  use: (record) => {
    if (page.models.some(({ id }) => id === record.fields.model)) chooseModel(record.fields.model);
    byId("task").value = record.kind;
    chooseKind();
    byId("prompt").value = record.fields.prompt;
    if (startsFrom(record.kind)) sources.use(record.sources);
    page.controls.fill(again(record));
    summarize();
    byId("prompt").focus();
  },
  remove: async (record) => {
    await page.gallery.remove(record);
    choose(page.gallery.records[0]);
  },
};

/** Puts a record on the stage; with none, an empty frame. */
function choose(record) {
  page.chosen = page.gallery.records.includes(record) ? record : null;
  if (page.chosen) showRecord(byId("stage"), record, actions, canStart());
  else showNothing(byId("stage"), page.controls?.size ?? sources.size ?? "1x1");
  showGallery();
}

function showGallery() {
  byId("gallery").hidden = !page.gallery.records.length;
  showThumbs(byId("thumbs"), page.gallery.records, page.chosen, choose);
}

function complain(error) {
  if (error.status === 401) {
    byId("key-form").hidden = false;
    byId("key").focus();
    if (!hasKey()) return say("");
  }
  const request = error.requestId ? ` (request ${error.requestId})` : "";
  byId("error").textContent = error instanceof ApiError ? error.message + request : `The page failed: ${error.message}`;
  byId("error").hidden = false;
  say("");
}

function clearError() {
  byId("error").hidden = true;
  byId("error").textContent = "";
}

// -- wiring ------------------------------------------------------------------------------------------------

byId("form").onsubmit = (event) => (event.preventDefault(), submit());
byId("draw").onclick = (event) => {
  if (page.run) event.preventDefault(), cancel();
};
byId("prompt").onkeydown = (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !page.run) event.preventDefault(), submit();
};
document.onkeydown = (event) => {
  if (event.key === "Escape") cancel();
};
byId("model").onchange = () => chooseModel(byId("model").value);
byId("task").onchange = chooseKind;
byId("key-form").onsubmit = (event) => {
  event.preventDefault();
  useKey(byId("key").value);
  byId("key").value = "";
  loadModels();
};
byId("copy-curl").onclick = (event) => page.model && copy(curl(readForm()), event.target);
byId("copy-python").onclick = (event) => page.model && copy(python(readForm()), event.target);
byId("clear").onclick = async () => {
  if (!confirm("Delete everything in the gallery?")) return;
  await page.gallery.clear();
  choose(null);
};

placeSettings();
watchReady();
await page.gallery.load();
choose(page.gallery.records[0]);
await loadModels();
