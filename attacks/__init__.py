"""The built-in attacks: one file a family, each a plug-in like anyone's (importable as ``ppbench.attacks``)."""
