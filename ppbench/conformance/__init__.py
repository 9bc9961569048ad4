"""What `ppbench check` and `ppbench.testing` hold a plug-in to: small checks, each of which names its fault."""
