"""Suites of attacks that do not change, adaptive search for the ratio that protects, and the advice that follows."""

from selgrad.suites.members import BUDGETS, SUITES, Suite, suite_for

__all__ = ["BUDGETS", "SUITES", "Suite", "suite_for"]
