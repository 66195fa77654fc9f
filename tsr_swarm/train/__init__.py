"""Training on one machine: text and its split between peers, the built-in model, local steps, evaluation, samples.

Knows nothing of sockets, rounds' votes or disk formats. Begin with ``trainer``, which takes a round's local steps and
applies published rounds; ``data`` says which peer trains on which text.
"""
