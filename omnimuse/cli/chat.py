"""Talk to a model that writes: type, and read its answer while it is made.

examples:
  omnimuse chat ./Qwen3-0.6B
  omnimuse chat OWNER/NAME
  omnimuse chat ./Qwen3-0.6B --system "Answer in one sentence." --temperature 0
  echo "What is a heron?" | omnimuse chat ./Qwen3-0.6B
  omnimuse chat ./Qwen3-Omni --picture heron.png --sound call.wav
  echo "Good morning." | omnimuse chat ./Qwen3-Omni -o reply.wav
  omnimuse chat ./a-model-that-talks-and-draws -o shapes.png --steps 20

  omnimuse chat ./Qwen3-0.6B --tools tools.json
  omnimuse chat ./Qwen3-0.6B --lora ./my-adapter:0.8
  echo "What is a heron?" | omnimuse chat ./Qwen3-0.6B --json --plot where.png

With --tools, a JSON list of functions as OpenAI has them, an answer may ask for one; it is shown, and nothing is
carried out: `/answer TEXT` is what came of the first call that waits for that, and the model goes on after the last.

A picture that comes with an answer goes into a file, and is shown in a terminal. No file is ever replaced: a name that
is taken gets the next free number.

/new forgets what was said, /exit ends (so does the end of the input). Ctrl-C ends the answer that is being made, and
what came of it stays; where none is being made, it ends the talk. A line that cannot be answered is told why, and is as
if it had not been said; the exit code is 1 then.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TextIO

from omnimuse.cli.app import STOPPED, STOPS, stopped
from omnimuse.cli.app import told as why
from omnimuse.cli.blocks import in_blocks
from omnimuse.cli.engine import add_engine_options, add_pool_options, read_config, with_pools
from omnimuse.cli.job import NAMES, Shown, read_size
from omnimuse.cli.outcome import Record, print_json, print_spent, row_of
from omnimuse.cli.plot import plot
from omnimuse.cli.terms import add_adapters, add_deadline, check_adapters, read_adapters, read_deadline
from omnimuse.cli.timing import Clock, add_told, read_told, recorded
from omnimuse.core.calls import Call, Splitter
from omnimuse.core.errors import (
    CapacityError,
    ConfigError,
    MemoryShortageError,
    NumericalError,
    OmnimuseError,
    RequestError,
    reason,
)
from omnimuse.core.output import Chunk, Event, Part, Result
from omnimuse.core.params import AnswerParams, DiffusionParams, GenerationParams, WatchParams
from omnimuse.core.request import Ask
from omnimuse.core.spec import Spec
from omnimuse.media.destination import free_names

REFUSALS = (RequestError, CapacityError, NumericalError, MemoryShortageError)
"""What goes wrong with a line, and not with the engine."""
OPTIONS = ("max_tokens", "temperature", "top_k", "top_p", "repetition_penalty")
SHOWN = {"picture": "image", "sound": "audio", "video": "video"}
"""What a person calls what can be shown, and what a part of a message does."""


@dataclass(frozen=True)
class Setting:
    """How a talk is had: what the model is told before it, the seed of every answer and when it is wanted, what stands
    before a line, what is shown with the first one (parts of a message), the files that sounds and pictures of answers
    go to, by medium, and the tools that may be asked for.
    """

    system: str | None = None
    seed: int | None = None
    deadline: float | str | None = None
    prompt: str = ""
    shown: Sequence[Mapping[str, Any]] = field(default=())
    files: Mapping[str, Path] = field(default_factory=dict)
    tools: Sequence[Any] = field(default=())
    rows: list[Record] = field(default_factory=list)  # what came of every line so far, for programs
    clock: Clock = field(default_factory=Clock)


class Engine(Protocol):
    """What `chat` needs of `omnimuse.Omni`."""

    def stream(
        self,
        prompts: Sequence[Any],
        params: Any,
        *,
        listen: Callable[[Event], None],
        chunks: bool,
        seed: int | None,
        deadline: float | str | None,
    ) -> Iterator[tuple[int, Result]]:
        """The place of a prompt and its result, as each is done."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `omnimuse chat`."""
    parser.add_argument("model", metavar="MODEL", help="a model that writes: a folder, or a hub id")
    parser.add_argument("--system", metavar="TEXT", help="what the model is told before the talk begins")
    parser.add_argument(
        "--seed", type=int, metavar="N", help="the seed of every answer (default: a fresh one for each)"
    )
    parser.add_argument("--max-tokens", type=int, metavar="N", help="of an answer, at most")
    parser.add_argument("--temperature", type=float, metavar="X", help="0: always the likeliest word")
    parser.add_argument("--top-k", type=int, metavar="N", help="choose among so many words; 0: all")
    parser.add_argument("--top-p", type=float, metavar="X", help="choose among the words that make up so much")
    parser.add_argument("--repetition-penalty", type=float, metavar="X", help="above 1: say less often what was said")
    parser.add_argument("--tools", type=Path, metavar="FILE", help="functions that answers may ask for, as JSON")
    for name in SHOWN:
        what = f"a {name} that is shown with the first line, where the model takes such; may be repeated"
        parser.add_argument(f"--{name}", action="append", default=[], metavar="FILE", help=what)
    parser.add_argument("--hear-videos", action="store_true", help="hear the sound in their files, too")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="reply.wav: have answers spoken, too, by a model that can; of one that draws, where its pictures go "
        f"(default: {NAMES['image']})",
    )
    parser.add_argument("--steps", type=int, metavar="N", help="denoising steps of a picture")
    parser.add_argument("--guidance", type=float, metavar="X", help="how strongly its prompt steers a picture")
    parser.add_argument("--size", metavar="WxH", help="width and height of a picture in pixels")
    parser.add_argument("--voice", metavar="NAME", help="of a spoken answer; one that the checkpoint has")
    add_adapters(parser, "write")
    add_deadline(parser)
    add_engine_options(parser)
    add_pool_options(parser)
    add_told(parser)


