"""The transport against a real server, with real faults."""
