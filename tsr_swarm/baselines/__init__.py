"""Published methods to compare with: simulated peers that train by one rule, gradients in, wire bytes out.

One file for each method, with its settings, equations and source. Begin with method.py, which has the interface and
the two skeletons that all methods fill in; registry.py makes a method from its name and settings. Nothing here knows
models, data or the network.
"""
