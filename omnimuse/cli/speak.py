"""Say a text aloud with a model that speaks, into a sound file.

examples:
  omnimuse speak "Good morning." -m ./Qwen3-TTS-CustomVoice -o hello.wav
  omnimuse speak "Good morning." -m OWNER/NAME --voice vivian --language english -o hello.flac
  omnimuse speak "Good morning." -m ./Qwen3-TTS-VoiceDesign --instructions "an old man, tired" -o hello.wav
  omnimuse speak "Good morning." -m ./Qwen3-TTS-Base --like me.wav -o hello.wav
  omnimuse speak "Good morning." -m ./Qwen3-TTS-Base --like me.wav --like-text "What I say there." -o hello.wav
  omnimuse speak - -m ./Qwen3-TTS-CustomVoice -o page.mp3 < page.txt

No file is ever replaced unless --overwrite says so: a name that is taken gets the next free number.
"""

from __future__ import annotations

import argparse
import secrets
import sys
import time
from pathlib import Path

from omnimuse.cli.app import told as why
from omnimuse.cli.engine import add_engine_options, add_pool_options, read_config, with_pools
from omnimuse.cli.job import Shown
from omnimuse.cli.outcome import Record, print_json, print_spent, print_warnings, settings_of, spent_of, told
from omnimuse.cli.plot import plot
from omnimuse.cli.terms import add_adapters, add_deadline, check_adapters, read_adapters, read_deadline
from omnimuse.cli.timing import Clock, add_told, read_told, recorded
from omnimuse.core.config import Config
from omnimuse.core.errors import ConfigError, OmnimuseError
from omnimuse.core.output import Chunk, Event
from omnimuse.core.params import DiffusionParams, SpeechParams
from omnimuse.core.request import Ask
from omnimuse.media.destination import free_names
from omnimuse.media.formats import SOUNDS

