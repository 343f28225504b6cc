"""Training: recipe, rows and base model to an adapter."""
