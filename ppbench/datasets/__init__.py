"""The built-in data sets: one file a source, each a plug-in like anyone's."""
