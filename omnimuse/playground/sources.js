// The pictures, the video or the sound to start from: chosen, dropped, pasted, or taken from the gallery. The file input
// holds them, so the browser itself says when one is missing. Over one picture there may be a brush, for a mask.

import { Brush } from "./brush.js";
import { byId, h } from "./dom.js";
import { mediumOf } from "./kinds.js";
import { canRecord, record } from "./recorder.js";

const PICTURES = ["image/png", "image/jpeg", "image/webp"];
const ACCEPT = { picture: PICTURES.join(","), video: "video/*,.mkv,.ts", sound: "audio/*" };

/** `accept(files)` is asked before dropped or pasted pictures are used; `onchange` is told when others are chosen.
 *  `restore(file)` is asked first about a file that is dropped anywhere but on the field: does it tell its settings? */
export class Sources {
  constructor(accept, onchange, restore) {
    this.accept = accept;
    this.restore = restore;
    this.onchange = onchange;
    this.most = 1;
    this.masks = this.fills = false;
    this.brush = null;
    this.size = null;
    this.medium = "picture";
    this.also = "";
    this.input = byId("sources");
    this.input.onchange = () => this.show();
    record(byId("record"), (file) => this.use([file]), (text) => (byId("record-hint").textContent = text));
    document.ondragover = (event) => this.over(event, true);
    document.ondragleave = (event) => this.over(event, false);
    document.ondrop = (event) => (this.over(event, false), this.take(event, event.dataTransfer));
    document.onpaste = (event) => this.take(event, event.clipboardData);
  }

  get files() {
    return [...this.input.files];
  }

  /** What files are to be: "picture", "video" or "sound", and what some may be `also`; if others are there, all go.
   *  `label` says what they are for. */
  listen(medium, also = "", label = `Start from a ${medium}`) {
    [this.medium, this.also] = [medium, also];
    byId("sources-label").textContent = label;
    byId("record").hidden = medium !== "sound" || !canRecord();
    byId("also-hint").hidden = !also;
    this.input.accept = [medium, also].filter(Boolean).map((each) => ACCEPT[each]).join(",");
    if (this.files.some((file) => ![medium, also].includes(this.of(file)))) this.use([]);
  }

  /** What a file is taken for: what is asked for, where nobody knows its type. */
  of(file) {
    return file.type ? mediumOf(file) : this.medium;
  }

  /** Which part of the picture is drawn anew, as a file; null where all of it is. */
  get mask() {
    return this.brush?.file ?? null;
  }

  /** Whether they are asked for now, how many the model takes, whether they are frames of a video, and whether a part of
   *  one can be drawn anew, or nothing else. */
  ask(wanted, most = 1, { frames = false, masks = false, fills = false } = {}) {
    byId("sources-field").hidden = !wanted;
    byId("last-hint").hidden = !(frames && most > 1);
    this.input.required = wanted;
    this.input.multiple = most > 1;
    this.most = most;
    const changed = this.masks !== (wanted && masks) || this.fills !== fills;
    this.fills = fills;
    this.masks = wanted && masks;
    if (changed) this.show();
  }

  /** Starts from `files`, with a mask from here if there is one. */
  async use(files, mask = null) {
    const transfer = new DataTransfer();
    for (const file of files.slice(0, this.most)) transfer.items.add(file);
    this.input.files = transfer.files;
    await this.show();
    if (mask && this.brush) await this.brush.restore(mask);
  }

  async show() {
    for (const shown of byId("chosen").querySelectorAll("img, video, audio")) URL.revokeObjectURL(shown.src);
    this.brush = null;
    const shown = this.files.map((file) => {
      const src = URL.createObjectURL(file);
      if (this.of(file) === "sound") return h("audio", { src, controls: true, title: file.name });
      if (this.of(file) === "video") return h("video", { src, controls: true, muted: true, title: file.name });
      return h("img", { src, alt: file.name });
    });
    byId("chosen").replaceChildren(...shown);
    const pictures = shown.filter((node) => node.tagName === "IMG");
    const films = shown.filter((node) => node.tagName === "VIDEO");
    // What the browser cannot read, the server may refuse with a reason.
    await pictures[0]?.decode().catch(() => {});
    if (films.length) await begun(films[0]);
    if (!shown.every((node) => node.isConnected)) return; // others were chosen meanwhile
    const under = this.medium === "video" ? films : pictures;
    const [width, height] = sizeOf(under[0] ?? shown[0]);
    this.size = width ? `${width}x${height}` : null;
    if (this.masks && under.length === 1 && this.size) {
      this.brush = new Brush(under[0], [width, height], this.onchange, this.fills);
      byId("chosen").replaceChildren(this.brush.box, ...shown.filter((node) => node !== under[0]));
    }
    this.onchange();
  }

  over(event, inside) {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    byId("drop").classList.toggle("over", inside);
  }

  take(event, data) {
    const files = [...(data?.files ?? [])].filter((file) => PICTURES.includes(file.type) || mediumOf(file) !== "picture");
    if (event.type === "drop" && data?.files.length) event.preventDefault();
    if (!files.length) return;
    const onField = byId("drop").contains(event.target);
    if (event.type === "drop" && !onField) this.offer(files);
    else if (this.accept(files)) event.preventDefault(), this.add(files);
  }

  /** Starts from `files`; those that may come besides join what is there. */
  add(files) {
    const beside = this.also && files.every((file) => this.of(file) === this.also);
    return this.use(beside ? [...this.files, ...files] : files);
  }

  async offer(files) {
    const told = mediumOf(files[0]) === "picture" && (await this.restore(files[0]));
    if (!told && this.accept(files)) this.add(files);
  }
}

/** Of a picture or a video that is shown; nothing of a sound. */
const sizeOf = (node) => [node?.naturalWidth ?? node?.videoWidth, node?.naturalHeight ?? node?.videoHeight];

/** Resolves once a video's size is known, or that it cannot be. */
const begun = (video) => new Promise((resolve) => {
  video.onloadedmetadata = video.onerror = resolve;
});
