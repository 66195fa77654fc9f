"""Bytes on the wire: numbers to payloads, messages to protobuf, and the checks of all that comes in.

Every number and every field from another machine passes through here, and is refused with a PeerError if it is not
legal. Nothing here opens a socket or decides anything about a round; ``v1`` is generated from protos/.
Begin with ``messages.py`` (headers of rounds), ``checks.py`` (all other messages) and ``codec.py`` (payloads).
"""
