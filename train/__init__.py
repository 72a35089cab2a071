"""The program that trains the networks of shiftjax: `python -m train --help`."""
