"""Lines between the processes of a local swarm: network namespaces where the machine allows them, else proxies."""
