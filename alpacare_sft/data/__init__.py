"""Rows in, cleaned, encoded, split and counted."""
