"""The screen of a run in a terminal, made with Textual. It reads events and changes nothing. Begin with ``app.py``."""
