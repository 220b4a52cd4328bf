// The settings of a model, made from what /v1/models says of it: its parameters, defaults and limits.

import { byId, h } from "./dom.js";
import { isSound, isVideo, makes, startsFrom, takes } from "./kinds.js";

const NUMBERS = [
  // name on the wire, label, smallest, largest, step
  ["num_inference_steps", "Steps", 1, 10000, 1],
  ["guidance_scale", "Guidance", 0, 1000, "any"],
  ["guidance_scale_2", "Guidance, second part", 0, 1000, "any"],
  ["true_cfg_scale", "True guidance", 0, 1000, "any"],
  ["fps", "Frames per second", 0.01, 1000, "any"],
];
const LIKE = "like";
const CACHES = ["auto", "careful", "balanced", "fast"]; // that people choose; others are for those who tune them
const MOST_ADAPTERS = 12; // that have a field of their own here
const UNSAID = 1024; // pixels a side, for a model that does not say its own size
const SHAPES = [["Square", 1, 1], ["Portrait", 3, 4], ["Tall", 9, 16], ["Landscape", 4, 3], ["Wide", 16, 9]];

/** What everybody chooses who has a text said. */
const SPOKEN = ["voice", "language", "instructions"];
/** What is said in the sound whose voice it is, which stands beside that sound. */
const HEARD = ["ref_text"];
const LABELS = { ref_text: "What is said in it" };

/** The settings of one model and `kind` of task, inside `root` (and the strength by its picture). */
export class Controls {
  constructor(root, model, kind, onchange) {
    this.model = model;
    this.kind = kind;
    this.can = model.capabilities;
    this.inputs = new Map();
    this.extra = new Map();
    this.worn = new Map();
    root.replaceChildren(...this.build().filter(Boolean));
    byId("strength").replaceChildren(...this.strength(), ...this.margins(), ...this.heard());
    byId("strength").oninput = root.oninput = ({ target }) => {
      if (this.shape && target === this.shape) this.applyShape();
      else if (["set-width", "set-height"].includes(target.id)) this.matchShape();
      if (target.type === "range") this.tell(target);
      onchange();
    };
    if (!this.shape) return;
    if (startsFrom(kind)) this.shape.value = LIKE;
    else this.matchShape();
    this.showSides();
  }

  build() {
    const { can } = this;
    const most = { ...can.defaults };
    const numbers = NUMBERS.map(([name, label, min, max, step]) =>
      this.has(name) ? this.number(name, label, { min, max, step, value: most[name] ?? "" }) : null);
    if (isVideo(this.kind)) numbers.push(this.frames());
    if (isSound(this.kind) && this.has("seconds")) numbers.unshift(this.seconds());
    if (!isVideo(this.kind) && can.max_outputs > 1) {
      numbers.push(this.number("n", "Pictures", { min: 1, max: can.max_outputs, step: 1, value: 1 }));
    }
    const sizes = isSound(this.kind) ? [] : this.sizes();
    return [...sizes, ...numbers, this.seed(), this.formats(), this.caches(), this.negative(), ...this.extras(SPOKEN),
      ...this.adapters(), this.finer()];
  }

  has(name) {
    return this.can.parameters.includes(name);
  }

  strength() {
    if (!startsFrom(this.kind) || !this.has("strength")) return [];
    const value = this.can.defaults.strength ?? 0.6;
    const input = h("input", { type: "range", min: 0.05, max: 1, step: 0.05 });
    input.value = value;
    const slider = this.keep("strength", "Strength", input, "slider");
    slider.append(h("output", { htmlFor: input.id }, String(value)));
    return [slider, h("p", { className: "hint" }, `Lower keeps more of the ${takes(this.kind)}, 1 keeps nothing.`)];
  }

  /** By how much the picture grows: left, above, right, below. */
  margins() {
    if (this.kind !== "edit" || !this.can.masks) return [];
    const pattern = "\\s*\\d{1,5}\\s*(,\\s*\\d{1,5}\\s*){3}";
    const input = h("input", { pattern, placeholder: "0,0,0,0", autocomplete: "off" });
    input.title = "Four numbers of pixels: left, above, right, below";
    return [this.keep("pad", "Draw on beyond the edges", input)];
  }

