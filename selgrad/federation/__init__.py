"""Federated rounds with selective encryption, on Flower: the apps, a client mod and a server strategy for other people's apps, and a way to run it all.

Flower moves the messages and runs the processes; here is what is in the messages. Needs the extra `federation`.
"""