def run(args: argparse.Namespace) -> int:
    """Talk until the person ends it."""
    clock = Clock()
    from omnimuse.api import Omni
    from omnimuse.media.finished import check_file
    from omnimuse.media.prompts import with_sources
    from omnimuse.worker.find import find

    config = with_pools(args, read_config(args))
    found = find(config)
    if not found.spec.converses:
        other = "generate" if found.door.limits.speech is None else "speak"
        raise ConfigError(f"{args.model} is {found.spec.family}, which does not write; use `omnimuse {other}` with it")
    params = _params(args, found.spec, draws=found.door.limits.draws)
    shown = [
        {"type": kind, kind: _opened(name, file, args.hear_videos)}
        for name, kind in SHOWN.items()
        for file in getattr(args, name)
    ]
    content = [*shown, {"type": "text", "text": "what is said"}]
    tools = () if args.tools is None else _tools(args.tools)
    tried = with_sources({"messages": [{"role": "user", "content": content}], "tools": tools}, params)
    deadline = read_deadline(args.deadline)
    found.door.make_request(
        Ask(tried, params, deadline=deadline), now=0.0, fresh_seed=0
    )  # refused before anything is loaded
    files = _files(args, draws=found.door.limits.draws)
    for medium, file in files.items():
        check_file(file, medium)
    check_adapters(params)
    told = read_told(args)
    prompt = "> " if sys.stdin.isatty() and sys.stdout.isatty() else ""
    setting = Setting(args.system, args.seed, deadline, prompt, shown, files, tools, clock=clock)
    clock.reach("import")
    code, wrong, out = 1, "", io.StringIO() if told.as_json else sys.stdout
    with Omni(args.model, config=config) as engine:
        clock.reach("load")
        engine.times_blocks = told.blocks
        try:
            with recorded(told.profile, engine, clock):
                try:
                    code = talk(engine, params, sys.stdin, out, setting)
                finally:
                    clock.reach("wait")
        except STOPS as stop:
            wrong = stopped(stop)
            code = STOPPED[wrong]
        except (OSError, OmnimuseError) as error:  # such as a full disk: what was said is told all the same
            if not setting.rows or not (told.as_json or told.blocks):
                raise
            code, wrong = 1, why(error)
    _tell({"model": args.model, "results": setting.rows, "seconds": clock.seconds()}, told)
    if wrong:
        print(f"omnimuse: {wrong}", file=sys.stderr)
    return code


