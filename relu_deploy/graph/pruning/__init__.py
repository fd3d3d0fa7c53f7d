"""Removal of channels and Relus that provably never act."""
