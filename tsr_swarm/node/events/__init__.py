"""What a node tells about its run: its own event log, and the reports of rounds that its leader gives to everybody."""