  /** Without it the voice alone is taken, and not the manner of speaking. */
  heard() {
    const fields = this.extras(HEARD);
    const hint = "Some seconds in which one person speaks. With what is said in it, the manner of speaking is taken, too.";
    return fields.length ? [...fields, h("p", { className: "hint" }, hint)] : [];
  }

  sizes() {
    const { size_multiple: step, max_side: max, defaults } = this.can;
    const side = { min: step, max, step };
    const options = this.shapes().map(([label, width, height]) =>
      h("option", { value: `${width}x${height}` }, `${label} ${width} × ${height}`));
    if (startsFrom(this.kind)) options.unshift(h("option", { value: LIKE }, `Like the ${takes(this.kind)}`));
    this.shape = h("select", { id: "shape" }, ...options, h("option", { value: "" }, "Custom"));
    this.sides = [
      this.number("width", "Width", { ...side, value: defaults.width ?? UNSAID }),
      this.number("height", "Height", { ...side, value: defaults.height ?? UNSAID }),
      h("p", { className: "hint wide" }, `Sides are multiples of ${step}, up to ${max}.`),
    ];
    return [field(this.shape, "Shape", "wide"), ...this.sides];
  }

  /** Named sizes with about as many pixels as the model's default, [label, width, height]. */
  shapes() {
    const { size_multiple: step, max_side: max, defaults: { width = UNSAID, height = UNSAID } } = this.can;
    const fit = (side) => Math.min(Math.max(Math.round(side / step), 1) * step, max - (max % step));
    const named = SHAPES.map(([label, w, h_]) => {
      const unit = Math.sqrt((width * height) / (w * h_));
      return [label, fit(w * unit), fit(h_ * unit)];
    });
    return named.some(([, w, h_]) => w === width && h_ === height) ? named : [["Default", width, height], ...named];
  }

  applyShape() {
    this.showSides();
    const [width, height] = this.shape.value.split("x");
    if (height) this.set("width", width), this.set("height", height);
  }

  /** The size that is asked for, or null: as the picture it starts from. */
  get size() {
    if (!this.shape) return "3x1"; // the place where a sound is played
    return this.shape.value === LIKE ? null : `${this.get("width")}x${this.get("height")}`;
  }

  showSides() {
    const hidden = this.size === null;
    for (const node of this.sides) node.hidden = hidden;
    for (const name of ["width", "height"]) this.inputs.get(name).disabled = hidden;
  }

  matchShape() {
    const size = `${this.get("width")}x${this.get("height")}`;
    this.shape.value = [...this.shape.options].some((option) => option.value === size) ? size : "";
  }

  frames() {
    // Legal counts are min + k * step: a number field with these says so by itself.
    const { min_frames: min, max_frames: max, frame_step: step, defaults } = this.can;
    return this.number("num_frames", "Frames", { min, max, step, value: defaults.num_frames });
  }

  seconds() {
    const { max_seconds: max, defaults: { seconds } } = this.can;
    const bound = max ? { max: Math.floor(max * 100) / 100 } : {};
    const value = seconds === undefined ? "" : Math.floor(seconds * 100) / 100;
    return this.number("seconds", "Seconds", { min: 0.01, step: 0.01, value, ...bound });
  }

  seed() {
    const pattern = "0|[1-9][0-9]{0,19}";
    const input = h("input", { inputMode: "numeric", pattern, placeholder: "random", autocomplete: "off" });
    input.title = `A whole number; the same seed gives the same ${makes(this.kind)}`;
    const kept = this.keep("seed", "Seed", input);
    const title = `Another seed for every ${makes(this.kind)}`;
    const random = h("button", { type: "button", className: "link", title }, "Random");
    random.onclick = () => {
      input.value = "";
      input.dispatchEvent(new Event("input", { bubbles: true }));
      input.focus();
    };
    kept.firstChild.after(random);
    kept.classList.add("with-button");
    return kept;
  }

  formats() {
    if (isVideo(this.kind)) return null;
    const heard = this.can.formats.filter((name) => name !== "pcm"); // which no browser plays
    const options = heard.map((name) => h("option", { value: name }, name.toUpperCase()));
    return this.keep("output_format", "Format", h("select", {}, ...options));
  }

