"""The client that the newer guide asks for: a picture by a chat with a server that speaks OpenAI's protocol."""

import argparse
import base64
import json
from pathlib import Path
from urllib.request import Request, urlopen


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--prompt", required=True)
    made.add_argument("--modality", choices=["text2img"], default="text2img")
    made.add_argument("--server", default="http://127.0.0.1:8091")
    made.add_argument("--output", type=Path, default=Path("chat.png"))
    return made


def main() -> None:
    args = parser().parse_args()
    body = {"messages": [{"role": "user", "content": args.prompt}], "modalities": ["image"], "num_inference_steps": 2}
    asked = Request(
        f"{args.server}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urlopen(asked) as answer:
        [choice] = json.load(answer)["choices"]
    url = choice["message"]["images"][0]["image_url"]["url"]
    args.output.write_bytes(base64.b64decode(url.partition(",")[2]))
    print(f"Saved image to: {args.output}")


if __name__ == "__main__":
    main()
