// The settings that omnimuse writes into a PNG, read here: nothing is sent anywhere.

const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];
const NAME = "omnimuse";
const MOST = 1 << 20; // bytes of settings

/** The settings inside `file`, or null where it is no PNG that carries any. */
export async function settingsInside(file) {
  const bytes = new DataView(await file.arrayBuffer());
  if (bytes.byteLength < 20 || SIGNATURE.some((byte, at) => bytes.getUint8(at) !== byte)) return null;
  for (let at = 8; at + 12 <= bytes.byteLength;) {
    const length = bytes.getUint32(at);
    const kind = latin(bytes, at + 4, 4);
    if (kind === "IDAT" || at + 12 + length > bytes.byteLength) return null; // ours stand before the pixels
    if (kind === "iTXt" && length < MOST) {
      const said = textOf(new Uint8Array(bytes.buffer, at + 8, length));
      if (said !== null) return said;
    }
    at += 12 + length;
  }
  return null;
}

// An iTXt chunk: keyword, 0, compressed?, method, language, 0, translated keyword, 0, text.
function textOf(chunk) {
  const end = chunk.indexOf(0);
  if (new TextDecoder("latin1").decode(chunk.subarray(0, end)) !== NAME || chunk[end + 1] !== 0) return null;
  const language = chunk.indexOf(0, end + 3);
  const text = chunk.indexOf(0, language + 1) + 1;
  // A seed has more digits than a JavaScript number holds: as a string it keeps them all.
  const json = new TextDecoder().decode(chunk.subarray(text)).replace(/"seed": ?(\d+)/, '"seed":"$1"');
  try {
    const said = JSON.parse(json);
    return typeof said === "object" ? said : null;
  } catch {
    return null;
  }
}

const latin = (bytes, at, length) =>
  String.fromCharCode(...new Uint8Array(bytes.buffer, at, length));

/** Settings as the form has them: {prompt, fields, images}; `images` says that it was drawn from pictures. Adapters are
 *  named there by their files, here without the ending. */
export function asForm({ prompt = "", width, height, images, extra, model, dtype, device, loras, engine, ...rest }) {
  const fields = { ...rest };
  const named = Array.isArray(loras) ? loras.filter((one) => typeof one?.name === "string") : [];
  if (named.length) {
    fields.lora = named.map(({ name, scale = 1, component }) =>
      `${component ? `${component}=` : ""}${name.replace(/^.*\//, "").replace(/\.safetensors$/, "")}:${scale}`);
  }
  if (typeof engine?.cache === "string") fields.cache ??= engine.cache; // of the command line: for all of a run
  if (width && height) fields.size = `${width}x${height}`;
  if (extra && Object.keys(extra).length) fields.extra_params = extra;
  return { prompt: String(prompt), model, fields, images: Boolean(images?.length) };
}
