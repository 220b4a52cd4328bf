"""The chat model's training: its network is transformers' own, and what it is taught is what it is graded by."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import Qwen3Config, Qwen3ForCausalLM

from tools.train_shapes.chat import ChatPlan, Feed, load_or_train_tokenizer, opened, train
from tools.train_shapes.chat_grade import grade, names, prompt_of
from tools.train_shapes.data import Renderer, held_out
from tools.train_shapes.talk import CLOSE, OPEN, Talk, draw_talk, held_talks
from tools.train_shapes.writer import Shape, Writer


def test_the_network_is_that_of_transformers() -> None:
    torch.manual_seed(0)
    shape = Shape(64, num_hidden_layers=2)
    ours = Writer(shape)
    theirs = Qwen3ForCausalLM(Qwen3Config(**shape.config)).eval()
    theirs.load_state_dict(ours.state_dict() | {"lm_head.weight": ours.model.embed_tokens.weight})
    ids = torch.randint(0, 64, (3, 11))
    with torch.no_grad():
        assert torch.allclose(ours.words(ours(ids)), theirs(ids).logits, atol=1e-5)


def test_conversations_hold_nothing_that_is_held_out_and_those_of_the_yard_stick_only_that() -> None:
    rng = random.Random(3)
    talks = [draw_talk(rng, 0.1) for _ in range(300)]
    wanted = [turn.wanted for talk in talks for turn in talk.turns if turn.wanted is not None]
    assert wanted and not any(held_out(each.scene, 0.1) for each in wanted)
    asked = [talk.turns[-1].wanted for talk in held_talks(60, 0.1)]
    assert all(each is not None and held_out(each.scene, 0.1) for each in asked)


def test_the_answers_that_are_taught_are_right_by_the_yard_stick() -> None:
    talks, renderer = list(held_talks(40, 0.1)), Renderer()

    def taught(talks: object) -> list[tuple[str, Image.Image | None]]:
        assert isinstance(talks, list)
        return [(talk.turns[-1].answer, Image.fromarray(renderer.paint(talk.turns[-1].wanted.scene))) for talk in talks]

    report = grade(taught, talks)
    assert (report.right, report.exact, report.shown) == (1.0, 1.0, 1.0), report.failures
    silent = grade(lambda talks: [("I cannot draw that.", None) for _ in talks], talks)
    assert (silent.right, silent.shown) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("answer", "prompt"),
    [
        (f"Here is {OPEN}a red circle{CLOSE}.", "a red circle"),
        (f"Here is {OPEN}a red circle.", None),
        (f"here is {OPEN}a red circle{CLOSE}", None),
        (f"{CLOSE}Here is a red circle{OPEN}.", None),
        ("Hello!", None),
    ],
)
def test_a_well_formed_answer_is_one_sentence_with_one_mark(answer: str, prompt: str | None) -> None:
    assert prompt_of(answer) == prompt


def test_a_prompt_names_things_in_their_order() -> None:
    [talk] = [talk for talk in held_talks(60, 0.1) if len(things(talk)) == 2][:1]
    scene = talk.turns[-1].wanted.scene  # type: ignore[union-attr]
    first, second = (f"{thing.colour} {thing.shape}" for thing in scene.things)
    assert names(prompt_of(talk.turns[-1].answer) or "", scene)
    assert not names(f"a {second} above a {first}", scene)


def things(talk: Talk) -> tuple[object, ...]:
    wanted = talk.turns[-1].wanted
    return () if wanted is None else wanted.things


def test_a_batch_learns_answers_only_and_a_run_keeps_what_it_learnt(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    plan = ChatPlan(run=str(tmp_path), minutes=0.02, tokens=256, lines=0.0)
    path = load_or_train_tokenizer(tmp_path / "chat_tokenizer", plan.held_share)
    tokenizer = Tokenizer.from_file(str(path))
    ids, learnt = Feed(tokenizer, plan, "1").next()
    for row, wanted in zip(ids, learnt, strict=True):
        told = tokenizer.decode(row[wanted != -100].tolist(), skip_special_tokens=False)
        assert told.endswith("<|im_end|>") and "<|im_start|>" not in told
    train(plan, resume=False)
    assert (tmp_path / "chat.safetensors").exists()


def test_a_conversation_is_opened_as_the_chat_template_does(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    load_or_train_tokenizer(tmp_path, 0.1)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    messages = draw_talk(random.Random(7), 0.1).messages
    expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert opened(messages) == expected
