"""A row's text → prompt and completion → `input_ids` and `completion_mask`.

Prompt and answer are tokenized once each and joined as ids, so that no token at their border
depends on its neighbour and an evaluation prompt is, id by id, what training saw.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from alpacare_sft.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from alpacare_sft.recipe.sections import PromptSection

_ANSWER_PLACE, _SYSTEM_PLACE = "\u2402answer\u2402", "\u2402system\u2402"
_TEXT_ALONE = "{{ messages[0]['content'] }}"  # a chat template that writes nothing of its own


def format_sections(instruction: str, given: str, system: str | None = None) -> str:
    """Instruction, optional Input and Answer headings; ends where the answer begins."""
    parts = [system] if system else []
    parts.append(f"### Instruction:\n{instruction}")
    if given:
        parts.append(f"### Input:\n{given}")
    parts.append("### Answer:\n")
    return "\n\n".join(parts)


@dataclass(frozen=True)
class PromptEncoder:
    """Turns rows into token ids for one tokenizer and one prompt section."""

    tokenizer: PreTrainedTokenizerBase
    prompt: PromptSection

    def encode_prompt(self, instruction: str, given: str, system: str | None = None) -> list[int]:
        """Token ids of everything before the answer, shape (P,); one BOS if the model has one.

        Args:
            instruction: of the row.
            given: its input, may be empty.
            system: the row's own system turn, in the place of `prompt.system`.

        Raises:
            ModelError: if the chat template refuses the conversation, or a control token arises from the texts.
        """
        return self._prompts([(instruction, given, system)])[0]

    def _prompts(self, rows: Sequence[tuple[str, str, str | None]]) -> list[list[int]]:
        turns = [(text, given, self.prompt.system if system is None else system) for text, given, system in rows]
        if self.prompt.format == "chat":
            return [self._chat_ids(_messages(*turn)) for turn in turns]
        bos = [self.tokenizer.bos_token_id] if self._adds_bos else []
        return [bos + ids for ids in self._ids_of([format_sections(*turn) for turn in turns])]

    def encode_completions(self, outputs: Sequence[str]) -> list[list[int]]:
        """Token ids of answers, each with its end token, shape (C,) each."""
        return [ids + self._end_ids for ids in self._ids_of(outputs)]

    def end_token_id(self) -> int:
        """The last token of every whole answer: what the model learns to stop with."""
        return self._end_ids[-1]

    def encode_row(self, row: Mapping[str, Any], max_length: int) -> dict[str, Any]:
        """One row as the model is trained on it; see `encode_rows`."""
        return self.encode_rows([row], max_length)[0]

    def encode_rows(self, rows: Sequence[Mapping[str, Any]], max_length: int) -> list[dict[str, Any]]:
        """Rows as the model is trained on them; their texts are tokenized in one call.

        Args:
            rows: texts `instruction`, `input` and `output`, and `system` where a row has a system turn of its own.
            max_length: longest sequence, in tokens.

        Returns:
            For each row `input_ids` and `completion_mask`, each of shape (T,) with T ≤ max_length;
            `prompt_tokens` and `completion_tokens` before truncation; `truncated`.
        """
        prompts = self._prompts([(row["instruction"], row["input"], row.get("system")) for row in rows])
        completions = self.encode_completions([row["output"] for row in rows])
        return [_joined(*pair, max_length) for pair in zip(prompts, completions, strict=True)]

    def default_system(self) -> str | None:
        """The system prompt that the chat template writes into these prompts of its own accord, if it does.

        With an empty `prompt.system` that is a template which ignores it.
        """
        if self.prompt.format == "sections" or self.prompt.system:
            return None
        own = self._chat_text(_messages("a", "", None))
        try:
            before, after = self._chat_text(_messages("a", "", _SYSTEM_PLACE)).split(_SYSTEM_PLACE)
        except (ModelError, ValueError):  # no system role, or the turn stands twice or not at all
            return None
        if not (own.startswith(before) and own.endswith(after) and len(own) > len(before) + len(after)):
            return None
        text = own[len(before) : len(own) - len(after)]
        return text if text in self._chat_text(_messages("a", "", self.prompt.system)) else None

    def _ids_of(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of rows' texts, of which none is a control token."""
        if not texts:  # transformers 5 raises IndexError for an empty batch
            return []
        encoded = self.tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return [
            list(ids) if self._controls.isdisjoint(ids) else self._without_controls(text)
            for text, ids in zip(texts, encoded, strict=True)
        ]

    def _without_controls(self, text: str) -> list[int]:
        ids = self._sanitized_ids([{"role": "user", "content": text}], _TEXT_ALONE)
        self._refuse_controls(self._controls.intersection(ids))
        return ids

    def _chat_ids(self, messages: list[dict[str, str]]) -> list[int]:
        """Token ids of a chat, of which the template wrote every control token."""
        written = self._chat_text(messages)
        if messages[0]["role"] == "system" and messages[0]["content"].strip() not in written:
            raise ModelError(
                "prompt.system, or a row's own system turn: the model's chat template does not write it. "
                "Leave it out, or use prompt.format: sections."
            )
        ids = self._template_ids(written)
        texts = "\n".join(message["content"] for message in messages)
        of_texts = self._controls.intersection(self._template_ids(texts))
        if not of_texts:
            return ids
        ids = self._sanitized_ids(messages)
        own = self._template_ids(self._chat_text([{**message, "content": "a"} for message in messages]))
        self._refuse_controls(token for token in of_texts if ids.count(token) > own.count(token))
        return ids

    def _template_ids(self, text: str) -> list[int]:
        """Token ids of text in which control tokens are meant."""
        return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=False)["input_ids"])

    def _sanitized_ids(self, messages: list[dict[str, str]], template: str | None = None) -> list[int]:
        """Token ids of a chat whose texts hold what looks like a control token."""
        tokenizer = copy.copy(self.tokenizer)  # what is set here would be saved with an adapter
        tokenizer.chat_control_tokens = tokenizer.convert_ids_to_tokens(sorted(self._controls))
        try:
            return list(self._render(messages, tokenizer, chat_template=template, sanitize_control_tokens=True))
        except ValueError as error:  # the vocabulary itself holds the token, outside the added ones
            raise ModelError(f"model.model_name_or_path: {error}. Take that text out of the rows.") from error

    @cached_property
    def _controls(self) -> frozenset[int]:
        """Ids that only a template and the ends of a prompt may have: those of added tokens, special or not.

        White space and single characters that were added are text (GPT-NeoX and Gemma have such tokens), and the
        unknown token stands for text.
        """
        tokenizer = self.tokenizer
        ends = {tokenizer.bos_token_id, tokenizer.eos_token_id}
        added = {
            token
            for token, added in tokenizer.added_tokens_decoder.items()
            if added.special or (len(added.content) > 1 and not added.content.isspace())
        }
        return frozenset(added - ({tokenizer.unk_token_id} - ends))

    def _refuse_controls(self, ids: Iterable[int]) -> None:
        """Refuse control tokens that arose from a row's text.

        Raises:
            ModelError: which they are, if there is one.
        """
        if names := self.tokenizer.convert_ids_to_tokens(sorted(set(ids))):
            raise ModelError(
                f"model.model_name_or_path: its tokenizer makes the control token {names[0]} of a row's plain text. "
                "Take that text out of the rows."
            )

    @cached_property
    def _adds_bos(self) -> bool:
        bos = self.tokenizer.bos_token_id
        return bos is not None and self.tokenizer("a")["input_ids"][0] == bos

    def _chat_text(self, messages: list[dict[str, str]]) -> str:
        return str(self._render(messages, self.tokenizer, tokenize=False))

    def _render(self, messages: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase, **options: Any) -> Any:
        from jinja2 import TemplateError

        unanswered = messages[-1]["role"] != "assistant"
        try:
            return tokenizer.apply_chat_template(
                messages, add_generation_prompt=unanswered, date_string=self.prompt.date, return_dict=False, **options
            )
        except TemplateError as error:  # such as one without a system role
            remedy = "Use prompt.format: sections"
            if messages[0]["role"] == "system":
                remedy = "Leave prompt.system and the rows' own system turns out"
            raise ModelError(
                f"prompt.format: the model's chat template refuses a conversation: {error}. {remedy}."
            ) from error

    @cached_property
    def _end_ids(self) -> list[int]:
        """What ends an answer: the end token, or what the chat template writes up to its own."""
        eos: int = self.tokenizer.eos_token_id
        if self.prompt.format == "sections":
            return [eos]
        answered = self._chat_text(_messages("a", "", self.prompt.system, _ANSWER_PLACE))
        ids = self._template_ids(answered.split(_ANSWER_PLACE)[1])
        special = next((i for i, token in enumerate(ids) if token in self.tokenizer.all_special_ids), None)
        return [eos] if special is None else ids[: special + 1]


