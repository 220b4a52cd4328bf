// The brush over a picture to start from: what is painted is drawn anew. The mask is a PNG of the picture's own size,
// transparent where the brush was.

import { h } from "./dom.js";

const NAME = "mask.png";
const PAINT = "#4650c4"; // how it looks is the style's business; any colour will do here

/** A picture, or the first frame of a video (a node that has loaded, of `width` and `height`), with a brush; `onchange`
 *  is told after every stroke. A model that `fills` draws nothing but what is painted over. */
export class Brush {
  constructor(picture, [width, height], onchange, fills) {
    this.onchange = onchange;
    this.painted = false;
    this.canvas = h("canvas", { width, height });
    this.canvas.setAttribute("role", "img");
    this.canvas.setAttribute("aria-label", "Paint over what is to be drawn anew");
    picture.controls = false; // of a video they would lie under the brush
    this.pen = this.canvas.getContext("2d");
    this.size = h("input", { type: "range", id: "brush-size", min: 2, max: 40, value: 14 });
    this.erase = h("button", { type: "button", className: "link", disabled: true }, "Start over");
    this.erase.onclick = () => this.clear();
    this.keep = h("button", { type: "button", className: "link", disabled: true }, "Save mask");
    this.keep.onclick = () => this.save();
    this.box = h("div", { className: "brush" },
      h("div", { className: "over" }, picture, this.canvas),
      h("p", { className: "hint" }, `Paint over what is to be drawn anew.${fills ? "" : " Without paint, all of it is."}`),
      h("div", { className: "row" }, h("label", { htmlFor: "brush-size" }, "Brush"), this.size, this.erase, this.keep));
    this.canvas.onpointerdown = (event) => this.begin(event);
    this.canvas.onpointermove = (event) => this.draw(event);
    this.canvas.onpointerup = this.canvas.onpointercancel = () => this.end();
    this.last = null;
  }

  /** The mask as a file; null where nothing is painted. */
  get file() {
    if (!this.painted) return null;
    const mask = h("canvas", { width: this.canvas.width, height: this.canvas.height });
    const pen = mask.getContext("2d");
    pen.fillRect(0, 0, mask.width, mask.height);
    pen.globalCompositeOperation = "destination-out";
    pen.drawImage(this.canvas, 0, 0);
    const bytes = Uint8Array.from(atob(mask.toDataURL("image/png").split(",")[1]), (c) => c.charCodeAt(0));
    return new File([bytes], NAME, { type: "image/png" });
  }

  /** Paints what `file`, a mask from here, says. */
  async restore(file) {
    const mask = await createImageBitmap(file);
    this.pen.fillStyle = PAINT;
    this.pen.fillRect(0, 0, this.canvas.width, this.canvas.height);
    this.pen.globalCompositeOperation = "destination-out";
    this.pen.drawImage(mask, 0, 0, this.canvas.width, this.canvas.height);
    this.pen.globalCompositeOperation = "source-over";
    this.change(true);
  }

  begin(event) {
    event.preventDefault();
    this.canvas.setPointerCapture(event.pointerId);
    this.last = this.place(event);
    this.draw(event);
  }

  // A line from where the pointer was: a quick hand leaves no gaps. One of no length would not be drawn.
  draw(event) {
    if (!this.last) return;
    const place = this.place(event);
    Object.assign(this.pen, { lineCap: "round", lineJoin: "round", strokeStyle: PAINT, lineWidth: this.width });
    this.pen.beginPath();
    this.pen.moveTo(...this.last);
    this.pen.lineTo(place[0] + 0.01, place[1]);
    this.pen.stroke();
    this.last = place;
  }

  end() {
    if (!this.last) return;
    this.last = null;
    this.change(true);
  }

  // Under the name that copied code reads it by.
  save() {
    const link = h("a", { href: URL.createObjectURL(this.file), download: NAME });
    link.click();
    URL.revokeObjectURL(link.href);
  }

  clear() {
    this.pen.clearRect(0, 0, this.canvas.width, this.canvas.height);
    this.change(false);
  }

  change(painted) {
    this.painted = painted;
    this.erase.disabled = this.keep.disabled = !painted;
    this.onchange();
  }

  // As wide as the slider says of the picture's shorter side, in hundredths.
  get width() {
    return (Math.min(this.canvas.width, this.canvas.height) * Number(this.size.value)) / 100;
  }

  place({ clientX, clientY }) {
    const box = this.canvas.getBoundingClientRect();
    return [((clientX - box.left) / box.width) * this.canvas.width, ((clientY - box.top) / box.height) * this.canvas.height];
  }
}
