"""Answers: batched, left-padded, sorted by length, each with how it ended."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Literal

import torch

from alpacare_sft.runtime import free_memory, is_out_of_memory, say

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteriaList

    from alpacare_sft.recipe.sections import GenerateSection


# A heading of the sections prompt on a line of its own: the model has begun a new question by itself.
_RUN_ON = re.compile(r"^### Instruction:[ \t]*$", re.MULTILINE)
_STOP = "\n### Instruction:\n"
CUT = " [… cut off at the length limit]"


@dataclass(frozen=True)
class Answer:
    """What a model wrote.

    Attributes:
        text: without special tokens, up to where the model began a new question by itself.
        num_tokens: tokens written, the end token included.
        end: `end_token`, `length` if `max_new_tokens` cut it, or `run_on` if a new question was cut off.
    """

    text: str
    num_tokens: int
    end: Literal["end_token", "length", "run_on"]


def end_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, answer_end: int) -> list[int]:
    """Every token that ends an answer: that of the training rows, the tokenizer's, those of the model's settings."""
    configured = model.generation_config.eos_token_id
    own = configured if isinstance(configured, list) else [configured]
    return sorted({token for token in (answer_end, tokenizer.eos_token_id, *own) if token is not None})


def configure_generation(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, generate: GenerateSection, answer_end: int
) -> GenerationConfig:
    """Let a model write by what the recipe says and nothing else, greedily unless it samples.

    Its own penalties and samplers would change the scores unseen; transformers 5.23 takes from them
    whatever an argument of `generate` leaves open.
    """
    from transformers import GenerationConfig

    sampling: dict[str, Any] = (
        {"do_sample": True, "temperature": generate.temperature, "top_p": generate.top_p, "top_k": 0}
        if generate.do_sample
        else {"do_sample": False}
    )
    model.generation_config = GenerationConfig(
        max_new_tokens=generate.max_new_tokens,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=end_token_ids(model, tokenizer, answer_end),
        **sampling,
    )
    return model.generation_config


def stops_at_a_new_question(tokenizer: PreTrainedTokenizerBase) -> StoppingCriteriaList:
    """Ends an answer where the model begins a new question; built once, since it reads the whole vocabulary."""
    from transformers import StoppingCriteriaList, StopStringCriteria

    return StoppingCriteriaList([StopStringCriteria(tokenizer, [_STOP])])


@torch.inference_mode()
def generate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    generate: GenerateSection,
    *,
    answer_end: int,
    seed: int = 0,
    answered: Collection[int] = (),
) -> Iterator[tuple[int, Answer]]:
    """Answer prompts, the longest first, so that a memory that is too small shows at once.

    Padding stands on the left, where it cannot come between a prompt and its answer. Which prompts
    share a batch, and the random numbers of a batch, do not depend on where a run was stopped.

    Args:
        model: with or without an adapter.
        tokenizer: of the model, with a padding token.
        prompts: token ids of each prompt, shape (P_i,).
        generate: lengths, batch size and sampling.
        answer_end: token that training taught to end an answer with.
        seed: of sampled answers.
        answered: indices of prompts whose answers are known; they are not answered again.

    Yields:
        Index of a prompt and its answer, batch by batch.
    """
    config = configure_generation(model, tokenizer, generate, answer_end)
    ends, stops = config.eos_token_id, stops_at_a_new_question(tokenizer)
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    for start in range(0, len(order), generate.batch_size):
        batch = order[start : start + generate.batch_size]
        if all(index in answered for index in batch):
            continue
        torch.manual_seed(seed + start)
        written = _write(model, tokenizer, [prompts[index] for index in batch], stops)
        for index, tokens in zip(batch, written, strict=True):
            if index not in answered:
                yield index, read_answer(tokens, ends, tokenizer)


def _write(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    stops: StoppingCriteriaList,
) -> list[list[int]]:
    """Token ids written after each prompt; where memory runs out, by halves of the batch."""
    padded = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt").to(model.device)
    try:
        written = model.generate(**padded, stopping_criteria=stops)
        return list(written[:, padded["input_ids"].shape[1] :].tolist())
    except RuntimeError as error:
        if len(prompts) == 1 or not is_out_of_memory(error):
            raise
    free_memory()  # after the `except` block, whose traceback holds the failed batch's tensors
    half = len(prompts) // 2
    say(f"out of memory with {len(prompts)} answers at once: {half} at once.")
    return [row for part in (prompts[:half], prompts[half:]) for row in _write(model, tokenizer, part, stops)]


def read_answer(tokens: Sequence[int], ends: Collection[int], tokenizer: PreTrainedTokenizerBase) -> Answer:
    """An answer from the token ids written after the prompt, shape (N,), padded behind where it ended."""
    end = next((place for place, token in enumerate(tokens) if token in ends), None)
    text = tokenizer.decode(tokens[:end], skip_special_tokens=True)
    num_tokens = len(tokens) if end is None else end + 1
    if begun_anew := _RUN_ON.search(text):
        pad = tokenizer.pad_token_id  # stands behind an answer that was stopped there, and may be an end token too
        if end is None or tokens[end] == pad:
            num_tokens = len(tokens) - len(list(takewhile(lambda token: token == pad, reversed(tokens))))
        return Answer(text[: begun_anew.start()].strip(), num_tokens, "run_on")
    return Answer(text.strip(), num_tokens, "length" if end is None else "end_token")


def begins_anew(text: str) -> bool:
    """Whether a text goes on with a new question of the sections prompt."""
    return _RUN_ON.search(text) is not None


def with_notice(answer: Answer, notice: str) -> str:
    """An answer as a person reads it, marked where the length limit cut it; never what is scored or trained on."""
    return f"{answer.text}{CUT if answer.end == 'length' else ''}\n\n{notice}"
