"""The adapter on the Hub: its licences, its card, what leaves this machine, and the push.

Nothing is imported here: training needs the card and must not load the client.
"""
