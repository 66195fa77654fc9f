"""How the processes of a run find each other: addresses, identities, signed records, and the DHT that holds them.

Training never depends on it: a peer that knows one address can take part. Only ``dht.py`` knows hivemind. Begin with
``announcer.py``, which keeps a process's record fresh.
"""
