"""Reports: tables, figures and one HTML page, from records alone.

This room imports neither JAX nor any other room, so it works on any machine that has the files of a sweep.
"""
