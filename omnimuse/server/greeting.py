"""What `omnimuse serve` prints when a worker is ready: where it is, and lines that work as pasted for this model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from omnimuse.server.options import Address, ServeOptions

QUESTION = "What is a heron?"
PROMPT = "a red circle on a blue background"
_DECODE = """python3 -c 'import sys, json, base64; \\
            open("picture.png", "wb").write(base64.b64decode(json.load(sys.stdin)["data"][0]["b64_json"]))'"""


def url_of(address: Address) -> str:
    """How a client names the server; that of a unix socket goes beside the socket's path."""
    if isinstance(address, Path):
        return "http://localhost"
    host, port = address
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def greeting(address: Address, options: ServeOptions, place: Mapping[str, str], seconds: float, task: str) -> str:
    """The page, a curl line and Python lines for a model that does `task`; `place` has its dtype and device."""
    where = f"{place.get('dtype', '')} on {place.get('device', '')}"
    page = "" if isinstance(address, Path) else f"\n  page    {url_of(address)}/"
    return f"""omnimuse: ready in {seconds:.1f} s ({where}), {_workers(options)}
{page}
  curl    {_curl(address, options, task)}
  python  from openai import OpenAI
          {_python(address, options, task)}

Ctrl-C stops it."""


def _workers(options: ServeOptions) -> str:
    scale = options.scale
    return f"{scale.least} to {scale.most} workers" if scale.moves else f"{scale.least} worker(s)"


def _curl(address: Address, options: ServeOptions, task: str) -> str:
    key = "" if options.key_file is None else " -H 'Authorization: Bearer YOUR_KEY'"
    socket = f" --unix-socket '{address}'" if isinstance(address, Path) else ""
    call = f"curl -s{socket} {url_of(address)}"
    body = f'{{"prompt": "{PROMPT}", "model": "{options.model_name}"}}'
    sent = f"-H 'Content-Type: application/json'{key} \\\n            -d '{body}'"
    if task == "text-to-video":
        return f"{call}/v1/videos/sync -o video.mp4 {sent}"
    if task == "image-to-image":
        form = f"-F image=@picture.png -F model='{options.model_name}' -F prompt='{PROMPT}'"
        return f"{call}/v1/images/edits{key} \\\n            {form} > answer.json"
    if task == "text-to-text":
        said = f'{{"messages": [{{"role": "user", "content": "{QUESTION}"}}], "model": "{options.model_name}"}}'
        return f"{call}/v1/chat/completions -H 'Content-Type: application/json'{key} \\\n            -d '{said}'"
    return f"{call}/v1/images/generations {sent} | {_DECODE}"


def _python(address: Address, options: ServeOptions, task: str) -> str:
    secret = "none" if options.key_file is None else "YOUR_KEY"
    asked = f'model="{options.model_name}", prompt="{PROMPT}"'
    lines = [f'client = OpenAI(base_url="{url_of(address)}/v1", api_key="{secret}")']
    if isinstance(address, Path):
        through = f'httpx2.Client(transport=httpx2.HTTPTransport(uds="{address}"))'
        lines = ["import httpx2", f"{lines[0][:-1]}, http_client={through})"]
    if task == "text-to-video":
        lines.append(f"video = client.videos.create_and_poll({asked})")
        lines.append('client.videos.download_content(video.id).write_to_file("video.mp4")')
    elif task == "image-to-image":
        lines.append(f'picture = client.images.edit(image=open("picture.png", "rb"), {asked})')
    elif task == "text-to-text":
        said = f'model="{options.model_name}", messages=[{{"role": "user", "content": "{QUESTION}"}}]'
        lines.append(f"answer = client.chat.completions.create({said})")
        lines.append("print(answer.choices[0].message.content)")
    else:
        lines.append(f"picture = client.images.generate({asked})")
    return "\n          ".join(lines)


def task_of(tasks: tuple[str, ...]) -> str:
    """The first of `tasks` for which there are lines."""
    return next(
        (task for task in ("text-to-image", "text-to-video", "image-to-image", "text-to-text") if task in tasks),
        tasks[0],
    )
