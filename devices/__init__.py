"""Kinds of device: one file each."""
