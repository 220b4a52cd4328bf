"""The examples' client of a server that thinks and talks, by the official package: text, pictures and sounds in."""

import argparse
import base64
from pathlib import Path

from openai import OpenAI

SEED = 42


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--server", default="http://localhost:8091/v1")
    made.add_argument("--model", "-m", default="Qwen/Qwen3-Omni-30B-A3B-Instruct")
    made.add_argument("--query-type", "-q", choices=["text", "use_image", "use_audio"], default="text")
    made.add_argument("--image-path")
    made.add_argument("--audio-path")
    made.add_argument("--modalities")
    made.add_argument("--stages", action="store_true", help="sampling parameters for each stage, as a list")
    return made


def encoded(path: str) -> str:
    return base64.b64encode(Path(path).read_bytes()).decode()


def content(args: argparse.Namespace) -> list[dict[str, object]]:
    asked: list[dict[str, object]] = [{"type": "text", "text": "What is the content of this?"}]
    if args.query_type == "use_image":
        asked.insert(
            0, {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded(args.image_path)}"}}
        )
    elif args.query_type == "use_audio":
        asked.insert(0, {"type": "input_audio", "input_audio": {"data": encoded(args.audio_path), "format": "wav"}})
    return asked


def main() -> None:
    args = parser().parse_args()
    client = OpenAI(api_key="EMPTY", base_url=args.server)
    thinker = {"temperature": 0.4, "top_p": 0.9, "top_k": 1, "max_tokens": 8, "repetition_penalty": 1.05, "seed": SEED}
    talker = {"temperature": 0.9, "top_k": 50, "max_tokens": 4096, "seed": SEED, "detokenize": False}
    completion = client.chat.completions.create(
        messages=[
            {"role": "system", "content": [{"type": "text", "text": "You are Qwen, a helpful assistant."}]},
            {"role": "user", "content": content(args)},
        ],
        model=args.model,
        modalities=args.modalities.split(",") if args.modalities else None,
        extra_body={"sampling_params_list": [thinker, talker]} if args.stages else thinker,
    )
    for count, choice in enumerate(completion.choices):
        if choice.message.audio:
            Path(f"audio_{count}.wav").write_bytes(base64.b64decode(choice.message.audio.data))
            print(f"Audio saved to audio_{count}.wav")
        elif choice.message.content:
            print("Chat completion output from text:", choice.message.content)


if __name__ == "__main__":
    main()
