"""What the lake is made of: format, tables, snapshots, writers and readers of bytes."""
