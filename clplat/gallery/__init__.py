"""Pictures of what the scenarios consist of: `python -m clplat.gallery`."""
