"""Answers rated by people, blind, and by another model where a recipe asks for it."""
