"""A run's adapter against its base on rows that were held out.

- `selection`: the test split and the run's adapter, or what was asked for in their place
- `held_out`: which rows are asked, and the proof that they were not learnt
- `compared_models`: the base, then the adapter, in one copy of the weights
- `answering`: answers and losses, kept as they come
- `scoring`: scores of every row, their summary and the verdict
- `results`: what `scores.json` and `predictions.jsonl` say
- `stage`: the story, and the files that tell it
- `scoreboard`: the same in a terminal
"""

from alpacare_sft.evaluation.stage import Evaluation, evaluate, trained_recipe

__all__ = ["Evaluation", "evaluate", "trained_recipe"]
