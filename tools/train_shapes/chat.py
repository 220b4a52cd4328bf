"""Trains the chat model: a small language model that answers with what the demo model is to draw.

    python -m tools.train_shapes.chat --run runs/shapes --minutes 40

Conversations are made up while it trains (``talk.py``); it learns the last answer of each, marks included, and how a
text outside of any conversation goes on. One thread; the learning rate follows the clock. ``chat_export.py`` ships it.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from tools.train_shapes import store
from tools.train_shapes.flat import FlatTrainer, Optimizer
from tools.train_shapes.parallel import Clock, Rank
from tools.train_shapes.talk import CLOSE, OPEN, draw_line, draw_talk
from tools.train_shapes.writer import Shape, Writer

ENTRIES = 448
PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
_NOT_LEARNT = -100
_LOOK_EVERY = 60.0


@dataclass(frozen=True)
class ChatPlan:
    """The knobs: of every step so many tokens, of all texts a share that is no conversation."""

    run: str = "runs/shapes"
    minutes: float = 40.0
    until: str = ""
    tokens: int = 1280
    peak: float = 3e-3
    lines: float = 0.12
    held_share: float = 0.1
    seed: int = 1
    decay: float = 0.98
    muon: float = 2.0


def load_or_train_tokenizer(folder: Path, held_share: float) -> Path:
    """The file of the run's tokenizer; trained and saved there if there is none."""
    path = folder / "tokenizer.json"
    if not path.exists():
        from tools.train_shapes.tokenizer import MARKUP, SPECIAL, tokenizer_of

        texts = [*_texts(6000, held_share), *MARKUP]
        tokenizer_of(iter(texts), ENTRIES, (*SPECIAL, OPEN, CLOSE)).save_pretrained(folder)
    return path


def _texts(count: int, held_share: float) -> Iterator[str]:
    rng = random.Random(5)
    for _ in range(count):
        talk = draw_talk(rng, held_share)
        yield from (message["content"] for message in talk.messages)
        yield talk.turns[-1].answer.replace(OPEN, "\n").replace(CLOSE, "\n")


def opened(messages: Sequence[dict[str, str]]) -> str:
    """A conversation and the beginning of its answer, as the checkpoint's chat template has it."""
    said = "".join(f"{START}{message['role']}\n{message['content']}{END}\n" for message in messages)
    return f"{said}{START}assistant\n"


class Feed:
    """Endless batches of texts about as long as one another: (ids [B, S], what is learnt of them [B, S])."""

    def __init__(self, tokenizer: Tokenizer, plan: ChatPlan, seed: str) -> None:
        self._tokenizer, self._plan, self._rng = tokenizer, plan, random.Random(seed)
        self._pad = tokenizer.token_to_id(PAD)
        self._ready: list[list[tuple[list[int], int]]] = []

    def next(self) -> tuple[Tensor, Tensor]:
        while not self._ready:
            self._fill()
        rows = self._ready.pop()
        longest = max(len(ids) for ids, _ in rows)
        ids = torch.tensor([row + [self._pad] * (longest - len(row)) for row, _ in rows])
        places = torch.arange(longest)
        starts, ends = torch.tensor([start for _, start in rows]), torch.tensor([len(row) for row, _ in rows])
        learnt = (places >= starts[:, None]) & (places < ends[:, None])
        return ids, ids.masked_fill(~learnt, _NOT_LEARNT)

    def _fill(self, count: int = 800) -> None:
        read = [[self._tokenizer.encode(part).ids for part in self._text()] for _ in range(count)]
        rows = sorted(((before + after, max(len(before), 1)) for before, after in read), key=lambda row: len(row[0]))
        while rows:
            many = max(1, self._plan.tokens // len(rows[-1][0]))
            self._ready.append(rows[-many:])
            del rows[-many:]
        self._rng.shuffle(self._ready)

    def _text(self) -> tuple[str, str]:
        """What is read, and what is learnt to come after it."""
        if self._rng.random() < self._plan.lines:
            return "", draw_line(self._rng, self._plan.held_share) + END
        talk = draw_talk(self._rng, self._plan.held_share)
        return opened(talk.messages), talk.turns[-1].answer + END


def train(plan: ChatPlan, resume: bool) -> None:
    """Until its time is over; ``chat.safetensors`` of the run has the moving average, kept every minute."""
    torch.set_num_threads(1)
    torch.manual_seed(plan.seed)
    folder = Path(plan.run)
    tokenizer = Tokenizer.from_file(str(load_or_train_tokenizer(folder / "chat_tokenizer", plan.held_share)))
    model = Writer(Shape(-(-tokenizer.get_vocab_size() // 32) * 32))
    # Muon in float32: few processors multiply bf16 fast.
    trainer = FlatTrainer(
        {"writer": model}, Rank(0, 1, "cpu"), Optimizer((0.9, 0.98), plan.decay, plan.muon, plain=True)
    )
    progress = {"spent": 0.0, "texts": 0, "tokens": 0}
    if resume:
        tensors, notes = store.load(folder / "chat_checkpoint.safetensors")
        trainer.load(tensors, notes["trainer"])
        progress = notes["progress"]
    feed = Feed(tokenizer, plan, f"{plan.seed} {trainer.steps}")
    clock, looked, smooth = Clock(plan.minutes, progress["spent"], plan.until), progress["spent"], 0.0
    while clock.fraction < 1:
        ids, learnt = feed.next()
        trainer.zero()
        loss = _loss(model, ids, learnt)
        loss.backward()
        trainer.step(plan.peak * _share(trainer.steps, clock.fraction))
        progress["texts"] += len(ids)
        progress["tokens"] += ids.numel()
        smooth = loss.item() if not smooth else smooth * 0.95 + loss.item() * 0.05
        if trainer.steps % 20 == 0:
            print(f"step {trainer.steps} texts {progress['texts']} loss {smooth:.4f} left {clock.left}", flush=True)
        if clock.spent - looked > _LOOK_EVERY or clock.fraction >= 1:
            looked = progress["spent"] = clock.spent
            _keep(folder, trainer, plan, progress)


def _loss(model: Writer, ids: Tensor, learnt: Tensor) -> Tensor:
    """Of what is learnt; the rest has no words made of it."""
    kept = learnt[:, 1:] != _NOT_LEARNT
    return F.cross_entropy(model.words(model(ids)[:, :-1][kept]), learnt[:, 1:][kept])


def _share(steps: int, fraction: float) -> float:
    """Of the learning rate: it rises for a few steps, and falls in the last third of the time."""
    return min(1.0, (steps + 1) / 50, max(0.02, 3 * (1 - fraction)))


def _keep(folder: Path, trainer: FlatTrainer, plan: ChatPlan, progress: dict[str, float]) -> None:
    notes = {"progress": progress, "plan": {k: v for k, v in asdict(plan).items() if k != "run"}}
    store.save(folder / "chat.safetensors", trainer.average_states()["writer"], notes)
    kept = {"trainer": trainer.notes_to_keep(), "progress": progress}
    store.save(folder / "chat_checkpoint.safetensors", trainer.tensors(), kept)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--resume", action="store_true", help="continue the run, its optimizer and its clock")
    for name, value in asdict(ChatPlan()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    options = vars(parser.parse_args())
    resume = options.pop("resume")
    train(ChatPlan(**options), resume)


if __name__ == "__main__":
    main()
