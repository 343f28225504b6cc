"""Recipes that cannot work: each is refused by one message that names its key, and nothing is written."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from alpacare_sft.cli import main

BASE = "model: {model_name_or_path: embedded}\ndata: {path: embedded}\noutput_dir: run\n"


class Wrong(NamedTuple):
    """A recipe, as what it adds to the least one or as a whole text, with what its message must hold."""

    told: list[str]
    adds: str = ""
    text: str | bytes | None = None
    overrides: tuple[str, ...] = ()
    path: str = "recipe.yaml"


def data(keys: str) -> str:
    return BASE.replace("{path: embedded}", f"{{path: embedded, {keys}}}")


WRONG = {
    # keys
    "no words for a notice": Wrong(["safety.disclaimer must not be empty"], "safety: {disclaimer: ' '}"),
    "unknown section": Wrong(["trian is not a key", "Did you mean train?"], "trian: {seed: 1}"),
    "unknown key": Wrong(["train.learning_rat is not a key", "train.learning_rate?"], "train: {learning_rat: 1}"),
    "unknown key far from all": Wrong(
        ["prompt.xyz is not a key", "format, overflow, system, date"], "prompt: {xyz: 1}"
    ),
    "nested unknown key": Wrong(["data.clean.strp is not", "data.clean.strip?"], text=data("clean: {strp: true}")),
    "number as a section": Wrong(["1 is not a key"], "1: 2"),
    "value for a section": Wrong(["train must be a section of keys, got 3"], "train: 3"),
    "value for a nested section": Wrong(["data.clean must be a section of keys, got 3"], text=data("clean: 3")),
    "keys missing": Wrong(
        ["model.model_name_or_path must be given", "data.path must be given", "output_dir must be given"],
        text="train: {seed: 1}\n",
    ),
    "keys null": Wrong(
        ["3 faults", "model.model_name_or_path must be given", "data.path must be given", "output_dir must be given"],
        text="model: {model_name_or_path: null}\ndata: null\noutput_dir: ''\n",
    ),
    # values
    "words for numbers": Wrong(
        ["train.num_train_epochs must be a number, got 'many'", "train.seed must be a whole number, got 1.5"],
        "train: {num_train_epochs: many, seed: 1.5}",
    ),
    "word for a truth value": Wrong(["train.fp16 must be true or false, got 'maybe'"], "train: {fp16: maybe}"),
    "number for text": Wrong(["output_dir must be text, got 5. Put it in quotes"], text=BASE.replace("run", "5")),
    "list for text": Wrong(["output_dir must be text, got ['a']"], text=BASE.replace("run", "[a]")),
    "truth value for a number": Wrong(["data.splits.train must be a whole number"], text=data("splits: {train: true}")),
    "number for a path": Wrong(
        ["data.path must be text or a mapping of path, name, split, revision or a list of these, got 5"],
        overrides=("--data.path", "5"),
    ),
    "unknown key of an entry": Wrong(
        ["data.path.splt is not a key. Did you mean data.path.split?"],
        overrides=("--data.path", "{path: them/rows, splt: test}"),
    ),
    "entry without its data set": Wrong(["data.path.path must be given"], overrides=("--data.path", "[{name: a}]")),
    "entry of a local file": Wrong(
        ["data.path.path must be the id of a Hub data set, owner/name, got './rows.jsonl'", "data.path: ./rows.jsonl"],
        overrides=("--data.path", "{path: ./rows.jsonl}"),
    ),
    "two revisions": Wrong(
        ["data.revision must be left out beside an entry"],
        overrides=("--data.path", "{path: them/rows, revision: v1}", "--data.revision", "v2"),
    ),
    "configuration as a key of data": Wrong(
        ["data.name is not a key", "data.path: {path: owner/name, name: …}"], overrides=("--data.name", "labeled")
    ),
    "split as a key of data": Wrong(
        ["data.split is not a key", "data.path: {path: owner/name, split: …}"], overrides=("--data.split", "test")
    ),
    "splits of two sources": Wrong(
        ["data.splits names a split (test), which needs data.path to be one Hub data set, got 2 entries"],
        overrides=("--data.path", "[embedded, them/rows]", "--data.splits.test", "test"),
    ),
    "split without a name": Wrong(["data.splits must hold a size"], overrides=("--data.splits.test", "''")),
    "no path": Wrong(["data.path must name a data set or a file"], overrides=("--data.path", "[]")),
    "negative learning rate": Wrong(["train.learning_rate must be more than 0, got -1"], "train: {learning_rate: -1}"),
    "zero learning rate": Wrong(["train.learning_rate must be more than 0, got 0"], "train: {learning_rate: 0}"),
    "NaN learning rate": Wrong(["train.learning_rate must be a finite number"], "train: {learning_rate: .nan}"),
    "infinite learning rate": Wrong(["train.learning_rate must be a finite number"], "train: {learning_rate: 1e400}"),
    "no epochs": Wrong(["train.num_train_epochs must be more than 0, got 0"], "train: {num_train_epochs: 0}"),
    "no steps": Wrong(["train.max_steps must be at least 1, or -1"], "train: {max_steps: 0}"),
    "negative seed": Wrong(["train.seed must be at least 0, got -1"], "train: {seed: -1}"),
    "negative seed of the draw": Wrong(["data.seed must be a whole number (at least 0)"], text=data("seed: -1")),
    "learning rate as text": Wrong(
        ["train.learning_rate must be a number, got 'high'"], "train: {learning_rate: high}"
    ),
    "short max_length": Wrong(["train.max_length must be at least 8, got 4"], "train: {max_length: 4}"),
    "no max_length": Wrong(["train.max_length must be a number of tokens"], "train: {max_length: null}"),
    "seed past numpy's": Wrong(["train.seed must be less than 2**32"], "train: {seed: 4294967296}"),
    "negative rows": Wrong(["data.splits.test must be a whole number (at least 0)"], text=data("splits: {test: -1}")),
    "one as a fraction": Wrong(["data.splits.train must be", "got 1.0"], text=data("splits: {train: 1.0}")),
    "fractions past one": Wrong(
        ["data.splits must not add up to more than 1, got 1.3"],
        text=data("splits: {train: 0.8, validation: 0.2, test: 0.3}"),
    ),
    "negative length": Wrong(["data.clean.min_characters must be"], text=data("clean: {min_characters: -3}")),
    "no new tokens": Wrong(["generate.max_new_tokens must be"], "generate: {max_new_tokens: 0}"),
    "top_p above 1": Wrong(["generate.top_p must be", "at most 1"], "generate: {top_p: 1.5}"),
    "certainty": Wrong(["evaluate.confidence must be", "at most 0.999"], "evaluate: {confidence: 1.0}"),
    "unknown metric": Wrong(["evaluate.metrics must be a list of one of rouge, loss"], "evaluate: {metrics: [bleu]}"),
    "unknown scheduler": Wrong(
        ["train.lr_scheduler_type must be one of linear, cosine", "got 'linaer'"], "train: {lr_scheduler_type: linaer}"
    ),
    "unknown resume": Wrong(["resume must be one of auto, never, got true"], "resume: true"),
    "unknown precision": Wrong(["model.dtype must be one of auto, float32"], overrides=("--model.dtype", "fp16")),
    "unknown quantization": Wrong(
        ["model.quantization must be one of nf4"], text=BASE.replace("embedded}\nd", "embedded, quantization: int8}\nd")
    ),
    # LoRA
    "LoRA of nothing": Wrong(
        [
            "lora.r must be at least 1",
            "lora.lora_alpha must be more than 0",
            "lora.lora_dropout must be",
            "lora.target_",
        ],
        "lora: {r: 0, lora_alpha: 0, lora_dropout: 1.0, target_modules: []}",
    ),
    "LoRA on the head": Wrong(["lora.target_modules must not hold lm_head"], "lora: {target_modules: [lm_head]}"),
    "whole layers": Wrong(["lora.modules_to_save must be empty"], "lora: {modules_to_save: [embed_tokens]}"),
    "random start that is not saved": Wrong(
        ["lora.init_lora_weights must not be pissa_niter_", "Use pissa or olora"],
        'lora: {init_lora_weights: "pissa_niter_[number of iters]"}',
    ),
    "random start with its number": Wrong(
        ["lora.init_lora_weights must be true or false or one of", "'pissa_niter_4'"],
        "lora: {init_lora_weights: pissa_niter_4}",
    ),
    "patterns of LoRA": Wrong(
        [
            "lora.target_modules must be names or a regular expression, got '('",
            "lora.rank_pattern must give each layer a number above 0, got 0 for q_proj.",
            "lora.alpha_pattern must be names or a regular expression, got '['",
        ],
        "lora: {target_modules: '(', rank_pattern: {q_proj: 0}, alpha_pattern: {'[': 2}}",
    ),
    "numbers beyond their range": Wrong(
        [
            "train.adam_beta1 must be at least 0 and below 1, got 2.",
            "train.adam_beta2 must be at least 0, got -1.",
            "train.label_smoothing_factor must be at least 0 and below 1, got 5.",
            "train.neftune_noise_alpha must be at least 0, got -5.",
            "train.pad_to_multiple_of must be at least 1, got 0.",
            "train.train_sampling_strategy must be one of random, sequential,",
        ],
        "train: {adam_beta1: 2.0, adam_beta2: -1.0, label_smoothing_factor: 5.0, neftune_noise_alpha: -5.0, "
        "pad_to_multiple_of: 0, train_sampling_strategy: sequentail}",
    ),
    "LoftQ": Wrong(["lora.init_lora_weights must not be loftq"], "lora: {init_lora_weights: loftq}"),
    "short name of alpha": Wrong(["lora.alpha", "Use lora.lora_alpha"], "lora: {alpha: 32}"),
    # upstream's old names
    "warmup_ratio": Wrong(["train.warmup_ratio", "Use train.warmup_steps"], "train: {warmup_ratio: 0.1}"),
    "group_by_length": Wrong(["train.group_by_length", "train_sampling_strategy"], "train: {group_by_length: true}"),
    "evaluation_strategy": Wrong(
        ["train.evaluation_strategy", "Use train.eval_strategy"], "train: {evaluation_strategy: no}"
    ),
    "gradient_checkpointing": Wrong(
        ["train.gradient_checkpointing", "train.activation_checkpointing"], "train: {gradient_checkpointing: true}"
    ),
    "torch_dtype": Wrong(["train.torch_dtype", "Use model.dtype"], "train: {torch_dtype: auto}"),
    "torch_dtype of the model": Wrong(
        ["model.torch_dtype", "Use model.dtype"], overrides=("--model.torch_dtype", "auto")
    ),
    "overwrite_output_dir": Wrong(["train.overwrite_output_dir", "--overwrite"], "train: {overwrite_output_dir: true}"),
    "max_seq_length": Wrong(["train.max_seq_length", "Use train.max_length"], "train: {max_seq_length: 512}"),
    "tokenizer": Wrong(["train.tokenizer", "model.model_name_or_path"], "train: {tokenizer: x}"),
    # refused
    "train.output_dir": Wrong(["train.output_dir cannot be set in a recipe", "at the top"], "train: {output_dir: x}"),
    "completion_only_loss": Wrong(["train.completion_only_loss cannot be set"], "train: {completion_only_loss: true}"),
    "push_to_hub": Wrong(["train.push_to_hub cannot be set", "a step of its own"], "train: {push_to_hub: true}"),
    "hub_token": Wrong(["train.hub_token cannot be set in a recipe", "environment"], "train: {hub_token: secret}"),
    "model_init_kwargs": Wrong(
        ["train.model_init_kwargs cannot be set", "section model"], "train: {model_init_kwargs: {}}"
    ),
    "resume_from_checkpoint": Wrong(
        ["train.resume_from_checkpoint", "resume: auto"], "train: {resume_from_checkpoint: x}"
    ),
    "lora.task_type": Wrong(["lora.task_type cannot be set in a recipe", "CAUSAL_LM"], "lora: {task_type: CAUSAL_LM}"),
    "lora.loftq_config": Wrong(
        ["lora.loftq_config cannot be set in a recipe", "quantization: nf4"], "lora: {loftq_config: {loftq_bits: 4}}"
    ),
    # across keys
    "best checkpoint never saved": Wrong(
        ["train.save_steps must be a multiple of train.eval_steps", "got 100 and 30"],
        "train: {eval_strategy: steps, eval_steps: 30, save_steps: 100, load_best_model_at_end: true}",
    ),
    "two rhythms": Wrong(
        ["train.load_best_model_at_end needs", "got steps and epoch"],
        "train: {eval_strategy: epoch, save_strategy: steps, load_best_model_at_end: true}",
    ),
    "two precisions": Wrong(["train.fp16 and train.bf16 must not both"], "train: {fp16: true, bf16: true}"),
    "one step of warmup": Wrong(["train.warmup_steps must be", "1.0"], "train: {warmup_steps: 1.0}"),
    "evaluation on no rows": Wrong(
        ["train.eval_strategy: steps needs validation rows", "data.splits.validation is 0"],
        "train: {eval_strategy: steps}",
        overrides=("--data.splits.validation", "0"),
    ),
    "column of no such row": Wrong(["data.columns.question must be one of"], text=data("columns: {question: x}")),
    "constant answer": Wrong(["data.constants.output must be"], text=data("constants: {output: x}")),
    "several faults": Wrong(
        ["5 faults in", "train.sed is not", "foo is not", "train.fp16 must", "train.learning_rate must", "lora.r must"],
        "train: {learning_rate: -1, sed: 2, fp16: x}\nlora: {r: 0}\nfoo: 1",
    ),
    # upstream would refuse these late, or not at all
    "schedule without its arguments": Wrong(
        ["train.lr_scheduler_kwargs must suit", "cosine_with_min_lr, got none", "min_lr or min_lr_rate"],
        "train: {lr_scheduler_type: cosine_with_min_lr}",
    ),
    "arguments of another schedule": Wrong(
        ["train.lr_scheduler_kwargs must suit", "linear, got {'min_lr': 0.1}"],
        "train: {lr_scheduler_kwargs: {min_lr: 0.1}}",
    ),
    "optimizer without its package": Wrong(["train.optim: lomo cannot be used here", "pip"], "train: {optim: lomo}"),
    "optimizer's arguments": Wrong(["with train.optim_args 'fast' cannot be used"], "train: {optim_args: fast}"),
    "liger without its package": Wrong(["train.use_liger_kernel needs its package"], "train: {use_liger_kernel: true}"),
    "offloading without a card": Wrong(
        ["train.activation_offloading needs a GPU"], "train: {activation_offloading: true, use_cpu: true}"
    ),
    "unknown compiler": Wrong(["train.torch_compile_backend must be"], "train: {torch_compile_backend: gcc}"),
    "unknown loss": Wrong(["train.loss_type must be one of nll, dft, got l2"], "train: {loss_type: l2}"),
    "unknown log level": Wrong(["train.log_level must be one of", "got loud"], "train: {log_level: loud}"),
    "workers that are none": Wrong(
        ["train.dataloader_persistent_workers needs train.dataloader_num_workers"],
        "train: {dataloader_persistent_workers: true}",
    ),
    "no padding": Wrong(["train.padding_free needs train.packing"], "train: {padding_free: true}"),
    "last batch dropped": Wrong(["train.dataloader_drop_last cannot be set"], "train: {dataloader_drop_last: true}"),
    "FSDP": Wrong(["train.fsdp cannot be set", "the whole model"], "train: {fsdp: full_shard}"),
    "DeepSpeed": Wrong(["train.deepspeed cannot be set", "the whole model"], "train: {deepspeed: zero3.json}"),
    # text
    "anchors past all bounds": Wrong(
        ["recipe.yaml: not valid YAML: its anchors stand for more than 100,000 values"],
        "train:\n  seed: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
        + "".join(f"  x{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)),
    ),
    "duplicate key": Wrong(["train.seed must stand once", "line 6 after line 5"], "train:\n  seed: 1\n  seed: 2"),
    "duplicate section": Wrong(["output_dir must stand once", "line 4 after line 3"], "output_dir: other"),
    "tab": Wrong(["recipe.yaml, line 5: not valid YAML", "YAML takes no tabs"], "train:\n\tseed: 1"),
    "open brace": Wrong(["recipe.yaml, line 5: not valid YAML", "expected ',' or '}'"], "train: {seed: 1"),
    "unknown anchor": Wrong(["recipe.yaml, line 4: not valid YAML", "undefined alias"], "train: *other"),
    "anchor on itself": Wrong(["train.seed must be a whole number"], "train: &train {seed: *train}"),
    "object of a language": Wrong(["line 4: not valid YAML", "tag"], "train: !!python/object:os.system {}"),
    "two documents": Wrong(["line 4: not valid YAML", "found another document"], "---\nseed: 1"),
    "control character": Wrong(["recipe.yaml: not valid YAML", "#x0000"], "train: \0"),
    "empty": Wrong(["recipe.yaml must be a mapping of sections", "got nothing"], text=""),
    "only comments": Wrong(["recipe.yaml must be a mapping of sections", "got nothing"], text="# nothing yet\n"),
    "list": Wrong(["recipe.yaml must be a mapping of sections", "got list"], text="- model\n- data\n"),
    "sentence": Wrong(["recipe.yaml must be a mapping of sections", "got str"], text="Train a model, please.\n"),
    "Latin-1": Wrong(["recipe.yaml must be UTF-8 text, line 4 is not"], text=(BASE + "# fièvre\n").encode("latin-1")),
    "UTF-16": Wrong(["recipe.yaml must be UTF-8 text"], text=BASE.encode("utf-16")),
    "no file": Wrong(["recipy.yaml must be a recipe file", "Did you mean", "recipe.yaml?"], path="recipy.yaml"),
    "directory": Wrong(["folder must be a recipe file, got a directory"], path="folder"),
    # command line
    "override without value": Wrong(["--train.seed must be followed by a value"], overrides=("--train.seed",)),
    "override before another": Wrong(
        ["--train.seed must be followed by a value"], overrides=("--train.seed", "--train.max_steps", "3")
    ),
    "override through a value": Wrong(["output_dir.x must name a key of a section"], overrides=("--output_dir.x", "1")),
    "override of an unknown key": Wrong(["train.sed is not a key", "train.seed?"], overrides=("--train.sed", "1")),
    "override without a key": Wrong(["must be a dotted key", "got --train."], overrides=("--train.", "1")),
    "override that is no YAML": Wrong(
        ["train.seed must be a whole number, got '{['"], overrides=("--train.seed", "{[")
    ),
    "override without dashes": Wrong(["one recipe and overrides", "got 'seed=1'"], overrides=("seed=1",)),
    "commit read as a number": Wrong(
        ["model.model_revision must be text", "Put it in quotes"], overrides=("--model.model_revision", "1234567")
    ),
}


@pytest.mark.parametrize("case", WRONG.values(), ids=list(WRONG))
def test_a_wrong_recipe_is_one_message_and_writes_nothing(
    case: Wrong, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = BASE + case.adds + "\n" if case.text is None else case.text
    Path("recipe.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    Path("folder").mkdir()
    assert main(["train", case.path, *case.overrides]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and err.count("error:") == 1 and "Traceback" not in err
    assert [words for words in case.told if words not in err] == [], err
    assert out == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "recipe.yaml"]
