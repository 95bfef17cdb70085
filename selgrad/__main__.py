"""Runs the command line as `python -m selgrad`.

It does the same as the installed `selgrad` command, for Python installations whose scripts are not on the path.
"""

from selgrad.cli import main

if __name__ == "__main__":
    main()