def _tell(record: Record, told: Shown) -> None:
    """All of a talk as JSON, or where its time went, if that is asked for; on stderr, as stdout has the talk."""
    if told.as_json:
        print_json(record, sys.stdout)
    elif told.blocks and record["results"]:
        print_spent(record, sys.stderr, "talking")
    if told.plot is not None:
        plot(record, told.plot)


def _params(args: argparse.Namespace, spec: Spec, *, draws: bool) -> DiffusionParams:
    """What was chosen of how it writes, and speaks; RequestError for a voice of a model that does not speak."""
    if args.hear_videos and not issubclass(spec.extra, WatchParams):
        raise ConfigError(f"{args.model} hears no videos, and --hear-videos is for one that does; leave it out")
    if args.hear_videos and not args.video:
        raise ConfigError("--hear-videos is for videos that are shown; name them with --video FILE, or leave it out")
    chosen = {name: getattr(args, name) for name in OPTIONS}
    if args.voice is not None and args.output is None and issubclass(spec.extra, AnswerParams):
        raise ConfigError(f"--voice {args.voice} is of an answer that is spoken; say with -o reply.wav where that goes")
    width, height = read_size(args.size)
    params = DiffusionParams(args.steps, args.guidance, width=width, height=height, loras=read_adapters(args.lora))
    if args.output is None and args.voice is None and not spec.writes:
        return replace(params, extra={**chosen, "modalities": ("text",)})  # it could draw as well
    if args.hear_videos:
        chosen["use_audio_in_video"] = True
    elif args.voice is None and (draws or args.output is None):
        return replace(params, extra=GenerationParams(**chosen))
    if not issubclass(spec.extra, AnswerParams):
        name = "--output" if args.output is not None else "--voice"
        raise ConfigError(f"{args.model} answers in text alone, and {name} is for one that speaks; leave it out")
    modalities = ("text",) if args.output is None else ("text", "audio")
    made = WatchParams if args.hear_videos else AnswerParams
    return replace(params, extra=made(**chosen, voice=args.voice, modalities=modalities))


def _files(args: argparse.Namespace, *, draws: bool) -> dict[str, Path]:
    """Where the sounds or the pictures of answers go, by medium, where there are to be any."""
    if draws:
        return {"image": args.output or Path(NAMES["image"])}
    return {} if args.output is None else {"audio": args.output}


