// A talk with a model that writes: what was said, and a field for what comes next. It lives as long as the page.

import { partOf, talk } from "./api.js";
import { byId, h } from "./dom.js";
import { mediumOf } from "./kinds.js";
import { Player } from "./player.js";
import { wave } from "./wave.js";

/** Shows the talk with `model` in place of what draws; `fail` says what went wrong. */
export function openTalk(model, fail) {
  const said = [];
  let abort = null;
  let hears = false; // from the first video on that is to be heard
  for (const id of ["form", "more"]) byId(id).hidden = true;
  document.querySelector(".results").hidden = true;
  byId("talk").hidden = false;
  byId("say").maxLength = model.capabilities.max_prompt;
  byId("say").focus();
  const voices = model.capabilities.choices.voice ?? [];
  byId("voice").append(...voices.map((voice) => h("option", { value: voice }, voice)));
  byId("aloud").hidden = !voices.length;
  openShow(model);

  async function answer(asked, files) {
    const before = said.length;
    show("user", asked).append(...files.map(view));
    const line = show("assistant", "");
    const filmed = files.some((file) => mediumOf(file) === "video");
    const how = { voice: byId("voice").value, hears: hears || (filmed && byId("hears").checked) };
    abort = new AbortController();
    running(true);
    let content = "";
    const sounds = [], live = new Player(), rate = model.capabilities.sample_rate;
    abort.signal.addEventListener("abort", () => live.stop());
    try {
      const parts = await Promise.all(files.map((file) => partOf(file, mediumOf(file))));
      said.push({ role: "user", content: parts.length ? [...parts, { type: "text", text: asked }] : asked });
      for await (const { text = "", picture, samples } of talk(model.id, said, how, abort.signal)) {
        if (text) line.textContent = content += text;
        if (samples) sounds.push(samples), live.play(samples, rate);
        if (picture) line.append(h("img", { src: URL.createObjectURL(picture), alt: content }));
        line.scrollIntoView({ block: "nearest" });
      }
    } catch (error) {
      if (!abort.signal.aborted) fail(error);
    } finally {
      live.end();
      if (content && sounds.length) line.append(player(wave(sounds, rate), content));
      if (content) said.push({ role: "assistant", content }), ({ hears } = how);
      else said.splice(before), forget(line, asked, files);
      abort = null;
      running(false);
    }
  }

  /** Of a question without an answer nothing stays but what was said and shown, in the fields. */
  function forget(line, asked, files) {
    byId("say").value ||= asked;
    if (!byId("show").files.length) choose(files);
    line.previousSibling.remove();
    line.remove();
  }

  byId("say-form").onsubmit = (event) => {
    event.preventDefault();
    if (abort) return abort.abort();
    const text = byId("say").value.trim();
    if (!text) return;
    const files = [...byId("show").files];
    byId("say").value = "";
    choose([]);
    fail(null);
    answer(text, files);
  };
  byId("say").onkeydown = (event) => {
    if (event.key === "Enter" && !event.shiftKey) event.preventDefault(), !abort && byId("say-form").requestSubmit();
    if (event.key === "Escape") abort?.abort();
  };
  byId("anew").onclick = () => {
    abort?.abort();
    fail(null);
    said.length = 0;
    hears = false;
    for (const shown of byId("said").querySelectorAll("img, audio, video")) URL.revokeObjectURL(shown.src);
    byId("said").replaceChildren();
  };
}

const player = (sound, said) =>
  h("audio", { controls: true, src: URL.createObjectURL(sound), ariaLabel: said });

const ACCEPT = { image: "image/png,image/jpeg,image/webp", audio: "audio/*", video: "video/*,.mkv,.ts" };
const NAMES = { image: "pictures", audio: "sounds", video: "videos" };

/** The field for what is shown with the next thing that is said, of the kinds that the model takes. */
function openShow({ capabilities: { takes, extra } }) {
  const kinds = Object.keys(ACCEPT).filter((kind) => takes.includes(kind));
  byId("show-field").hidden = !kinds.length;
  byId("show-label").textContent = `Show ${kinds.map((kind) => NAMES[kind]).join(", ").replace(/, (\w+)$/, " or $1")}`;
  byId("show").accept = kinds.map((kind) => ACCEPT[kind]).join(",");
  byId("show").onchange = () => {
    const files = [...byId("show").files];
    byId("showing").replaceChildren(...files.map(view));
    byId("hear").hidden = !("use_audio_in_video" in extra) || !files.some((file) => mediumOf(file) === "video");
  };
}

function choose(files) {
  const transfer = new DataTransfer();
  for (const file of files) transfer.items.add(file);
  byId("show").files = transfer.files;
  byId("show").onchange();
}

function view(file) {
  const src = URL.createObjectURL(file);
  const medium = mediumOf(file);
  if (medium === "picture") return h("img", { src, alt: file.name });
  return h(medium === "sound" ? "audio" : "video", { src, controls: true, title: file.name });
}

function show(role, text) {
  const line = h("li", { className: role }, text);
  byId("said").append(line);
  line.scrollIntoView({ block: "nearest" });
  return line;
}

const running = (yes) => (byId("speak").textContent = yes ? "Stop" : "Send");
