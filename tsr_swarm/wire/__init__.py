"""Bytes and protobuf messages: how payloads are packed and compressed, and how what strangers send is checked.

Every message is checked before anything else reads it. No sockets. Begin with ``codec.py``, a payload's bytes, and
``checks.py``, what a message may hold.
"""
