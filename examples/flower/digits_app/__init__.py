"""Federated digits with selective encryption."""
