"""Folders that agents write: measured, walked and removed by descriptor."""
