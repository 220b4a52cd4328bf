// One picture as large as the window; a click shows its real pixels, another the whole again.

import { h } from "./dom.js";

/** Opens `picture` (an img) above the page; Esc, or a click beside it, closes it. */
export function zoom(picture) {
  const large = h("img", { src: picture.src, alt: picture.alt });
  const close = h("button", { type: "button", className: "quiet close" }, "Close");
  const box = h("dialog", { className: "zoom" }, large, close);
  box.setAttribute("aria-label", `Large: ${picture.alt}`);
  large.onclick = () => {
    const real = box.classList.toggle("real");
    if (real) box.scrollTo((box.scrollWidth - box.clientWidth) / 2, (box.scrollHeight - box.clientHeight) / 2);
  };
  close.onclick = () => box.close();
  box.onclick = (event) => event.target === box && box.close();
  box.onclose = () => box.remove();
  document.body.append(box);
  box.showModal();
}
