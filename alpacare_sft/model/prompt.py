"""A row's text → prompt and completion → `input_ids` and `completion_mask`.

Prompt and answer are tokenized once each and joined as ids, so that no token at their border
depends on its neighbour and an evaluation prompt is, id by id, what training saw.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from alpacare_sft.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from alpacare_sft.recipe.sections import PromptSection

_ANSWER_PLACE = "\u2402answer\u2402"


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
    """Turns rows into token ids for one tokenizer and one prompt section.

    Picklable, so that `datasets.map` can use it in several processes.
    """

    tokenizer: PreTrainedTokenizerBase
    prompt: PromptSection

    def encode_prompt(self, instruction: str, given: str) -> list[int]:
        """Token ids of everything before the answer, shape (P,); one BOS if the model has one."""
        if self.prompt.format == "chat":
            return self._ids(self._chat_text(instruction, given), special=True)
        ids = self._ids(format_sections(instruction, given, self.prompt.system))
        bos = self.tokenizer.bos_token_id
        return [bos, *ids] if self._adds_bos() else ids

    def encode_completion(self, output: str) -> list[int]:
        """Token ids of the answer and its end token, shape (C,)."""
        return self._ids(output) + self._end_ids()

    def end_token_id(self) -> int:
        """The last token of every whole answer: what the model learns to stop with."""
        return self._end_ids()[-1]

    def encode_row(self, row: Mapping[str, Any], max_length: int) -> dict[str, Any]:
        """One row as the model is trained on it.

        Args:
            row: texts `instruction`, `input` and `output`.
            max_length: longest sequence, in tokens.

        Returns:
            `input_ids` and `completion_mask`, each of shape (T,) with T ≤ max_length;
            `prompt_tokens` and `completion_tokens` before truncation; `truncated`.
        """
        prompt = self.encode_prompt(row["instruction"], row["input"])
        completion = self.encode_completion(row["output"])
        ids = (prompt + completion)[:max_length]
        prompt_length = min(len(prompt), max_length)
        return {
            "input_ids": ids,
            "completion_mask": [0] * prompt_length + [1] * (len(ids) - prompt_length),
            "prompt_tokens": len(prompt),
            "completion_tokens": len(completion),
            "truncated": len(prompt) + len(completion) > max_length,
        }

    def _ids(self, text: str, special: bool = False) -> list[int]:
        """Token ids; what looks like a special token is one only in a template's text, never in a row's."""
        return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=not special)["input_ids"])

    def _adds_bos(self) -> bool:
        bos = self.tokenizer.bos_token_id
        return bos is not None and self.tokenizer("a")["input_ids"][0] == bos

    def _chat_text(self, instruction: str, given: str, answer: str | None = None) -> str:
        user = f"{instruction}\n\n{given}" if given else instruction
        messages = [{"role": "system", "content": self.prompt.system}] if self.prompt.system else []
        messages.append({"role": "user", "content": user})
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
        return str(
            self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=answer is None, date_string=self.prompt.date
            )
        )

    def _end_ids(self) -> list[int]:
        """What ends an answer: the end token, or what the chat template writes up to its own."""
        eos: int = self.tokenizer.eos_token_id
        if self.prompt.format == "sections":
            return [eos]
        ids = self._ids(self._chat_text("a", "", answer=_ANSWER_PLACE).split(_ANSWER_PLACE)[1], special=True)
        special = next((i for i, token in enumerate(ids) if token in self.tokenizer.all_special_ids), None)
        return [eos] if special is None else ids[: special + 1]


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
    from jinja2 import TemplateError

    try:
        asked = encoder.encode_prompt("a", "")
        answered = encoder._chat_text("a", "", answer=_ANSWER_PLACE)
    except TemplateError as error:  # such as one without a system role
        remedy = "Leave prompt.system out" if encoder.prompt.system else "Use prompt.format: sections"
        raise ModelError(
            f"prompt.format: the model's chat template refuses a conversation: {error}. {remedy}."
        ) from None
    if asked != encoder._ids(answered.split(_ANSWER_PLACE)[0], special=True):
        raise ModelError(
            "prompt.format: the model's chat template writes another prompt when an answer follows, so training "
            "and answering would differ. Use prompt.format: sections."
        )
