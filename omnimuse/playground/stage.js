// The large view: frames that fill while drawing, or one finished record with its settings and actions.

import { copy, duration, h } from "./dom.js";
import { isSound, isVideo, makes, startsFrom } from "./kinds.js";
import { curl, python } from "./snippets.js";
import { zoom } from "./zoom.js";

/** The same record as a request that gives another picture. */
export function another({ fields }) {
  const { n, seed, ...rest } = fields;
  return rest;
}

/** The same record as a request that gives the same picture again. */
export function again({ fields, seed }) {
  const { n, ...rest } = fields;
  return seed ? { ...rest, seed } : rest;
}

const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
const button = (className, onclick, ...inside) => h("button", { type: "button", className, onclick }, ...inside);

/** What the file of a record is called. */
export const nameOf = ({ seed, id, blob }) =>
  `omnimuse-${seed || id}.${blob.type.split("/")[1].replace(/^jpeg$/, "jpg").replace(/^mpeg$/, "mp3")}`;

function view({ kind, url, fields, width, height }, large) {
  if (isSound(kind)) {
    return large ? h("audio", { src: url, controls: true, ariaLabel: fields.prompt }) : h("span", { className: "sound", ariaHidden: "true" }, "♪");
  }
  if (!isVideo(kind)) return h("img", { src: url, alt: fields.prompt, width, height });
  const how = { controls: large, loop: true, muted: true, autoplay: large && !calm() };
  return h("video", { src: url, ariaLabel: fields.prompt, ...how });
}

function large(record) {
  const picture = view(record, true);
  const opens = button("zoomable", () => zoom(picture), picture);
  opens.setAttribute("aria-label", "Enlarge the picture");
  return opens;
}

function frame(size, ...children) {
  const [width, height] = size.split("x").map(Number);
  const box = h("div", { className: "frame" }, ...children);
  box.style.setProperty("--ratio", width / height);
  return box;
}

// As many columns as rows, or one more.
function grid(frames) {
  const box = h("div", { className: "many" }, ...frames);
  box.style.setProperty("--columns", Math.ceil(Math.sqrt(frames.length)));
  return box;
}

// Focus that was inside stays inside: whoever works by keyboard is not thrown back to the top of the page.
function fill(stage, ...nodes) {
  const inside = stage.contains(document.activeElement);
  stage.replaceChildren(...nodes);
  if (inside) stage.focus();
}

/** What the stage shows before anything was made. */
export function showNothing(stage, size) {
  fill(stage, frame(size, h("p", {}, "What you make appears here.")));
}

/** Empty frames for `outputs` unfinished pictures; returns `put(output, blob)`, which shows a preview. */
export function showLive(stage, size, outputs) {
  const frames = Array.from({ length: outputs }, () => frame(size));
  frames.forEach((box) => box.classList.add("live"));
  fill(stage, ...(outputs > 1 ? [grid(frames)] : frames));
  return (output, blob) => {
    const url = URL.createObjectURL(blob);
    const picture = h("img", { alt: "Preview of what is being made", className: "preview" });
    // The old preview stays until the new one is there, so that nothing flickers.
    picture.onload = () => (URL.revokeObjectURL(url), frames[output % outputs].replaceChildren(picture));
    picture.src = url;
  };
}

/** Several new records side by side; `choose` is called with the one a person picks. */
export function showMany(stage, records, choose) {
  const frames = records.map((record) => {
    const size = `${record.width}x${record.height}`;
    const shown = button("", () => choose(record), frame(size, view(record, false)));
    shown.setAttribute("aria-label", `Show the picture of seed ${record.seed}`);
    return shown;
  });
  fill(stage, grid(frames));
}

/** An adapter and how strongly it is worn, in words. */
const worn = (text) => text.replace(/:([^:]*)$/, " at $1");

/** What a record was made with, the model's defaults included, in a few words each. */
function facts(record) {
  const { kind, settings, seed, width, height, lasts, seconds } = record;
  const { num_inference_steps: steps, guidance_scale: guidance, num_frames: frames } = settings;
  return [
    isSound(kind) ? `${lasts} s` : `${width} × ${height}`,
    frames > 1 && `${frames} frames`,
    record.mask && "a part drawn anew",
    settings.pad && `beyond the edges by ${settings.pad}`,
    settings.strength && startsFrom(kind) && `strength ${settings.strength}`,
    steps && `${steps} steps`,
    (guidance ?? null) !== null && `guidance ${guidance}`,
    seed && `seed ${seed}`,
    ...(settings.lora ?? []).map(worn),
    settings.cache && settings.cache !== "none" && `step cache ${settings.cache}`,
    settings.negative_prompt && `negative prompt ${settings.negative_prompt}`,
    ...Object.entries(settings.extra_params ?? {}).map(([name, value]) => `${name.replaceAll("_", " ")} ${value}`),
    settings.model,
    `made in ${duration(seconds)}`,
  ].filter(Boolean);
}

/** One finished record; `act` has `again`, `another`, `use`, `start` and `remove`. `starts`: such as it can be started
 *  from. */
export function showRecord(stage, record, act, starts) {
  const { fields, width, height, kind } = record;
  const request = { kind, fields: again(record), sources: record.sources, mask: record.mask };
  fill(stage,
    h("figure", {},
      frame(`${width}x${height}`, isVideo(kind) || isSound(kind) ? view(record, true) : large(record)),
      h("figcaption", {}, h("p", { className: "said" }, fields.prompt),
        h("p", { className: "hint" }, facts(record).join(" · ")),
        ...(record.warnings ?? []).map((told) => h("p", { className: "hint warning" }, told)))),
    h("div", { className: "actions" },
      h("div", { className: "together" },
        button("quiet", () => act.another(record), "Another one"),
        button("quiet", () => act.again(record), "Run again"),
        button("quiet", () => act.use(record), "Use settings"),
        starts ? button("quiet", () => act.start(record), `Use this ${makes(kind)}`) : null),
      h("div", { className: "together links" },
        h("a", { className: "link", href: record.url, download: nameOf(record) }, "Download"),
        button("link", (event) => copy(curl(request), event.target), "Copy curl"),
        button("link", (event) => copy(python(request), event.target), "Copy Python"),
        button("link", () => act.remove(record), "Delete"))));
}

/** The gallery's small pictures; `chosen` is marked. */
export function showThumbs(list, records, chosen, choose) {
  const inside = list.contains(document.activeElement);
  list.replaceChildren(...records.map((record) => {
    const thumb = button("", () => choose(record), view(record, false));
    thumb.title = record.fields.prompt;
    thumb.setAttribute("aria-label", `Show: ${record.fields.prompt}`);
    thumb.setAttribute("aria-pressed", String(record === chosen));
    return h("li", {}, thumb);
  }));
  if (inside) list.querySelector("[aria-pressed=true]")?.focus();
}
