"""What a run says of itself: events, the state that they add up to, and the logs that keep them.

``events.py`` defines the events and their lines of JSON, ``fold.py`` adds them up to a ``snapshot.py``, ``log.py`` and
``recording.py`` keep them, ``plain.py`` and ``text.py`` turn them into sentences. Nothing here knows peers, sockets or
torch. Begin with ``events.py``.
"""
