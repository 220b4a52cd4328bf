// The request as a person would write it: a curl line and a Python program that work as pasted.

import { address, encode, hasKey } from "./api.js";
import { fieldsOf, isSound, isVideo, startsFrom, takes } from "./kinds.js";

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
const auth = () => (hasKey() ? ' \\\n  -H "Authorization: Bearer $OMNIMUSE_API_KEY"' : "");
const suffix = (fields) => (fields.output_format === "jpeg" ? "jpg" : fields.output_format ?? "png");

/** A shell command that writes the picture or video into a file (more than one picture: the whole answer). */
export function curl({ kind, fields, sources = [], mask = null }) {
  const end = isVideo(kind) ? " \\\n  -o video.mp4"
    : isSound(kind) ? ` \\\n  -o sound.${fields.output_format ?? "wav"}` : save(fields);
  if (startsFrom(kind)) {
    const { extra_params: extra = {}, ...plain } = fields;
    const each = ([k, v]) => (Array.isArray(v) ? v.map((one) => [`${k}[]`, one]) : [[k, v]]);
    const named = [...Object.entries(plain).flatMap(each), ...Object.entries(extra).map(([k, v]) => [`extra_params[${k}]`, v])];
    const files = filesOf(kind, sources).map(([field, name]) => `${field}=@"${name.replace(/["\\]/g, "\\$&")}"`);
    if (mask) files.push(`mask=@"${mask.name}"`);
    const parts = [
      ...files.map((text) => ` \\\n  -F ${quoted(text)}`),
      ...named.map(([name, value]) => ` \\\n  --form-string ${quoted(`${name}=${value}`)}`),
    ];
    const path = isVideo(kind) ? "v1/videos/sync" : isSound(kind) ? "v1/audio/generate" : "v1/images/edits";
    return `curl -sS ${address(path)}${auth()}${parts.join("")}${end}`;
  }
  const path = isVideo(kind) ? "v1/videos/sync" : isSound(kind) ? "v1/audio/generate" : "v1/images/generations";
  const body = quoted(encode(fields));
  return `curl -sS ${address(path)}${auth()} \\\n  -H 'Content-Type: application/json' \\\n  -d ${body}${end}`;
}

const PLACES = { picture: "input.png", video: "input.mp4", sound: "input.wav" };

// What is started from, under the names it had where it was chosen.
const namesOf = (kind, sources) =>
  (sources.length ? sources.map(({ name }) => name) : [PLACES[takes(kind)]]);

// The same with the fields that it is sent in.
function filesOf(kind, sources) {
  const fields = fieldsOf(kind, sources.length ? sources : [{ type: "" }]);
  return namesOf(kind, sources).map((name, index) => [fields[index], name]);
}

function save(fields) {
  if (fields.n > 1) return " \\\n  -o answer.json";
  const cut = `sed 's/.*"b64_json": *"\\([^"]*\\)".*/\\1/'`;
  return ` \\\n  | ${cut} | base64 --decode > picture.${suffix(fields)}`;
}

const OFFICIAL = new Set(["model", "prompt", "n", "size", "output_format"]);

/** A Python program for the official client. */
export function python({ kind, fields, sources = [], mask = null }) {
  if (isSound(kind) || kind === "reel") return fileCall(kind, fields, sources, mask);
  const known = Object.entries(fields).filter(([name]) => OFFICIAL.has(name));
  const own = Object.entries(fields).filter(([name]) => !OFFICIAL.has(name));
  const lines = known.map(([name, value]) => `    ${name}=${literal(value)},`);
  if (kind === "edit" && mask) lines.unshift(`    mask=${opened(kind, [mask])},`);
  if (kind === "edit") lines.unshift(`    image=${opened(kind, sources)},`);
  if (kind === "film") lines.unshift(`    input_reference=${opened(kind, sources.slice(0, 1))},`);
  const last = kind === "film" && sources.length > 1;
  if (last) own.push(["last_image", null]);
  if (own.length) {
    const extra = own.map(([name, value]) => `"${name}": ${written(name, value)}`);
    lines.push(`    extra_body={${extra.join(", ")}},`);
  }
  const key = hasKey() ? 'os.environ["OMNIMUSE_API_KEY"]' : '"none"';
  const imports = [isVideo(kind) && !last ? [] : ["import base64"], hasKey() ? ["import os"] : []].flat();
  const head = imports.length ? `${imports.join("\n")}\n\n` : "";
  const client = `from openai import OpenAI\n\nclient = OpenAI(base_url="${address("v1")}", api_key=${key})\n`;
  const frame = last ? `with open(${literal(sources[1].name)}, "rb") as file:\n    last = base64.b64encode(file.read()).decode()\n` : "";
  return head + client + frame + (isVideo(kind) ? videoCall(lines) : pictureCall(kind, lines, fields));
}

function written(name, value) {
  if (name === "last_image") return '{"image_url": f"data:;base64,{last}"}';
  return name === "seed" ? value : literal(value);
}

function opened(kind, sources) {
  const files = namesOf(kind, sources).map((name) => `open(${literal(name)}, "rb")`);
  return files.length > 1 ? `[${files.join(", ")}]` : files[0];
}

function pictureCall(kind, lines, fields) {
  const method = kind === "edit" ? "edit" : "generate";
  const name = fields.n > 1 ? `f"picture-{number}.${suffix(fields)}"` : `"picture.${suffix(fields)}"`;
  const loop = fields.n > 1 ? "for number, made in enumerate(answer.data):" : "for made in answer.data:";
  const write = `    with open(${name}, "wb") as file:\n        file.write(base64.b64decode(made.b64_json))\n`;
  return `answer = client.images.${method}(\n${lines.join("\n")}\n)\n${loop}\n${write}`;
}

// The official client has no such call; its own way to make any is as good.
function fileCall(kind, fields, sources, mask) {
  const [path, made, file] = isVideo(kind) ? ["videos/sync", "video", "video.mp4"]
    : ["audio/generate", "sound", `sound.${fields.output_format ?? "wav"}`];
  const body = Object.entries(fields).map(([name, value]) =>
    `    "${name}": ${name === "seed" ? value : literal(value)},`);
  const form = 'options={"headers": {"Content-Type": "multipart/form-data"}}';
  const files = takes(kind) ? [...filesOf(kind, sources), ...(mask ? [["mask", mask.name]] : [])] : [];
  const named = files.map(([field, name]) => `("${field}", open(${literal(name)}, "rb"))`);
  const from = files.length ? `, files=[${named.join(", ")}], ${form}` : "";
  const key = hasKey() ? 'os.environ["OMNIMUSE_API_KEY"]' : '"none"';
  return `${hasKey() ? "import os\n\n" : ""}from openai import HttpxBinaryResponseContent, OpenAI\n\n` +
    `client = OpenAI(base_url="${address("v1")}", api_key=${key})\n` +
    `${made} = client.post("/${path}", cast_to=HttpxBinaryResponseContent, body={\n${body.join("\n")}\n}${from})\n` +
    `${made}.write_to_file("${file}")\n`;
}

function videoCall(lines) {
  return `video = client.videos.create_and_poll(\n${lines.join("\n")}\n)\n` +
    'client.videos.download_content(video.id).write_to_file("video.mp4")\n';
}

// JSON is Python, but for three words.
function literal(value) {
  if (typeof value === "boolean") return value ? "True" : "False";
  if (value === null) return "None";
  if (typeof value !== "object") return JSON.stringify(value);
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  return `{${Object.entries(value).map(([name, item]) => `${JSON.stringify(name)}: ${literal(item)}`).join(", ")}}`;
}