  /** What skips work while little changes. */
  caches() {
    const there = (this.can.caches ?? []).filter((name) => name !== "none");
    if (!there.length) return null;
    const few = there.filter((name) => CACHES.includes(name));
    const input = h("select", { title: "Skips work while little changes: faster, and a little different" });
    const kept = this.keep("cache", "Step cache", input);
    for (const name of ["none", ...(few.length ? few : there)]) input.append(h("option", { value: name }, name));
    this.set("cache", this.usual("cache"));
    return kept;
  }

  negative() {
    if (!this.has("negative_prompt")) return null;
    const input = h("input", { maxLength: this.can.max_prompt, autocomplete: "off" });
    return this.keep("negative_prompt", "Negative prompt", input, "wide");
  }

  /** What this family knows besides, folded away: it is there for those who know what it means. */
  finer() {
    const fields = this.extras(Object.keys(this.can.extra ?? {}).filter((name) => ![...SPOKEN, ...HEARD].includes(name)));
    this.fold = fields.length ? h("details", { className: "wide" }, h("summary", {}, "Finer settings of this model"),
      h("div", { className: "controls" }, ...fields)) : null;
    return this.fold;
  }

  extras(names) {
    return names.filter((name) => name in (this.can.extra ?? {})).map((name) => {
      const value = this.can.extra[name];
      const among = this.can.choices?.[name];
      const input = among?.length ? h("select", {}, ...["", ...among].map((one) => h("option", { value: one }, one || "—")))
        : typeof value === "boolean" ? h("input", { type: "checkbox", checked: value })
        : typeof value === "number" ? h("input", { type: "number", step: "any", value })
        : h("input", { value: textOf(value) });
      input.required = this.can.needs?.includes(name) ?? false;
      input.id = `extra-${name}`;
      this.extra.set(name, input);
      const words = name.replaceAll("_", " ");
      return field(input, LABELS[name] ?? words[0].toUpperCase() + words.slice(1));
    });
  }

  /** A field for every adapter: how strongly it is worn, or nothing. */
  adapters() {
    const names = this.can.adapters ?? [];
    const fields = names.slice(0, MOST_ADAPTERS).map((name, number) => {
      const input = h("input", { type: "number", min: -100, max: 100, step: "any", placeholder: "not worn" });
      input.id = `adapter-${number}`;
      this.worn.set(name, input);
      return field(input, name);
    });
    if (!fields.length) return [];
    const more = names.length > MOST_ADAPTERS ? ` ${names.length - MOST_ADAPTERS} more can be named over the API.` : "";
    const hint = `Adapters: 1 is as trained, less is weaker, 0 is without; empty is as the server has it.${more}`;
    return [h("p", { className: "hint wide" }, hint), ...fields];
  }

  number(name, label, props) {
    const input = h("input", { type: "number", required: props.value !== "", ...props });
    const only = this.can.fixed?.[name] ?? null;
    if (only !== null) Object.assign(input, { value: only, disabled: true, title: "This model takes no other value" });
    return this.keep(name, label, input);
  }

  keep(name, label, input, width) {
    input.id = `set-${name}`;
    this.inputs.set(name, input);
    return field(input, label, width);
  }

  get(name) {
    return this.inputs.get(name)?.value ?? "";
  }

  set(name, value) {
    const input = this.inputs.get(name);
    // A step cache may have settings of its own.
    if (input && name === "cache" && ![...input.options].some((option) => option.value === value)) {
      input.append(h("option", { value }, value));
    }
    if (input && !input.disabled) input.value = value;
    if (input?.type === "range") this.tell(input);
  }

  tell(range) {
    range.nextSibling.textContent = range.value;
  }

