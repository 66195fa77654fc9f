"""The model, the text it is trained on, and a peer's local steps.

No network: a trainer is given a round's plan and returns what it has to send. Begin with ``trainer.py``.
"""
