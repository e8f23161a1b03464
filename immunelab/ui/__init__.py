"""What the pages share: figures, the live chart, forms from knobs, cached reads."""