OPTIONS = ("voice", "language", "instructions", "max_tokens", "temperature", "top_k", "top_p", "repetition_penalty")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `omnimuse speak`."""
    parser.add_argument("text", metavar="TEXT", help="what is said; - reads it from stdin")
    parser.add_argument(
        "-m", "--model", required=True, metavar="MODEL", help="a model that speaks: a folder, or a hub id"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("speech.wav"),
        metavar="FILE",
        help=f"where it goes, {', '.join(SOUNDS)} (default: speech.wav)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a file of that name")
    parser.add_argument("--voice", metavar="NAME", help="one of the checkpoint's (default: its first)")
    parser.add_argument("--language", metavar="NAME", help="one of the checkpoint's (default: that of the text)")
    parser.add_argument("--instructions", metavar="TEXT", help="how it is spoken, or what the voice is like")
    parser.add_argument("--like", type=Path, metavar="FILE", help="a sound with whose voice it is spoken")
    parser.add_argument(
        "--like-text",
        metavar="TEXT",
        help="what is said in that sound: it is spoken on as that is, which is more alike",
    )
    parser.add_argument(
        "--speed", type=float, default=1.0, metavar="X", help="how fast it is played, 0.25 to 4, at the same pitch"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="the same seed says it the same way")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="frames of sound, at most")
    parser.add_argument("--temperature", type=float, metavar="X", help="0: always the likeliest sound")
    parser.add_argument("--top-k", type=int, metavar="N", help="choose among so many sounds; 0: all")
    parser.add_argument("--top-p", type=float, metavar="X", help="choose among the sounds that make up so much")
    parser.add_argument("--repetition-penalty", type=float, metavar="X", help="above 1: sound less like before")
    add_adapters(parser, "speak")
    add_deadline(parser)
    add_engine_options(parser)
    add_pool_options(parser)
    add_told(parser)


def run(args: argparse.Namespace) -> int:
    """Say it; the exit code."""
    from omnimuse.media.finished import check_file
    from omnimuse.media.recording import open_sound
    from omnimuse.media.streamed import check_speed
    from omnimuse.worker.find import find

    config = with_pools(args, read_config(args))
    found = find(config)
    sound = found.door.limits.sound
    speaks = sound is not None and sound.speech is not None
    if found.spec.writes and speaks:
        raise ConfigError(f"{args.model} answers what it is told; use `omnimuse chat {args.model} -o reply.wav`")
    if not speaks:
        other = "chat" if found.spec.writes else "generate"
        raise ConfigError(f"{args.model} is {found.spec.family}, which does not speak; use `omnimuse {other}` with it")
    text = sys.stdin.read().strip() if args.text == "-" else args.text
    seed = secrets.randbelow(2**32) if args.seed is None else args.seed
    extra = SpeechParams(**{name: getattr(args, name) for name in OPTIONS}, ref_text=args.like_text)
    params = DiffusionParams(seed=seed, loras=read_adapters(args.lora), extra=extra)
    prompt = {"prompt": text, "sounds": [] if args.like is None else [open_sound(args.like)]}
    ask = Ask(prompt, params, deadline=read_deadline(args.deadline))
    found.door.make_request(ask, now=0.0, fresh_seed=0)  # refused before anything is loaded
    check_file(args.output, "audio")
    check_speed(args.speed)
    check_adapters(params)
    shown = read_told(args, args.overwrite)
    [file] = [args.output] if args.overwrite else free_names(args.output, 1)
    record, wrong = _say(config, ask, file, args.speed, shown)
    _tell(record, shown)
    print_warnings(record, sys.stderr)
    if wrong:
        print(f"omnimuse: {wrong}", file=sys.stderr)
    if shown.plot is not None:
        plot(record, shown.plot, args.overwrite)
    return int(bool(wrong))


def _tell(record: Record, shown: Shown) -> None:
    """The file, and where the time went, or all of it as JSON."""
    if shown.as_json:
        print_json(record, sys.stdout)
        return
    [row] = record["results"]
    soon = "" if row["first_sound"] is None else f", the first sound after {row['first_sound']:.2f} s"
    lasts = f"{row['lasts']:.2f} s of speech, made in {row['made_in']:.2f} s"
    print(f"{row['files'][0]}  {lasts}{soon}, seed {row['seed']}")
    print_spent(record, sys.stdout, "speaking")


def _say(config: Config, ask: Ask, file: Path, speed: float, shown: Shown) -> tuple[Record, str]:
    """Make the sound and save it, played so fast, with its settings inside; what there is to tell of it, and why there
    is no recording of what was computed, if one was wanted.
    """
    clock, model = Clock(), config.model.model
    from omnimuse.api import Omni
    from omnimuse.core.output import Part, Result
    from omnimuse.media.finished import save
    from omnimuse.media.sound import at_speed

    first: list[float] = []
    made: list[Result] = []
    took, wrong = 0.0, ""

    def listen(event: Event) -> None:
        if isinstance(event, Chunk) and not first:
            first.append(time.perf_counter() - began)

    clock.reach("import")
    with Omni(model, config=config) as engine:
        clock.reach("load")
        engine.times_blocks = shown.blocks
        try:
            with recorded(shown.profile, engine, clock):
                began = time.perf_counter()
                made += engine.generate(ask.prompt, ask.params, progress=listen, chunks=True, deadline=ask.deadline)
                took = time.perf_counter() - began
        except (OSError, OmnimuseError) as error:  # such as a full disk: what was said is kept all the same
            if not made:
                raise
            wrong = why(error)
        clock.reach("draw")
        [result] = made
        assert not isinstance(ask.prompt, str)
        settings = {"model": model, **config.model.told, **told(ask.prompt), **settings_of(result), **engine.place}
        settings |= {"seed": result.seeds[0]}
        settings |= {"speed": speed} if speed != 1 else {}
        [[spoken]] = result.parts
        spoken = Part(spoken.medium, at_speed(spoken.data, speed))
        save([spoken], file, settings)
    row = {"prompt": ask.prompt["prompt"], "settings": settings, "seed": result.seeds[0], "files": [str(file)]}
    row |= {"lasts": spoken.data.seconds, "made_in": took, "first_sound": first[0] if first else None}
    row |= {"warnings": list(result.warnings), **spent_of(result)}
    return {"model": model, "results": [row], "seconds": clock.seconds()}, wrong
