// The pictures to start from: chosen, dropped, pasted, or taken from the gallery. The file input holds them, so the
// browser itself says when one is missing.

import { byId, h } from "./dom.js";

const KINDS = ["image/png", "image/jpeg", "image/webp"];

/** `accept(files)` is asked before dropped or pasted pictures are used; `onchange` is told when others are chosen.
 *  `restore(file)` is asked first about a file that is dropped anywhere but on the field: does it tell its settings? */
export class Sources {
  constructor(accept, onchange, restore) {
    this.accept = accept;
    this.restore = restore;
    this.onchange = onchange;
    this.most = 1;
    this.size = null;
    this.input = byId("sources");
    this.input.onchange = () => this.show();
    document.ondragover = (event) => this.over(event, true);
    document.ondragleave = (event) => this.over(event, false);
    document.ondrop = (event) => (this.over(event, false), this.take(event, event.dataTransfer));
    document.onpaste = (event) => this.take(event, event.clipboardData);
  }

  get files() {
    return [...this.input.files];
  }

  /** Whether they are asked for now, how many the model takes, and whether they are frames of a video. */
  ask(wanted, most = 1, frames = false) {
    byId("sources-field").hidden = !wanted;
    byId("last-hint").hidden = !(frames && most > 1);
    this.input.required = wanted;
    this.input.multiple = most > 1;
    this.most = most;
  }

  use(files) {
    const transfer = new DataTransfer();
    for (const file of files.slice(0, this.most)) transfer.items.add(file);
    this.input.files = transfer.files;
    return this.show();
  }

  async show() {
    for (const picture of byId("chosen").children) URL.revokeObjectURL(picture.src);
    const pictures = this.files.map((file) => h("img", { src: URL.createObjectURL(file), alt: file.name }));
    byId("chosen").replaceChildren(...pictures);
    // What the browser cannot read, the server may refuse with a reason.
    await pictures[0]?.decode().catch(() => {});
    this.size = pictures[0]?.naturalWidth ? `${pictures[0].naturalWidth}x${pictures[0].naturalHeight}` : null;
    this.onchange();
  }

  over(event, inside) {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    byId("drop").classList.toggle("over", inside);
  }

  take(event, data) {
    const files = [...(data?.files ?? [])].filter(({ type }) => KINDS.includes(type));
    if (event.type === "drop" && data?.files.length) event.preventDefault();
    if (!files.length) return;
    const onField = byId("drop").contains(event.target);
    if (event.type === "drop" && !onField) this.offer(files);
    else if (this.accept(files)) event.preventDefault(), this.use(files);
  }

  async offer(files) {
    if (!(await this.restore(files[0])) && this.accept(files)) this.use(files);
  }
}
