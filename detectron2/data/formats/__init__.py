"""Formats of data sets on disk: one module for each, with its reader and its writer."""
