// The page: one form, one stage, one gallery; one request in flight, and others that wait for it.

import { ApiError, call, drawPictures, hasKey, makeSound, makeVideo, useKey } from "./api.js";
import { Controls, placeSettings } from "./controls.js";
import { Database } from "./database.js";
import { byId, copy, duration, h } from "./dom.js";
import { Gallery } from "./gallery.js";
import { asForm, settingsInside } from "./inside.js";
import { Jobs, keepForm, newKey, readForm as keptForm } from "./keeping.js";
import { besides, fieldsOf, isSound, isVideo, kindsOf, makes, mediumOf, startsFrom, takes, wordsOf } from "./kinds.js";
import { Player } from "./player.js";
import { curl, python } from "./snippets.js";
import { Sources } from "./sources.js";
import { again, another, nameOf, showLive, showMany, showNothing, showRecord, showThumbs } from "./stage.js";
import { openTalk } from "./talk.js";

const EXAMPLES = {
  "omnimuse/shapes": ["a red circle", "a yellow star on black", "a green triangle above a white square"],
  "omnimuse/shapes-film": ["a red circle moves to the right", "a blue ring grows", "a green cross falls on a black background"],
};

const database = new Database();
const jobs = new Jobs(database);
const gallery = new Gallery(database);
const page = { models: [], model: null, controls: null, chosen: null, run: null, leaving: false, gallery };
const say = (text) => (byId("status").textContent = text);
const kind = () => byId("task").value;
const prompt = () => (byId("prompt-field").hidden ? "" : byId("prompt").value);
const sources = new Sources(start, () => refresh(), restoreFrom);

// -- the model ---------------------------------------------------------------------------------------------

async function loadModels() {
  try {
    const found = (await (await call("v1/models")).json()).data;
    page.models = found.filter((model) => kindsOf(model).length);
    byId("key-form").hidden = true;
    if (writes(found[0])) return openWriter(found[0]);
    if (!page.models.length) return complain(new ApiError("This server has no model that makes anything."));
    clearError();
    const several = page.models.length > 1;
    byId("model").replaceChildren(...page.models.map(({ id }) => h("option", { value: id }, id)));
    byId("model").hidden = !several;
    byId("model-name").hidden = several;
    const kept = page.controls ? null : keptForm();
    chooseModel((page.models.find(({ id }) => id === kept?.model) ?? page.models[0]).id);
    if (kept) fillForm(kept);
    work();
  } catch (error) {
    complain(error);
  }
}

const writes = ({ capabilities: can }) => can.medium === "text";

function openWriter(model) {
  clearError();
  byId("model-name").textContent = model.id;
  openTalk(model, (error) => (error ? complain(error) : clearError()));
}

/** Shows a form as it was: {kind, prompt, fields}. */
function fillForm({ kind: wanted, prompt, fields }) {
  if ([...byId("task").options].some(({ value }) => value === wanted)) byId("task").value = wanted;
  chooseKind();
  byId("prompt").value = prompt;
  page.controls.fill(fields);
  clearError();
  refresh();
}

function keep() {
  if (!page.model) return;
  keepForm({ model: page.model.id, kind: kind(), prompt: byId("prompt").value, fields: page.controls.read() });
}

