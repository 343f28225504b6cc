"""Answers: batched, left-padded, sorted by length, each with how it ended."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from alpacare_sft.recipe.sections import GenerateSection


# A heading of the sections prompt on a line of its own: the model has begun a new question by itself.
_RUN_ON = re.compile(r"^[ \t]*#{2,}[ \t]*(?:Instruction|Input)\b", re.IGNORECASE | re.MULTILINE)


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


def end_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token that ends an answer: the tokenizer's, and those of the model's own generation settings."""
    told = model.generation_config.eos_token_id
    own = told if isinstance(told, list) else [told]
    return sorted({token for token in (tokenizer.eos_token_id, *own) if token is not None})


def generation_options(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, generate: GenerateSection
) -> dict[str, Any]:
    """Arguments of `model.generate` for one recipe; greedy unless it samples."""
    sampling: dict[str, Any] = (
        {"do_sample": True, "temperature": generate.temperature, "top_p": generate.top_p}
        if generate.do_sample
        else {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    )
    return {
        "max_new_tokens": generate.max_new_tokens,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": end_token_ids(model, tokenizer),
        **sampling,
    }


@torch.inference_mode()
def generate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    generate: GenerateSection,
    *,
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
        seed: of sampled answers.
        answered: indices of prompts whose answers are known; a batch of nothing else is passed over.

    Yields:
        Index of a prompt and its answer, batch by batch.
    """
    options = generation_options(model, tokenizer, generate)
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    for start in range(0, len(order), generate.batch_size):
        batch = order[start : start + generate.batch_size]
        if all(index in answered for index in batch):
            continue
        torch.manual_seed(seed + start)
        ids, mask = pad_left([prompts[index] for index in batch], tokenizer.pad_token_id)
        written = model.generate(input_ids=ids.to(model.device), attention_mask=mask.to(model.device), **options)
        for index, tokens in zip(batch, written[:, ids.shape[1] :].tolist(), strict=True):
            yield index, read_answer(tokens, options["eos_token_id"], tokenizer)


def pad_left(prompts: Sequence[Sequence[int]], pad_token_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask, each of shape (B, P) with P the longest prompt."""
    width = max(len(prompt) for prompt in prompts)
    ids = [[pad_token_id] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids), torch.tensor(mask)


def read_answer(tokens: Sequence[int], ends: Collection[int], tokenizer: PreTrainedTokenizerBase) -> Answer:
    """An answer from the token ids written after the prompt, shape (N,); what follows an end token is padding."""
    end = next((place for place, token in enumerate(tokens) if token in ends), None)
    num_tokens = len(tokens) if end is None else end + 1
    text = tokenizer.decode(tokens[:end], skip_special_tokens=True)
    if begun_anew := _RUN_ON.search(text):
        return Answer(text[: begun_anew.start()].strip(), num_tokens, "run_on")
    return Answer(text.strip(), num_tokens, "length" if end is None else "end_token")


def begins_anew(text: str) -> bool:
    """Whether a text goes on with a new question of the sections prompt."""
    return _RUN_ON.search(text) is not None


def with_notice(text: str, notice: str) -> str:
    """An answer as a person reads it; what is scored or learnt never passes here."""
    return f"{text}\n\n{notice}"
