"""Encoders over tensors; light to import: loads neither torch nor triton by itself."""
