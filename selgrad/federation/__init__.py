"""Federated rounds with selective encryption on Flower: the apps, a client mod and a server strategy for other people's apps, and a simulation runner.

Flower moves the messages and runs the processes; this package decides what the messages contain. It needs the extra `federation`.
"""
