"""Answers: batched, left-padded, sorted by length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from alpacare_sft.recipe.sections import GenerateSection


@dataclass(frozen=True)
class Answer:
    """What a model wrote.

    Attributes:
        text: without special tokens.
        num_tokens: tokens written, the end token included.
        finished: whether the end token was written before `max_new_tokens`.
    """

    text: str
    num_tokens: int
    finished: bool


def end_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token that ends an answer: the tokenizer's, and those of the model's own generation settings."""
    told = model.generation_config.eos_token_id
    own = told if isinstance(told, list) else [told]
    return sorted({token for token in (tokenizer.eos_token_id, *own) if token is not None})


@torch.inference_mode()
def generate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    generate: GenerateSection,
) -> Iterator[tuple[int, Answer]]:
    """Answer prompts, the longest first, so that a memory that is too small shows at once.

    Padding stands on the left, where it cannot come between a prompt and its answer.

    Args:
        model: with or without an adapter.
        tokenizer: of the model, with a padding token.
        prompts: token ids of each prompt, shape (P_i,).
        generate: lengths, batch size and sampling.

    Yields:
        Index of a prompt and its answer, batch by batch.
    """
    ends = end_token_ids(model, tokenizer)
    sampling: dict[str, Any] = (
        {"do_sample": True, "temperature": generate.temperature, "top_p": generate.top_p}
        if generate.do_sample
        else {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    )
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    for start in range(0, len(order), generate.batch_size):
        batch = order[start : start + generate.batch_size]
        ids, mask = pad_left([prompts[index] for index in batch], tokenizer.pad_token_id)
        written = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=generate.max_new_tokens,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=ends,
            **sampling,
        )[:, ids.shape[1] :]
        for index, tokens in zip(batch, written.tolist(), strict=True):
            yield index, _read_answer(tokens, ends, tokenizer)


def pad_left(prompts: Sequence[Sequence[int]], pad_token_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask, each of shape (B, P) with P the longest prompt."""
    width = max(len(prompt) for prompt in prompts)
    ids = [[pad_token_id] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids), torch.tensor(mask)


def _read_answer(tokens: list[int], ends: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> Answer:
    end = next((place for place, token in enumerate(tokens) if token in ends), None)
    finished = end is not None
    kept = tokens if end is None else tokens[:end]
    text = tokenizer.decode(kept, skip_special_tokens=True).strip()
    return Answer(text, len(kept) + finished, finished)
