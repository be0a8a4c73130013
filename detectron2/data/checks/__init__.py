"""Checks of data sets: each looks at dataset dicts and returns findings."""
