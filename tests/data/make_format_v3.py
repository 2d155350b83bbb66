"""Writes tests/data/format-v3: a lake of format version 3, as make_format_v1.py does of version 1.

    python tests/data/make_format_v3.py

It was run once, with the last version that wrote format 3.
"""

import make_format_v1

if __name__ == "__main__":
    make_format_v1.TARGET = make_format_v1.HERE / "format-v3"
    make_format_v1.main()
