"""Reports: tables, figures and one HTML page, from records alone.

This package imports neither JAX nor any other component package, so it works on any machine that has the files of a sweep.
"""