function chooseModel(id) {
  page.model = page.models.find((model) => model.id === id);
  byId("model").value = id;
  byId("model-name").textContent = id;
  byId("draws").textContent = draws(page.model.capabilities);
  const longest = page.model.capabilities.max_prompt; // 0: it reads no text
  byId("prompt").maxLength = longest;
  byId("prompt").required = longest > 0;
  byId("prompt-field").hidden = !longest;
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

/** Puts the words for what is made on the form. */
function showWords() {
  const { make, makes, prompt: label, wish } = wordsOf(kind());
  byId("draw").textContent = page.run ? "Cancel" : make;
  byId("next").textContent = `${make} next`;
  byId("makes").textContent = makes;
  byId("prompt-label").textContent = label;
  byId("prompt").placeholder = wish;
}

function chooseKind() {
  showWords();
  page.controls = new Controls(byId("controls"), page.model, kind(), summarize);
  const { max_images, max_sounds = 0, max_videos = 0, masks = false, masks_videos = false, fills = false } =
    page.model.capabilities;
  const medium = takes(kind()), also = besides(kind(), page.model.capabilities);
  const most = ({ sound: max_sounds, video: max_videos }[medium] ?? max_images) + (also ? max_images : 0);
  if (medium) sources.listen(medium, also, wordsOf(kind()).from);
  sources.ask(Boolean(medium), most, {
    frames: kind() === "film", masks: medium === "video" ? masks_videos : medium === "picture" && masks, fills });
  refresh();
}

/** Shows what follows from the settings: their summary and, where nothing else is shown, the frame to be filled. */
function refresh() {
  summarize();
  keep();
  if (!page.chosen && !page.run) choose(null);
}

const summarize = () => (byId("settings-summary").textContent = page.controls?.summary() ?? "");

/** Whether a file that was dropped told how it was drawn; then the form says the same. */
async function restoreFrom(file) {
  const said = await settingsInside(file);
  if (!said || !page.model || !kindsOf(page.model).some(([name]) => !isVideo(name) && !isSound(name))) return false;
  const { images, ...form } = asForm(said);
  fillForm({ ...form, kind: images ? "edit" : "image" });
  const lacking = page.controls.lacking(form.fields);
  const missing = (images ? " Choose the picture that it was drawn from." : "")
    + (lacking.length ? ` Here is no field for the adapters that it was drawn with: ${lacking.join(", ")}.` : "");
  const from = canStart() && (() => start([file]) && sources.add([file]));
  offer(`The settings of ${file.name}.${missing}`, from ? "Start from it instead" : "", from);
  byId("prompt").focus();
  return true;
}

/** Whether files that were dropped, pasted or picked in the gallery can be started from; the form is for that then. */
function start(files) {
  const medium = mediumOf(files[0]);
  const taken = page.model ? [takes(kind()), besides(kind(), page.model.capabilities)] : [];
  if (files.every((file) => taken.includes(mediumOf(file)))) return true;
  if (!canStart(medium) || files.some((file) => mediumOf(file) !== medium)) return false;
  if (takes(kind()) !== medium) {
    [byId("task").value] = starting(medium)[0];
    chooseKind();
  }
  return true;
}

/** What can be made from a `medium`: "picture", "video" or "sound". */
const starting = (medium) => (page.model ? kindsOf(page.model).filter(([name]) => takes(name) === medium) : []);
const canStart = (medium = "picture") => starting(medium).length > 0;

async function watchReady() {
  const ready = await call("readyz").then(() => true, () => false);
  byId("ready").textContent = ready ? "ready" : "not ready yet";
  byId("ready").dataset.ready = ready;
  const load = ready ? await call("load").then((answer) => answer.json(), () => ({})) : {};
  byId("ready").title = load.company ? together(load.company) : "";
  setTimeout(watchReady, ready ? 15000 : 1500);
}

/** What the server has measured of requests that are made together, in words. */
const together = (company) => company.map(({ tokens, states, share }) =>
  `${states} at once, of ${tokens} tokens each: ${share.toFixed(2)} of the time of one after the other`).join("\n")
  || "Nothing was made together yet: what that gains is measured when it is";

// -- making ------------------------------------------------------------------------------------------------

function readForm() {
  const fields = { model: page.model.id, prompt: prompt(), ...page.controls.read() };
  const from = startsFrom(kind()) ? { sources: sources.files, mask: sources.mask } : { sources: [], mask: null };
  return { kind: kind(), fields, ...from };
}

/** Puts a job behind those that wait; the first one runs. */
async function enqueue(job) {
  await jobs.add({ key: newKey(), sources: [], ...job });
  showQueue();
  work();
}

async function work() {
  if (page.run) return;
  let fine = true;
  while (fine && jobs.list.length) fine = await draw(jobs.list[0]);
  byId("go-on").hidden = !jobs.list.length;
}

/** Sees one job to its end; false where the server takes nothing for now, so that others should wait, too. */
async function draw(job) {
  const outputs = job.fields.n ?? 1;
  const abort = new AbortController();
  const run = { job, abort, started: performance.now(), parts: new Map(), first: null, outputs };
  const before = page.chosen;
  page.run = run;
  page.chosen = null;
  clearError();
  offer("");
  showRunning(true);
  showQueue();
  say("Waiting for its turn.");
  const put = showLive(byId("stage"), job.fields.size ?? job.like ?? page.controls?.size ?? "1x1", outputs);
  if (!job.left) byId("stage").scrollIntoView({ block: "nearest" });
  showGallery();
  let fine = true;
  try {
    const made = await follow(job, run, put);
    say(`Done in ${duration(made[0].seconds)}.`);
    choose(made[0]);
    if (made.length > 1) showMany(byId("stage"), made, choose);
  } catch (error) {
    if (page.leaving) return false;
    if (!page.chosen) choose(before);
    if (run.abort.signal.aborted) say("Cancelled.");
    else complain(error);
    fine = run.abort.signal.aborted || ![0, 401, 429, 503].includes(error.status);
  } finally {
    page.run = null;
    if (!page.leaving) await jobs.remove(job);
    showRunning(false);
    showQueue();
  }
  return fine;
}

async function follow(job, run, put) {
  const { signal } = run.abort;
  const { kind: how, fields, sources: from = [], mask = null, key } = job;
  const given = { sources: from, names: fieldsOf(how, from), mask };
  // A page that was left between keeping what was made and forgetting the job has it already.
  const had = page.gallery.records.filter((record) => record.job === key);
  if (had.length === run.outputs) return had;
  for (const record of had) await page.gallery.remove(record);
  const steps = isVideo(how) ? makeVideo(fields, given, key, signal)
    : isSound(how) ? makeSound(fields, from, signal) : drawPictures(fields, given, key, signal);
  const made = [], player = new Player();
  signal.addEventListener("abort", () => player.stop());
  try {
    for await (const event of steps) {
      if (event.type === "progress") showProgress(run, event);
      if (event.type === "heard") player.play(event.samples, event.rate, event.channels);
      if (event.type === "preview") put(event.output, event.blob);
      if (event.type === "made") {
        const { blob, seed, width, height, lasts, warnings } = event;
        const seconds = (job.left && event.seconds) || (performance.now() - run.started) / 1000;
        const settings = { ...usual(fields.model), ...fields };
        const asked = { job: key, kind: how, fields, settings, sources: from, mask };
        made.push(await page.gallery.add({ ...asked, blob, seed, width, height, lasts, seconds, warnings }));
      }
    }
  } finally {
    player.end();
  }
  return made;
}

const usual = (id) => page.models.find((model) => model.id === id)?.capabilities.defaults;

function showRunning(running) {
  showWords();
  byId("draw").classList.toggle("cancel", running);
  byId("draw").type = running ? "button" : "submit"; // Enter in a field must not cancel
  byId("next").hidden = !running;
  byId("progress").hidden = !running;
  byId("bar").removeAttribute("value");
  byId("step").textContent = byId("left").textContent = "";
}

/** What waits behind the job that runs. */
function showQueue() {
  const waiting = jobs.list.filter((job) => job !== page.run?.job);
  byId("queue").hidden = !waiting.length;
  byId("go-on").hidden = Boolean(page.run) || !waiting.length;
  byId("waiting").replaceChildren(...waiting.map((job) => {
    const remove = h("button", { type: "button", className: "link" }, "Remove");
    remove.setAttribute("aria-label", `Remove: ${job.fields.prompt}`);
    remove.onclick = async () => (await jobs.remove(job), showQueue());
    return h("li", {}, h("span", { title: job.fields.prompt }, job.fields.prompt), remove);
  }));
}

function showProgress(run, { output, step, steps, stage }) {
  const before = run.parts.get(output) ?? 0;
  const drawing = stage === "denoise";
  if (stage === "talk") say(wordsOf(run.job.kind).making); // nobody knows how many steps it takes
  // What comes before the drawing takes next to no time; what comes behind it is the last tenth, as on the server.
  if (!drawing && !before) return;
  if (!run.parts.size) say(wordsOf(run.job.kind).making);
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
  // A double click on the button must not cancel what it has just begun.
  if (page.run && (page.run.job.left || performance.now() - page.run.started > 400)) page.run.abort.abort();
}

function submit() {
  const invalid = byId("controls").querySelector(":invalid");
  for (let at = invalid; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
  if (!byId("form").reportValidity()) return;
  if (!page.model) return loadModels();
  enqueue({ ...readForm(), like: sources.size });
}

// -- gallery and errors ------------------------------------------------------------------------------------

const actions = {
  again: (record) => repeat(record, again(record)),
  another: (record) => repeat(record, another(record)),
  start: (record) => {
    const file = new File([record.blob], nameOf(record), { type: record.blob.type });
    if (!start([file])) return;
    sources.add([file]);
    byId("prompt").focus();
    byId("prompt").select();
  },
  use: (record) => {
    if (page.models.some(({ id }) => id === record.fields.model)) chooseModel(record.fields.model);
    fillForm({ kind: record.kind, prompt: record.fields.prompt, fields: again(record) });
    if (startsFrom(record.kind)) sources.use(record.sources, record.mask);
    byId("prompt").focus();
  },
  remove: async (record) => {
    await page.gallery.remove(record);
    choose(page.gallery.records[0]);
    offer("Deleted.", "Undo", async () => (await page.gallery.restore([record]), choose(record)));
  },
};

const repeat = ({ kind: how, width, height, sources: from = [], mask = null }, fields) =>
  enqueue({ kind: how, fields, sources: from, mask, like: `${width}x${height}` });

/** Says something that can be acted upon; an empty text takes it away. */
function offer(text, label = "", act = null) {
  byId("offer").hidden = !text;
  byId("offer").replaceChildren(text);
  if (!act) return;
  const button = h("button", { type: "button", className: "link" }, label);
  button.onclick = () => (offer(""), act());
  byId("offer").append(" ", button);
}

/** Puts a record on the stage; with none, an empty frame. */
function choose(record) {
  page.chosen = page.gallery.records.includes(record) ? record : null;
  if (page.chosen) showRecord(byId("stage"), record, actions, canStart(makes(record.kind)));
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

document.addEventListener("invalid", clearError, true); // what a form refuses is told at its field
byId("form").onsubmit = (event) => (event.preventDefault(), submit());
byId("draw").onclick = (event) => {
  if (page.run) event.preventDefault(), cancel();
};
byId("prompt").onkeydown = (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) event.preventDefault(), submit();
};
document.onkeydown = (event) => {
  if (event.key === "Escape" && !document.querySelector("dialog[open]")) cancel();
};
byId("next").onclick = submit;
byId("go-on").onclick = work;
byId("composer").addEventListener("input", keep);
addEventListener("pagehide", () => (page.leaving = true));
addEventListener("pageshow", () => (page.leaving = false));
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
  const gone = page.gallery.records;
  await page.gallery.clear();
  choose(null);
  offer(`Deleted ${gone.length === 1 ? "one" : `all ${gone.length}`}.`, "Undo",
    async () => (await page.gallery.restore(gone), choose(gone[0])));
};

placeSettings();
watchReady();
await database.open();
await page.gallery.load();
await jobs.load();
choose(page.gallery.records[0]);
await loadModels();
