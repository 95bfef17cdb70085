"""Runs the command line as `python -m selgrad`.

The same as the installed `selgrad`, for a Python whose scripts are not on the path.
"""

from selgrad.cli import main

if __name__ == "__main__":
    main()
