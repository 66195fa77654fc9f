"""Published methods to compare with: simulated peers that train by one rule, gradients in, wire bytes out.

Each method has a file with its settings, equations and source; Local Adam is in des_loc.py. Begin with method.py, which
has the interface and the two skeletons that all methods fill in; registry.py makes a method from its name and settings.
channel.py carries dense vectors in few bits for all that send them.
Nothing here knows models, data or the network.
"""
