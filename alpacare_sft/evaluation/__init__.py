"""A run's adapter against its base on rows that were held out."""
