"""Rows in, cleaned, encoded, split and counted.

- `files`: local files → rows, with the line of what is wrong
- `load`: Hub, files or package → text columns
- `clean`: the counted cleaning steps
- `split`: the draw, in groups
- `prepare`: all of it, with the report and the hashes
"""

from alpacare_sft.data.prepare import PreparedData, prepare_data

__all__ = ["PreparedData", "prepare_data"]
