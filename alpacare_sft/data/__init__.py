"""Rows in, cleaned, encoded, split and counted.

- `files`: local files → rows, with the line of what is wrong
- `load`: Hub, files or package → text columns
- `clean`: the counted cleaning steps
- `split`: the draw, in groups
- `leaks`: near-duplicates between test and training
- `prepare`: all of it, with the counts and the hashes
- `report`: rows as the model sees them, for the page
- `saving`: splits and report into a run's directory
"""

from alpacare_sft.data.prepare import PreparedData, prepare_data

__all__ = ["PreparedData", "prepare_data"]
