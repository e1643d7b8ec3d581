"""The configuration tree, imported as `clplat.conf`."""
