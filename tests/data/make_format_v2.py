"""Writes tests/data/format-v2: a lake of format version 2, as make_format_v1.py does of version 1.

    python tests/data/make_format_v2.py

It was run once, with the last version that wrote format 2.
"""

import make_format_v1

if __name__ == "__main__":
    make_format_v1.TARGET = make_format_v1.HERE / "format-v2"
    make_format_v1.main()