def _tools(file: Path) -> Sequence[Any]:
    """The functions in a file; what is wrong with each, the door says."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"--tools {file} cannot be read: {reason(error)}") from None
    if not isinstance(found, list):
        raise ConfigError(f"--tools {file} holds no list of functions; put them between [ and ]")
    return found


def _opened(name: str, file: str, heard: bool) -> Any:
    """What is in a file that is shown; of a video that is `heard`, its sound, too."""
    from omnimuse.media.clip import open_watched
    from omnimuse.media.picture import open_picture
    from omnimuse.media.recording import open_sound

    read: Mapping[str, Callable[[Any], Any]] = {
        "picture": open_picture,
        "sound": open_sound,
        "video": partial(open_watched, heard=heard),
    }
    opened = read[name](file)
    if heard and name == "video" and opened.track is None:
        raise ConfigError(f"--hear-videos: nothing is heard in {file}; leave it out, or show a video with a sound")
    return opened


def talk(
    engine: Engine,
    params: DiffusionParams | GenerationParams,
    lines: TextIO,
    out: TextIO,
    setting: Setting | None = None,
) -> int:
    """Answer every line of `lines` on `out`, with all that was said before it; the exit code."""
    setting = setting or Setting()
    begun: list[Mapping[str, Any]] = [{"role": "system", "content": setting.system}] if setting.system else []
    said, shown, waiting, refused = list(begun), setting.shown, list[Call](), 0
    while True:
        out.write(setting.prompt)
        out.flush()
        line = lines.readline()
        text = line.strip()
        if not line or text == "/exit":
            return refused
        before = list(said), shown, list(waiting)
        if text == "/new":
            said, shown, waiting = list(begun), setting.shown, []
        elif setting.tools and text.split(" ")[0] == "/answer":
            if not waiting:
                out.write("[no call waits for an answer]\n")
                continue
            came = text.removeprefix("/answer").strip()
            said.append({"role": "tool", "tool_call_id": waiting.pop(0).id, "content": came})
        elif text:
            content: Any = [*shown, {"type": "text", "text": text}] if shown else text
            said.append({"role": "user", "content": content})
            shown, waiting = (), []
        if text and text != "/new" and not waiting:
            try:
                answer, calls = _answer(engine, said, params, setting, out)
            except REFUSALS as error:
                out.write(f"[{error}]\n")
                (said, shown, waiting), refused = before, 1
                continue
            waiting += calls
            asked = {"tool_calls": list(calls)} if calls else {}
            said.append({"role": "assistant", "content": answer, **asked})


def _answer(
    engine: Engine,
    said: Sequence[Mapping[str, Any]],
    params: DiffusionParams | GenerationParams,
    setting: Setting,
    out: TextIO,
) -> tuple[str, Sequence[Call]]:
    """What the model says next, and the calls that it asks for; shown as it comes, and kept in a file where it is
    spoken. Of an answer that was interrupted, what there was.
    """
    pieces, taking = list[str](), Splitter(f"{len(said)}")

    def tell(told: Sequence[str | Call]) -> None:
        for each in told:
            pieces.extend([each] if isinstance(each, str) else [])
            out.write(each if isinstance(each, str) else f"\n[{each.name} {each.arguments}]")
        out.flush()

    def show(event: Event) -> None:
        if isinstance(event, Chunk) and event.medium == "text":
            tell(taking.add(event.data) if setting.tools else [event.data])

    setting.clock.reach("wait")
    prompt = {"messages": said, "tools": setting.tools} if setting.tools else said
    answers = engine.stream([prompt], params, listen=show, chunks=True, seed=setting.seed, deadline=setting.deadline)
    try:
        with closing(answers):  # type: ignore[type-var]
            for _, result in answers:
                row = row_of(result, _asked(said[-1]), next(iter(result.seeds), setting.seed or 0))
                setting.rows.append(row)
                if result.error is not None:
                    raise result.error
                tell(taking.end())
                row["calls"] = [{"name": call.name, "arguments": call.arguments} for call in taking.calls]
                for part in result.parts[0]:
                    if part.medium in setting.files:
                        file = _kept(result, part, setting.files[part.medium])
                        row["files"].append(str(file))
                        out.write(_shown(part, file, result.seeds[0], pictured=out.isatty()))
                for warning in result.warnings:
                    out.write(f"\n[{warning}]")
    except KeyboardInterrupt:
        out.write(" [stopped]")
    finally:
        setting.clock.reach("draw")
    out.write("\n")
    return "".join(pieces), taking.calls


def _asked(message: Mapping[str, Any]) -> str:
    """The text of a message."""
    content = message["content"]
    return str(content if isinstance(content, str) else content[-1]["text"])


def _kept(result: Result, part: Part, asked: Path) -> Path:
    """Write the sound or the picture of an answer into a file that is free."""
    from omnimuse.media.finished import save

    [file] = free_names(asked, 1)
    save([part], file, {"prompt": result.prompt, "seed": result.seeds[0]})
    return file


def _shown(part: Part, file: Path, seed: int, *, pictured: bool) -> str:
    """A word about that file, and the picture if that can be shown."""
    if part.medium == "audio":
        return f"\n[{file}  {part.data.seconds:.2f} s]"
    width, height = part.data.size
    return f"\n{in_blocks(part.data) if pictured else ''}[{file}  {width}x{height}, seed {seed}]"
