// Small helpers for the page: make an element, copy a text, say how long something takes.

/** An element with properties (or attributes, where there is no such property) and children. */
export function h(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

export const byId = (id) => document.getElementById(id);

/** Puts `text` on the clipboard and says so on `button` for a moment. */
export async function copy(text, button) {
  const done = await toClipboard(text);
  const label = button.dataset.label ?? (button.dataset.label = button.textContent);
  button.textContent = done ? "Copied" : "Not copied";
  setTimeout(() => (button.textContent = label), 1600);
}

async function toClipboard(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text).then(() => true, () => false);
  // A page from another machine without TLS has no clipboard object; the old way still works there.
  const area = h("textarea", { value: text, className: "hidden" });
  const focused = document.activeElement;
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  focused?.focus();
  return done;
}

/** Seconds as people say them: 0.8 s (with `digits` after the point), 12 s, 3 min 20 s. */
export function duration(seconds, digits = 1) {
  if (seconds < 9.95) return `${seconds.toFixed(digits)} s`;
  const whole = Math.round(seconds);
  return whole < 60 ? `${whole} s` : `${Math.floor(whole / 60)} min ${whole % 60} s`;
}
