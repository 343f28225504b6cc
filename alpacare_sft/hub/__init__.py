"""The adapter on the Hub: what is checked, what is sent, and the push."""
