"""What a run is: its sections and their limits, its blocks and ranks, what a payload holds, and the manifest.

Everything that must be the same for every peer is decided here, by arithmetic on settings and shapes. No torch, no
network; the only disk access is reading a configuration file. Begin with ``run.py``, the sections of a ``run.toml``,
then ``layout.py``, the one legal content of an upload and of a publication.
"""
