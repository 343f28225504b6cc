"""A run: its directory, its record, and the recipe that it was trained by."""
