"""What processes tell about a run: events, the snapshot that they fold into, plain sentences, counted bytes.

Nothing here acts on a run, and nothing loads torch. Begin with ``events.py``, every kind of event.
"""
