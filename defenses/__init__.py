"""The built-in defenses: one file each, every one a plug-in like anyone's (importable as ``ppbench.defenses``)."""
