"""The adapter on the Hub: its licences, its model card, what leaves this machine, and the push.

Nothing is imported here: training needs the model card and must not load the client.
"""
