"""One question to a trained adapter, its answer word by word, and the notice after it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TextIO

import torch
from transformers import TextStreamer

from alpacare_sft import runtime
from alpacare_sft.errors import RecipeError
from alpacare_sft.evaluation.compared_models import ComparedModels
from alpacare_sft.evaluation.generation import CUT, begins_anew, configure_generation, stops_at_a_new_question
from alpacare_sft.model.cpu_layout import fast_cpu_layout
from alpacare_sft.model.prompt import PromptEncoder
from alpacare_sft.run.directory import RunDirectory
from alpacare_sft.run.trained import trained_recipe

if TYPE_CHECKING:
    from alpacare_sft.recipe.loading import Recipe


@runtime.prepared_process()
def ask(recipe: Recipe, question: str, given: str = "", *, out: TextIO | None = None) -> str:
    """Answer one question with the adapter of a run, writing the answer as it comes and then the notice.

    Args:
        recipe: with the `output_dir` of a finished run.
        question: the instruction.
        given: the input that belongs to it, if any.
        out: where to write; standard output by default.

    Returns:
        The answer without the notice.

    Raises:
        RecipeError: if there is no question, or it leaves no room for an answer.
        RunError: if there is no trained adapter.
    """
    if not question.strip():
        raise RecipeError("the question must not be empty. Give it in quotes: alpacare-sft ask RECIPE 'What is …?'.")
    run = RunDirectory(recipe.output_dir)
    trained = trained_recipe(run)
    runtime.set_threads()
    models = ComparedModels(trained, recipe, run)
    encoder = PromptEncoder(models.tokenizer, trained.prompt)
    encoded = encoder.encode_prompt(question.strip(), given.strip())
    model = models.with_adapter_attached()  # merging costs more than it saves for one question
    room = (models.context_tokens or sys.maxsize) - len(encoded)
    if room < 1:
        raise RecipeError(f"the question is {len(encoded):,} tokens long, more than the model reads. Shorten it.")
    streamer = _UntilBegunAnew(models.tokenizer, out or sys.stdout)
    torch.manual_seed(recipe.train.seed)
    config = configure_generation(model, models.tokenizer, recipe.generate, encoder.end_token_id())
    config.max_new_tokens = min(recipe.generate.max_new_tokens, room)
    with fast_cpu_layout(model), torch.inference_mode():
        ids = torch.tensor([encoded], device=model.device)
        written: Any = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            stopping_criteria=stops_at_a_new_question(models.tokenizer),
            streamer=streamer,
        )
    full = written.shape[1] - len(encoded) >= config.max_new_tokens
    if full and not streamer.cut and written[0, -1] not in config.eos_token_id:
        streamer.out.write(CUT)
    streamer.out.write(f"\n\n{recipe.safety.disclaimer}\n")
    streamer.out.flush()
    return streamer.told.strip()


class _UntilBegunAnew(TextStreamer):
    """Writes text as it comes; a line that begins with # is held until it shows whether a new question begins."""

    def __init__(self, tokenizer: Any, out: TextIO) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.out, self.told, self.cut, self._held = out, "", False, ""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self._held += text
        if (self.told + self._held).rsplit("\n", 1)[-1].startswith("#") and not stream_end:
            return
        self.cut = self.cut or begins_anew(self.told + self._held)
        if self.cut:
            return
        self.out.write(self._held)
        self.out.flush()
        self.told, self._held = self.told + self._held, ""
