"""Downloads of one node: proposals before it votes on them, committed rounds, and whole states.

Nothing that a donor sends is used before it is checked against a hash that a leader named. What to fetch is decided in
rounds/; what was fetched is applied elsewhere in node/. Begin with ``downloader``, then ``donors``.
"""
