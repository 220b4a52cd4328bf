// A talk with a model that writes: what was said, and a field for what comes next. It lives as long as the page.

import { talk } from "./api.js";
import { byId, h } from "./dom.js";
import { wave } from "./wave.js";

/** Shows the talk with `model` in place of what draws; `fail` says what went wrong. */
export function openTalk(model, fail) {
  const said = [];
  let abort = null;
  for (const id of ["form", "more"]) byId(id).hidden = true;
  document.querySelector(".results").hidden = true;
  byId("talk").hidden = false;
  byId("say").maxLength = model.capabilities.max_prompt;
  byId("say").focus();
  const voices = model.capabilities.choices.voice ?? [];
  byId("voice").append(...voices.map((voice) => h("option", { value: voice }, voice)));
  byId("aloud").hidden = !voices.length;

  async function answer(asked) {
    said.push({ role: "user", content: asked });
    show("user", asked);
    const line = show("assistant", "");
    abort = new AbortController();
    running(true);
    let content = "";
    const sounds = [];
    try {
      for await (const { text = "", picture, sound } of talk(model.id, said, byId("voice").value, abort.signal)) {
        if (text) line.textContent = content += text;
        if (sound) sounds.push(sound);
        if (picture) line.append(h("img", { src: URL.createObjectURL(picture), alt: content }));
        line.scrollIntoView({ block: "nearest" });
      }
    } catch (error) {
      if (!abort.signal.aborted) fail(error);
    } finally {
      if (content && sounds.length) line.append(player(wave(sounds, model.capabilities.sample_rate), content));
      if (content) said.push({ role: "assistant", content });
      else forget(line);
      abort = null;
      running(false);
    }
  }

  /** Of a question without an answer nothing stays but its text, in the field. */
  function forget(line) {
    byId("say").value ||= said.pop().content;
    line.previousSibling.remove();
    line.remove();
  }

  byId("say-form").onsubmit = (event) => {
    event.preventDefault();
    if (abort) return abort.abort();
    const text = byId("say").value.trim();
    if (!text) return;
    byId("say").value = "";
    fail(null);
    answer(text);
  };
  byId("say").onkeydown = (event) => {
    if (event.key === "Enter" && !event.shiftKey) event.preventDefault(), !abort && byId("say-form").requestSubmit();
    if (event.key === "Escape") abort?.abort();
  };
  byId("anew").onclick = () => {
    abort?.abort();
    said.length = 0;
    for (const shown of byId("said").querySelectorAll("img, audio")) URL.revokeObjectURL(shown.src);
    byId("said").replaceChildren();
  };
}

const player = (sound, said) =>
  h("audio", { controls: true, src: URL.createObjectURL(sound), ariaLabel: said });

function show(role, text) {
  const line = h("li", { className: role }, text);
  byId("said").append(line);
  line.scrollIntoView({ block: "nearest" });
  return line;
}

const running = (yes) => (byId("speak").textContent = yes ? "Stop" : "Send");
