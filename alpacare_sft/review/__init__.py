"""Answers rated by people, blind, and by another model where a recipe asks for it.

- `sheets`: predictions → review.csv and review.html without the key, review_key.json with it
- `reading`: a filled sheet → its ratings, every fault told at once
- `agreement`: how far reviewers agree
- `summary`: several sheets and the key → means, preferences, flags
- `endpoint`: one question to an OpenAI-compatible server
- `judge`: the same pairs put to it, each reply kept
- `showing`: both in a terminal
"""

from alpacare_sft.review.endpoint import check_judge
from alpacare_sft.review.judge import judge_answers
from alpacare_sft.review.sheets import save_review_sheets
from alpacare_sft.review.showing import show_judge, show_reviews
from alpacare_sft.review.summary import review_answers, summarize_reviews

__all__ = [
    "check_judge",
    "judge_answers",
    "review_answers",
    "save_review_sheets",
    "show_judge",
    "show_reviews",
    "summarize_reviews",
]
