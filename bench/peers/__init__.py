"""Trainers that bench.cpu_vs_peers sets side by side, each in a process of its own, a step at a time."""