def _joined(prompt: list[int], completion: list[int], max_length: int) -> dict[str, Any]:
    ids = (prompt + completion)[:max_length]
    prompt_length = min(len(prompt), max_length)
    return {
        "input_ids": ids,
        "completion_mask": [0] * prompt_length + [1] * (len(ids) - prompt_length),
        "prompt_tokens": len(prompt),
        "completion_tokens": len(completion),
        "truncated": len(prompt) + len(completion) > max_length,
    }


def _messages(instruction: str, given: str, system: str | None, answer: str | None = None) -> list[dict[str, str]]:
    """A conversation; an empty system text is a system turn, None is none."""
    user = f"{instruction}\n\n{given}" if given else instruction
    turns = (("system", system), ("user", user), ("assistant", answer))
    return [{"role": role, "content": text} for role, text in turns if text is not None]


def check_encoder(encoder: PromptEncoder) -> None:
    """Refuse a tokenizer or template that would train on something else than it seems.

    Raises:
        ModelError: if there is no end token, no chat template where one is asked for, a template
            that writes today's date, or two BOS.
    """
    tokenizer, prompt = encoder.tokenizer, encoder.prompt
    if tokenizer.eos_token_id is None:
        raise ModelError("model.model_name_or_path: its tokenizer has no end token, so answers would never end.")
    if prompt.format == "chat":
        template = tokenizer.chat_template
        if not template:
            raise ModelError(
                "prompt.format: chat needs a model with a chat template, this one has none. "
                "Use prompt.format: sections, or the model's instruct version."
            )
        if "strftime_now" in str(template) and "date_string" not in str(template):
            raise ModelError(
                "prompt.format: the model's chat template writes today's date and takes none, so each day would train "
                "on other tokens. Use prompt.format: sections."
            )
        _check_conversation(encoder)
    ids = encoder.encode_prompt("a", "b")
    if tokenizer.bos_token_id is not None and ids[:2] == [tokenizer.bos_token_id] * 2:
        raise ModelError("prompt: the prompt begins with two BOS tokens. Use prompt.format: sections.")


def _check_conversation(encoder: PromptEncoder) -> None:
    system = encoder.prompt.system
    answered = encoder._chat_text(_messages("a", "", system, _ANSWER_PLACE))
    if encoder.encode_prompt("a", "") != encoder._template_ids(answered.split(_ANSWER_PLACE)[0]):
        raise ModelError(
            "prompt.format: the model's chat template writes another prompt when an answer follows, so training "
            "and answering would differ. Use prompt.format: sections."
        )
