"""Vision transformers that learn from protected images: with a cipher's key in the patch embedding, or no order."""
