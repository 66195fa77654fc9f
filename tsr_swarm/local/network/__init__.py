"""What the processes of a local swarm reach each other over: plain loopback, or a lab that shapes their links.

``local_network`` is the interface and chooses the implementation: ``namespaces`` (a network namespace for every
process and a router between them, needs root) or ``proxy`` (an HTTP proxy for every process). ``packets`` is their
model of home links and of the packets on them: pure, with the time as an argument. Nothing here knows what the
processes do.
"""
