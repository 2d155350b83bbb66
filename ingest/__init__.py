"""From text and models to receipts: corpora, capture, coders and the pipeline."""