  /** What to send: the size, and every setting that is not the model's default. */
  read() {
    const fields = this.shape && this.size ? { size: this.size } : {};
    for (const [name, input] of this.inputs) {
      const value = input.value.trim();
      if (["width", "height"].includes(name) || input.disabled || value === "" || value === this.usual(name)) continue;
      fields[name] = ["number", "range"].includes(input.type) ? Number(value) : value;
    }
    // What lies beyond the edges has nothing to start from: the strength is left to the server, unless one is chosen.
    if (fields.pad && fields.strength === this.can.defaults.strength) delete fields.strength;
    const worn = [...this.worn].filter(([, input]) => input.value.trim() !== "")
      .map(([name, input]) => `${name}:${Number(input.value)}`);
    if (worn.length) fields.lora = worn;
    const extra = [...this.extra].filter(([name, input]) => this.differs(name, input))
      .map(([name, input]) => [name, valueOf(input, typeof this.can.extra[name] !== "string")]);
    return extra.length ? { ...fields, extra_params: Object.fromEntries(extra) } : fields;
  }

  differs(name, input) {
    const usual = this.can.extra[name];
    return input.type === "checkbox" ? input.checked !== usual : input.value !== textOf(usual);
  }

  usual(name) {
    if (name === "strength") return ""; // it is always said: nothing else says how the picture is used
    if (name === "output_format") return this.can.formats[0];
    if (name === "cache") return this.can.defaults.cache ?? "none";
    if (name === "seconds") return String(Math.floor((this.can.defaults.seconds ?? 0) * 100) / 100);
    return name === "n" ? "1" : String(this.can.defaults[name] ?? "");
  }

  /** Shows the settings of `fields`, as `read` gave them; what they leave out takes its default. */
  fill(fields) {
    const [width, height] = fields.size?.split("x") ?? [];
    const all = { ...fields, width, height };
    if (this.shape) this.shape.value = fields.size ? "" : LIKE;
    if (this.shape) this.showSides();
    for (const name of this.inputs.keys()) this.set(name, all[name] ?? this.usual(name));
    for (const [name, input] of this.extra) {
      const value = fields.extra_params?.[name] ?? this.can.extra[name];
      if (input.type === "checkbox") input.checked = value;
      else input.value = textOf(value);
    }
    if (this.fold && fields.extra_params) this.fold.open = true;
    const worn = adaptersOf(fields);
    for (const [name, input] of this.worn) input.value = worn.get(name) ?? "";
    if (this.shape && fields.size) this.matchShape();
  }

  /** The names of adapters in `fields` that the form has no field for. */
  lacking(fields) {
    return [...adaptersOf(fields).keys()].filter((name) => !this.worn.has(name));
  }

  /** The settings in a few words. */
  summary() {
    const steps = this.get("num_inference_steps");
    const seed = this.get("seed");
    const lasts = this.get("seconds");
    const size = !this.shape ? lasts && `${lasts} s` : this.size?.replace("x", " × ") ?? `shape of the ${takes(this.kind)}`;
    return [size, steps && `${steps} steps`, seed && `seed ${seed}`].filter(Boolean).join(" · ");
  }
}

// The settings are not always inside the form: see `placeSettings`.
function field(input, label, width = "") {
  input.setAttribute("form", "form");
  return h("div", { className: `field ${width}` }, h("label", { htmlFor: input.id }, label), input);
}

/** The adapters that `fields` name, and how strongly each is worn. */
function adaptersOf({ lora = [] }) {
  return new Map(lora.map((text) => [text.slice(0, text.lastIndexOf(":")), text.slice(text.lastIndexOf(":") + 1)]));
}

/** A value as it is shown in a text field. */
function textOf(value) {
  if (value === null || value === undefined) return "";
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

/** What was put in; where the default is no text, text that is JSON is what it stands for. */
function valueOf(input, structured) {
  if (input.type === "checkbox") return input.checked;
  if (input.type === "number") return Number(input.value);
  if (!structured) return input.value;
  try {
    return JSON.parse(input.value);
  } catch {
    return input.value;
  }
}

/** Beside the picture the settings are open and follow the form; on a narrow screen they and what waits follow the
 * picture.
 */
export function placeSettings() {
  const wide = matchMedia("(min-width: 60.01rem)");
  const place = () => {
    byId("settings").open = wide.matches;
    if (wide.matches) byId("form").append(byId("queue")), byId("composer").append(byId("more"));
    else byId("stage").after(byId("queue"), byId("more"));
  };
  wide.onchange = place;
  place();
}
